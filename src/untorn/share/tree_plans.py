"""Plans for small trees: a schema as an array of nodes, which the core writes and reads in one call.

A plan is made from the schema of a layout, so there is one encoding. Trees with other values than plain numbers, texts
and C-ordered arrays, and large ones, have no plan; they go through Layout and Decoder.
"""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np

from untorn import _core
from untorn.share.layout import payload_of, read_dtype

__all__ = ["Plans", "drop_oldest", "plan_of"]

_MAX_KNOWN = 64
_MAX_NBYTES, _MAX_NODES, _MAX_AXES = 1 << 16, 256, 8
_SIZES = {"int": 8, "float": 8, "bool": 1}
_NOTHING = (None, None, (), b"")


def plan_of(schema: bytes) -> _core.TreePlan | None:
    """Return the plan for items with this schema, which a Layout made or a Decoder has read; None if there is none."""
    if len(schema) > _MAX_NBYTES:
        return None
    nodes: list[tuple[Any, ...]] = []
    payload = payload_of(schema)
    if not _add(json.loads(schema)["value"], payload, nodes):
        return None
    end = max((node[2] + node[3] for node in nodes), default=payload)
    nbytes = max(payload, -(-end // 64) * 64)
    return _core.TreePlan(nodes, schema, nbytes, np.ndarray) if nbytes <= _MAX_NBYTES else None


def _add(node: Any, payload: int, nodes: list[tuple[Any, ...]]) -> bool:
    """Append a node and its children. Returns False if one of them has no plan."""
    kind, detail, *rest = node
    if len(nodes) >= _MAX_NODES:
        return False
    if kind in ("dict", "list", "tuple"):
        (children,) = rest
        keys = tuple(detail) if kind == "dict" else None
        if kind == "dict" and not all(type(key) is str for key in detail):
            return False
        nodes.append((kind, len(children), 0, 0, keys, *_NOTHING))
        return all(_add(child, payload, nodes) for child in children)
    if kind == "none":
        nodes.append((kind, 0, 0, 0, None, *_NOTHING))
        return True
    if kind in _SIZES:
        nodes.append((kind, 0, payload + detail, _SIZES[kind], None, *_NOTHING))
        return True
    if kind in ("str", "bytes"):
        nodes.append((kind, 0, payload + detail, rest[0], None, *_NOTHING))
        return True
    if kind not in ("array", "numpy"):
        return False
    return _add_array(kind, payload + detail, rest, nodes)


def _add_array(kind: str, offset: int, rest: list[Any], nodes: list[tuple[Any, ...]]) -> bool:
    dtype = read_dtype(rest[0])
    shape = tuple(rest[1]) if kind == "array" else ()
    has_strides = kind == "array" and rest[2] is not None
    if dtype.kind not in "biufc" or not dtype.isnative or len(shape) > _MAX_AXES or has_strides:
        return False
    example: Any = np.empty((), dtype)  # NumPy's stubs know no buffers before Python 3.12
    text = memoryview(example).format.encode()
    cls = np.ndarray if kind == "array" else dtype.type
    nodes.append((kind, 0, offset, dtype.itemsize * math.prod(shape), None, cls, dtype, shape, text))
    return True


class Plans:
    """The plans for the structures that were met last."""

    __slots__ = ("_known",)

    def __init__(self) -> None:
        self._known: dict[bytes, _core.TreePlan | None] = {}

    def of(self, schema: bytes) -> _core.TreePlan | None:
        """Return the plan for this structure, which is kept; None if it has none."""
        if schema not in self._known:
            self._known[schema] = plan_of(schema)
            drop_oldest(self._known)
        return self._known[schema]


def drop_oldest(table: dict[Any, Any]) -> None:
    """Forget the oldest entries of a table that has too many."""
    while len(table) > _MAX_KNOWN:
        table.pop(next(iter(table)), None)
