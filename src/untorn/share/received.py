"""A version that comes as bytes, from another channel: of another process or of another machine.

The bytes are those of a slot, header and all (docs/format.md), so that they can be received straight into one. No
address and no descriptor is in them, and leaves state their own byte order. Before such a version becomes the newest,
its header and its schema are checked as a reader checks them, but without the classes and libraries of its values: a
process that only passes versions on needs none of them.
"""

from __future__ import annotations

import struct
import weakref
from typing import Any

import numpy as np

from untorn import _core
from untorn.errors import FormatError
from untorn.share.decoder import Decoder
from untorn.share.described import items_of, name_of
from untorn.share.layout import Layout
from untorn.share.specs import flatten
from untorn.share.views import array_over
from untorn.trees import Path

__all__ = ["Room", "received_schema", "whole_version"]

#: of a slot's header: version, published_ns, nbytes, schema_nbytes, schema_id
_HEADER = struct.Struct("<QqQQQ")


def received_schema(memory: memoryview, known: bytes | None) -> bytes:
    """Return the schema of a version that was received, after checking that it is one of this size.

    Args:
        memory: the whole version.
        known: a schema of a version of the same size that was checked before, and needs no second check; or None.

    Raises FormatError if the bytes are not a version.
    """
    if len(memory) < _core.HEADER_NBYTES:
        raise FormatError(f"it has {len(memory)} bytes, and the header of a version alone has {_core.HEADER_NBYTES}")
    _, _, nbytes, schema_nbytes, _ = _HEADER.unpack_from(memory)
    if nbytes != len(memory) or schema_nbytes > nbytes - _core.HEADER_NBYTES:
        raise FormatError(
            f"it has {len(memory):,} bytes, and its header says {nbytes:,}, with a schema of {schema_nbytes:,}; it is "
            f"damaged, is not a version of an untorn channel, or comes from a machine of "
            "another byte order"
        )
    schema = bytes(memory[_core.HEADER_NBYTES : _core.HEADER_NBYTES + schema_nbytes])
    if schema != known:
        _StructureCheck(schema, nbytes, allow_pickle=True)
    return schema


def whole_version(value: Any, version: int, published_ns: int) -> memoryview:
    """Return the bytes of a version with this value, as a slot has them."""
    spec, leaves = flatten(value)
    layout = Layout(spec)
    memory = bytearray(layout.nbytes)
    _HEADER.pack_into(memory, 0, version, published_ns, layout.nbytes, len(layout.schema), version)
    memory[_core.HEADER_NBYTES : layout.payload] = layout.schema.ljust(layout.payload - _core.HEADER_NBYTES, b"\0")
    for index, leaf in enumerate(leaves):
        layout.write_leaf(memory, index, leaf)
    return memoryview(memory).toreadonly()


class Room:
    """The room for a version that is being received, in a slot that no reader can see.

    Attributes:
        memory: exactly as many bytes as the version has, writable until end().
    """

    def __init__(self, draft: _core.Draft, nbytes: int) -> None:
        self._draft = draft
        whole = array_over(draft, np.uint8, nbytes, 0)
        self._views = weakref.ref(whole)  # it lives as long as any view of the memory
        self.memory = whole.data

    def end(self, attachment: _core.Attachment) -> None:
        """End the access. If a view of the memory was kept, it writes to a private copy from now on."""
        try:
            self.memory.release()
        except BufferError:  # an array over it is left
            attachment.seal(self._draft)
            return
        if self._views() is not None:  # a slice of it is left
            attachment.seal(self._draft)


class _StructureCheck(Decoder):
    """Checks a schema as a Decoder does, and needs neither the classes nor the libraries of the values."""

    def _compile_adapter(self, name: str, meta: Any, nodes: dict[str, Any], path: Path, depth: int) -> Any:
        for part, node in nodes.items():
            self._compile(node, (*path, part), depth)
        return None

    def _read_container(self, kind: str, detail: Any, count: int) -> tuple[str, Any]:
        if kind not in ("namedtuple", "dataclass"):
            return super()._read_container(kind, detail, count)
        module, qualname, names = items_of(detail)
        name_of(module), name_of(qualname)
        return "dict", [("str", name_of(name)) for name in items_of(names)]
