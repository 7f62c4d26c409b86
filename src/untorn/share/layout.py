"""The position of each leaf of a tree in a slot, and the structure as it is written for readers.

::

    slot:  header (64 bytes) | schema: JSON in UTF-8 | pad to 64 | payload: leaves, arrays aligned to 64

The schema is JSON and nothing else: no pickle, no code. docs/format.md describes it. decoder.py is the reader's side.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from untorn import _core
from untorn.share.decoder import Decoder
from untorn.share.described import describe_key
from untorn.share.slot_format import ALIGNMENT, FROZEN_DICT, STRUCTS, align, payload_of
from untorn.share.specs import OPAQUE, Deferred, flatten
from untorn.share.views import array_over
from untorn.trees import CONTAINERS, Spec

__all__ = ["Layout", "pack"]

#: arrays of at least this size are copied as bytes if they can
_LARGE_NBYTES = 1 << 16


class Layout:
    """The positions of the leaves of one spec.

    Attributes:
        spec: the structure that this lays out.
        schema: the structure as readers get it.
        payload: the offset of the payload from the start of the slot.
        nbytes: the size of the whole slot.
        leaves: (spec, offset from the start of the slot) of each leaf, in order.
        has_foreign: whether there are values of other libraries among them.
        has_packed: whether there are packed containers among them.
        arrays: the indices of the leaves that are the user's arrays, and not part of such a value.
        plan: for writing them in one call (tree_plans.py); False if there is none, None if nobody has asked.
    """

    def __init__(self, spec: Spec, extra: Spec | None = None, *, payload: int | None = None) -> None:
        self.spec = spec
        self.extra = extra
        self.has_foreign: bool = False
        self.has_packed: bool = False
        self.arrays: list[int] = []
        self.plan: _core.TreePlan | Literal[False] | None = None
        self._decoder: Decoder | None = None
        self._end = 0
        places: list[tuple[Spec, int]] = []
        document = {"value": self._describe(spec, places)}
        if extra is not None:
            document["extra"] = self._describe(extra, places)
        self.schema: bytes = json.dumps(document, separators=(",", ":")).encode()
        self.payload: int = payload_of(self.schema) if payload is None else payload
        self.nbytes: int = self.payload + align(self._end)
        self.leaves: list[tuple[Spec, int]] = [(leaf, self.payload + offset) for leaf, offset in places]

    def _place(self, nbytes: int, alignment: int) -> int:
        offset = align(self._end, alignment)
        self._end = offset + nbytes
        return offset

    def _describe(self, spec: Spec, places: list[tuple[Spec, int]], foreign: bool = False) -> list[Any]:
        if spec.kind in CONTAINERS or spec.kind in OPAQUE:
            foreign = foreign or spec.kind in OPAQUE
            self.has_foreign |= foreign
            return [*_describe_node(spec), [self._describe(child, places, foreign) for child in spec.children]]
        if spec.kind == "array" and not foreign:
            self.arrays.append(len(places))
        self.has_packed |= spec.kind == "packed"
        nbytes, alignment = _leaf_size(spec)
        offset = self._place(nbytes, alignment)
        places.append((spec, offset))
        return [spec.kind, offset, *_describe_leaf(spec)]

    def decoder(self, *, allow_pickle: bool) -> Decoder:
        """The decoder of this layout."""
        if self._decoder is None or self._decoder.allow_pickle != allow_pickle:
            self._decoder = Decoder(self.schema, self.nbytes, allow_pickle=allow_pickle)
        return self._decoder

    def write_schema(self, draft: _core.Draft | _core.QueueDraft) -> None:
        """Write the schema after the header."""
        _core.copy(draft, _core.HEADER_NBYTES, self.schema)

    def write_leaf(self, draft: _core.Draft | _core.QueueDraft | bytearray, index: int, leaf: Any) -> None:
        """Copy one leaf into its place; arrays without the GIL."""
        spec, offset = self.leaves[index]
        if spec.kind == "array":
            target = self.array(draft, index)
            if type(leaf) is Deferred:
                leaf.write_into(target)
            elif target.nbytes >= _LARGE_NBYTES and _has_bytes_of(leaf, target):
                _core.copy(draft, offset, leaf.reshape(-1).view(np.uint8), self.nbytes)
            elif target.size:
                np.copyto(target, leaf)
        else:
            _core.copy(draft, offset, _leaf_bytes(spec, leaf))

    def leaf_range(self, index: int) -> tuple[int, int]:
        """Return the positions at which a leaf begins and ends, from the start of the slot."""
        spec, offset = self.leaves[index]
        return offset, offset + _leaf_size(spec)[0]

    def ranges(self, indices: Iterable[int]) -> Iterator[tuple[int, int]]:
        """Yield the byte ranges of these leaves (in order), with adjacent ones joined."""
        start = end = before = -1
        for index in indices:
            first, last = self.leaf_range(index)
            if before >= 0 and index != before + 1:
                yield start, end
                start = first
            elif before < 0:
                start = first
            before, end = index, last
        if before >= 0:
            yield start, end

    def array(self, draft: _core.Draft | _core.QueueDraft | bytearray, index: int) -> NDArray[Any]:
        """Return a writable view of an array leaf in a slot that is being written."""
        spec, offset = self.leaves[index]
        dtype, shape, strides = spec.detail
        return array_over(draft, dtype, shape, offset, strides)


def pack(value: Any, *, allow_pickle: bool = False, plain: bool = False) -> tuple[bytes, bytearray]:
    """A value in private memory: its schema and its payload. ``Decoder(schema, len(payload), payload=0)`` reads it.
    With ``plain``, large plain containers are packed (specs.py)."""
    spec, leaves = flatten(value, allow_pickle=allow_pickle, pack=plain)
    layout = Layout(spec, payload=0)
    payload = bytearray(layout.nbytes)
    for index, leaf in enumerate(leaves):
        layout.write_leaf(payload, index, leaf)
    return layout.schema, payload


def _leaf_size(spec: Spec) -> tuple[int, int]:
    """Return the size and the alignment of a leaf."""
    if spec.kind == "array":
        dtype, shape, _ = spec.detail
        return dtype.itemsize * int(np.prod(shape, dtype=object)), ALIGNMENT
    if spec.kind == "numpy":
        return spec.detail.itemsize, 16
    if spec.kind in STRUCTS:
        return STRUCTS[spec.kind].size, 8
    if spec.kind == "packed":
        return spec.detail[0], 8
    return spec.detail or 0, 8


def _has_bytes_of(leaf: Any, target: NDArray[Any]) -> bool:
    """Return whether the bytes of this array, in order, are what belongs into the target."""
    return (
        isinstance(leaf, np.ndarray)
        and leaf.dtype == target.dtype
        and leaf.shape == target.shape
        and leaf.flags.c_contiguous
        and target.flags.c_contiguous
    )


def _leaf_bytes(spec: Spec, leaf: Any) -> Any:
    kind = spec.kind
    if kind == "numpy":
        return leaf.tobytes()
    if kind == "complex":
        return STRUCTS[kind].pack(leaf.real, leaf.imag)
    if kind in STRUCTS:
        return STRUCTS[kind].pack(leaf)
    if kind == "str":
        return leaf.encode("utf-8", "surrogatepass")
    if kind == "bigint":
        return leaf.to_bytes(spec.detail, "little", signed=True)
    return b"" if leaf is None else leaf


def _describe_leaf(spec: Spec) -> tuple[Any, ...]:
    if spec.kind == "array":
        dtype, shape, strides = spec.detail
        return np.lib.format.dtype_to_descr(dtype), list(shape), strides and list(strides)
    if spec.kind == "numpy":
        return (np.lib.format.dtype_to_descr(spec.detail),)
    if spec.kind == "packed":
        return tuple(spec.detail)
    return () if spec.detail is None else (spec.detail,)


def _describe_node(spec: Spec) -> tuple[str, Any]:
    kind, detail, _ = spec
    if kind in ("dict", "odict"):
        return kind, [describe_key(key) for _, key in detail]
    if kind in ("namedtuple", "dataclass"):
        cls, names = detail
        return kind, (cls.__module__, cls.__qualname__, names)
    if kind == "adapter" and detail[0] == FROZEN_DICT:
        return "frozendict", detail[2]
    return kind, detail
