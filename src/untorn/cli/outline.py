"""The structure of a version for display, one line per node, derived from the schema only.

Every node gets a line. A kind that is unknown here, since a newer untorn may have written the channel, or that only its
own library can look into, is one line with its name and the bytes of its parts.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from untorn.errors import FormatError
from untorn.share.lowlevel import MALFORMED, read_dtype, read_key
from untorn.trees import CONTAINERS

__all__ = ["Node", "outline", "walk"]

_OPAQUE = {"frozendict": "FrozenDict", "pickle": "pickle", "adapter": "adapter"}
_FIXED = {"int": 8, "float": 8, "complex": 16, "bool": 1, "none": 0}
_SIZED = frozenset({"str", "bytes", "bigint"})
_TYPES = {"none": "None", "bigint": "int", "odict": "OrderedDict"}


@dataclass(frozen=True)
class Node:
    """One node of a value's tree.

    Attributes:
        path: its path, such as "head/w"; empty for the value itself.
        kind: its kind in the schema.
        type: its class or dtype, for display.
        shape: the shape of an array; None for anything else.
        dtype: the dtype of an array or a NumPy scalar; None for anything else.
        nbytes: the bytes of its leaves, without padding.
        children: the parts of a container.
    """

    path: str
    kind: str
    type: str
    shape: tuple[int, ...] | None
    dtype: str | None
    nbytes: int
    children: tuple[Node, ...] = ()


def outline(node: Any, path: str = "") -> Node:
    """Return the tree of a schema's node. Raises FormatError if it is not even a list with a kind."""
    try:
        return _outline(node, path)
    except MALFORMED as error:
        raise FormatError(f"the schema is damaged at {path or 'its root'}: {error or type(error).__name__}") from None


def walk(node: Node) -> Iterator[Node]:
    """Yield a node and all nodes below it, in the order of the tree."""
    yield node
    for child in node.children:
        yield from walk(child)


def _outline(node: Any, path: str) -> Node:
    kind = str(node[0])
    if kind in CONTAINERS:
        names = _child_names(kind, node[1], len(node[2]))
        children = tuple(
            _outline(child, f"{path}/{name}" if path else name) for name, child in zip(names, node[2], strict=True)
        )
        return Node(path, kind, _container_type(kind, node[1]), None, None, sum(c.nbytes for c in children), children)
    nbytes = _leaf_nbytes(node)
    if nbytes is None:
        return Node(path, kind, _opaque_type(kind, node[1:]), None, None, _parts_nbytes(node[1:]))
    if kind == "packed":
        return Node(path, kind, f"{node[3]} of {node[4]:,} plain values", None, None, nbytes)
    dtype = _dtype_name(node[2]) if kind in ("array", "numpy") else None
    shape = tuple(node[3]) if kind == "array" else None
    return Node(path, kind, dtype or _TYPES.get(kind, kind), shape, dtype, nbytes)


def _child_names(kind: str, detail: Any, count: int) -> list[str]:
    if kind in ("dict", "odict"):
        return [_key_name(key) for key in detail]
    if kind in ("namedtuple", "dataclass"):
        return [str(field) for field in detail[2]]
    return [str(index) for index in range(count)]


def _key_name(key: Any) -> str:
    """Return a key as untorn's messages write it: its str()."""
    try:
        return str(read_key(key))
    except LookupError:  # of a kind that a newer untorn has
        return str(key[1])


def _container_type(kind: str, detail: Any) -> str:
    if kind in ("namedtuple", "dataclass"):
        return f"{detail[0]}.{detail[1]}"
    return _TYPES.get(kind, kind)


def _opaque_type(kind: str, rest: list[Any]) -> str:
    """Return the name of the adapter or the pickled class if the node begins with it, else the kind."""
    detail = rest[0] if rest else None
    while isinstance(detail, list) and detail:
        detail = detail[0]
    name = detail if isinstance(detail, str) and kind in ("adapter", "pickle") else ""
    if kind == "adapter" and name:
        return name
    return f"{_OPAQUE.get(kind, kind)} {name}".rstrip()


def _leaf_nbytes(node: Any) -> int | None:
    """Return the bytes of a leaf of a known kind; None for anything else."""
    match node:
        case ["array", int(), descr, [*shape], _]:
            return _itemsize(descr) * math.prod(map(int, shape))
        case ["numpy", int(), descr]:
            return _itemsize(descr)
        case [str(kind), int()] if kind in _FIXED:
            return _FIXED[kind]
        case [str(kind), int(), int(nbytes)] if kind in _SIZED:
            return nbytes
        case ["packed", int(), int(nbytes), str(), int()]:
            return nbytes
    return None


def _parts_nbytes(part: Any) -> int:
    """Return the bytes of all leaves that can be recognised in a node of another kind."""
    nbytes = _leaf_nbytes(part)
    if nbytes is not None:
        return nbytes
    if isinstance(part, dict):
        part = list(part.values())
    return sum(map(_parts_nbytes, part)) if isinstance(part, list) else 0


def _itemsize(descr: Any) -> int:
    try:
        return read_dtype(descr).itemsize
    except (TypeError, ValueError, AttributeError):
        return 0  # this NumPy does not know the dtype, but the rest can be shown


def _dtype_name(descr: Any) -> str:
    try:
        dtype = read_dtype(descr)
    except (TypeError, ValueError, AttributeError):
        return str(descr)
    if dtype.fields is None:
        return str(dtype)
    return "{" + ", ".join(f"{name}: {field[0]}" for name, field in dtype.fields.items()) + "}"
