"""What layout.py, which writes a slot, and decoder.py, which reads it, agree upon."""

from __future__ import annotations

import struct

from untorn import _core

__all__ = ["ALIGNMENT", "FROZEN_DICT", "STRUCTS", "align", "payload_of"]

#: arrays begin at multiples of this
ALIGNMENT = 64
#: the name of FrozenDict's adapter, for which the schema has a separate kind
FROZEN_DICT = "untorn.FrozenDict"
#: the leaves of a fixed size, as bytes
STRUCTS = {
    "int": struct.Struct("<q"),
    "float": struct.Struct("<d"),
    "complex": struct.Struct("<dd"),
    "bool": struct.Struct("<?"),
}


def align(nbytes: int, to: int = ALIGNMENT) -> int:
    """Return the first multiple of ``to`` that is not less than ``nbytes``."""
    return (nbytes + to - 1) // to * to


def payload_of(schema: bytes) -> int:
    """Return where the payload begins in a slot with this schema."""
    return align(_core.HEADER_NBYTES + len(schema))
