"""Plans for trees: a schema as an array of nodes, which the core writes and reads in one call.

A plan is made from the schema of a layout, so there is one encoding. Trees with other values than plain numbers, texts
and C-ordered arrays have no plan, nor have those with too many leaves; they go through Layout and Decoder.
"""

from __future__ import annotations

import json
import math
import sys
from typing import Any

import numpy as np

from untorn import _core
from untorn.share.described import read_dtype
from untorn.share.slot_format import payload_of

__all__ = ["Plans", "drop_oldest", "small_plan_of", "tree_plan_of"]

_MAX_KNOWN = 64

#: of an item of a queue that is written and read in one call
_SMALL_NBYTES, _SMALL_NODES = 1 << 16, 256
#: of a version
_MAX_NODES, _MAX_AXES = 1 << 14, 8
_SIZES = {"int": 8, "float": 8, "bool": 1}
_NOTHING = (None, None, (), b"")


def small_plan_of(schema: bytes) -> _core.TreePlan | None:
    """Return the plan for small items with this schema, which a Layout made or a Decoder has read; None if there is
    none."""
    if len(schema) > _SMALL_NBYTES:
        return None
    plan = _plan_of(schema, payload_of(schema), _SMALL_NODES)
    return plan if plan is not None and plan.nbytes <= _SMALL_NBYTES else None


def tree_plan_of(schema: bytes, payload: int, slot_nbytes: int) -> _core.TreePlan | None:
    """Return the plan for versions with this schema, which a Layout made or a Decoder has read; None if there is none.

    Args:
        schema: the schema.
        payload: where the payload begins.
        slot_nbytes: the size of the memory that a version has at least.
    """
    if len(schema) > 64 * _MAX_NODES:
        return None
    plan = _plan_of(schema, payload, _MAX_NODES)
    return plan if plan is not None and plan.nbytes <= slot_nbytes else None


def _plan_of(schema: bytes, payload: int, max_nodes: int) -> _core.TreePlan | None:
    document = json.loads(schema)
    nodes: list[tuple[Any, ...]] = []
    if len(document) > 1 or not _add(document["value"], payload, nodes, max_nodes):
        return None
    end = max((node[2] + node[3] for node in nodes), default=payload)
    nbytes = max(payload, -(-end // 64) * 64)
    return _core.TreePlan(nodes, schema, nbytes, np.ndarray, _array_api())


def _array_api() -> Any:
    """Return the table of functions that NumPy gives to extensions, in a capsule; None if it is not where it was."""
    for name in ("numpy._core._multiarray_umath", "numpy.core._multiarray_umath"):
        found = getattr(sys.modules.get(name), "_ARRAY_API", None)
        if found is not None:
            return found
    return None


def _add(node: Any, payload: int, nodes: list[tuple[Any, ...]], max_nodes: int) -> bool:
    """Append a node and its children. Returns False if one of them has no plan."""
    kind, detail, *rest = node
    if len(nodes) >= max_nodes:
        return False
    if kind in ("dict", "list", "tuple"):
        (children,) = rest
        keys = tuple(detail) if kind == "dict" else None
        if kind == "dict" and not all(type(key) is str for key in detail):
            return False
        nodes.append((kind, len(children), 0, 0, keys, *_NOTHING))
        return all(_add(child, payload, nodes, max_nodes) for child in children)
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

    def known(self, schema: bytes) -> _core.TreePlan | None:
        """Return the plan for this structure if it was met lately and has one."""
        return self._known.get(schema)

    def of(self, schema: bytes) -> _core.TreePlan | None:
        """Return the plan for this structure, which is kept; None if it has none."""
        if schema not in self._known:
            self._known[schema] = small_plan_of(schema)
            drop_oldest(self._known)
        return self._known[schema]


def drop_oldest(table: dict[Any, Any]) -> None:
    """Forget the oldest entries of a table that has too many."""
    while len(table) > _MAX_KNOWN:
        table.pop(next(iter(table)), None)
