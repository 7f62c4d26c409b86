"""Trees: containers inside containers, down to leaves. Only this module knows how each kind of container is taken
apart and put together.

::

    value ── flatten ──> spec (structure, no values) + leaves ── unflatten ──> an equal value
             map, map_with_path: the same tree with other leaves                paths: where each leaf is

The kinds are dict, OrderedDict, list, tuple, named tuple and dataclass; everything else is a leaf. An instance of a
subclass of dict, list or tuple is taken apart as one of these, and put together as one. A caller chooses which kinds it
opens: data and batches are opened down to ``BATCH``, since a dataclass among them may be a dataset.
"""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from enum import Enum
from functools import partial
from typing import Any, NamedTuple

from untorn.errors import UnsupportedTypeError

__all__ = [
    "BATCH",
    "CONTAINERS",
    "LEAF",
    "MAX_DEPTH",
    "Collect",
    "Node",
    "Path",
    "Spec",
    "builder",
    "collector",
    "flatten",
    "is_record",
    "keys_detail",
    "leaf_specs",
    "map",
    "map_with_path",
    "member_names",
    "mismatch",
    "names_of",
    "opened",
    "path_of",
    "paths",
    "subscripts",
    "unflatten",
    "unflattener",
]

MAX_DEPTH = 200
CONTAINERS = frozenset({"dict", "odict", "list", "tuple", "namedtuple", "dataclass"})
#: the kinds that data, batches and outputs are made of
BATCH = frozenset({"dict", "list", "tuple", "namedtuple"})

#: the keys of these types that are equal are alike
_NAMED = frozenset({str, int, bytes, type(None)})
_EXACT: dict[type, str] = {dict: "dict", OrderedDict: "odict", list: "list", tuple: "tuple"}

#: the names on the way from the root to a node
Path = tuple[str, ...]


class Spec(NamedTuple):
    """The structure of a tree, hashable: a node's kind, what distinguishes it from others of its kind, its children.

    The detail of a dict is that of keys_detail(), of a list or tuple its length, and of a named tuple or
    dataclass (class, names of the fields). Only the maker of a spec knows what nodes of other kinds are.
    """

    kind: str
    detail: Any = None
    children: tuple[Spec, ...] = ()


LEAF = Spec("leaf")


class Node(NamedTuple):
    """A container that was taken apart, one level deep."""

    kind: str
    detail: Any
    members: Sequence[Any]
    #: of the members, for a kind that is not in CONTAINERS
    own_names: Sequence[str] | None = None

    @property
    def names(self) -> Sequence[str]:
        """The names of the members, as paths have them."""
        return self.own_names or member_names(self.kind, self.detail, len(self.members))

    def make(self, members: list[Any]) -> Any:
        """Return a container of the same kind with these members."""
        if self.kind == "tuple":
            return tuple(members)
        return builder(self.kind, self.detail, [next] * len(members))(iter(members))


def opened(value: Any, kinds: frozenset[str] = CONTAINERS) -> Node | None:
    """Take a container of one of these kinds apart; None for a leaf."""
    cls = type(value)
    kind = _EXACT.get(cls)
    if kind not in kinds:
        kind = _kind_of(cls, kinds)
    if kind is None:
        return None
    if kind in ("list", "tuple"):
        return Node(kind, len(value), value)
    if kind == "namedtuple":
        return Node(kind, (cls, cls._fields), value)
    if kind == "dataclass":
        names = tuple(field.name for field in dataclasses.fields(cls))
        return Node(kind, (cls, names), [getattr(value, name) for name in names])
    return Node(kind, keys_detail(value), list(value.values()))


def keys_detail(keys: Iterable[Any]) -> tuple[tuple[Any, Any], ...]:
    """Return the detail of a dict with these keys: (what tells a key from others that it equals, key) of each.

    True == 1 == 1.0, Decimal("1.0") == Decimal("1.00"), and one instant in two zones is equal: dicts with such keys
    have different structures.
    """
    return tuple([("str" if type(key) is str else _identity(key), key) for key in keys])


def _identity(key: Any) -> Any:
    cls = type(key)
    if cls is tuple:
        return "tuple" if _NAMED.issuperset(map(type, key)) else tuple(map(_identity, key))
    if cls in _NAMED or (cls in (bool, float) and key):
        return cls.__name__
    return (cls, key.name if isinstance(key, Enum) else repr(key))


def _kind_of(cls: type, kinds: frozenset[str]) -> str | None:
    if "dataclass" in kinds and dataclasses.is_dataclass(cls):
        return "dataclass"
    if not issubclass(cls, (dict, list, tuple)):
        return None
    if "namedtuple" in kinds and issubclass(cls, tuple) and hasattr(cls, "_fields"):
        return "namedtuple"
    kind = "dict" if issubclass(cls, dict) else "list" if issubclass(cls, list) else "tuple"
    return kind if kind in kinds else None


def is_record(cls: type) -> bool:
    """Return whether instances are named tuples or dataclasses."""
    return (issubclass(cls, tuple) and hasattr(cls, "_fields")) or dataclasses.is_dataclass(cls)


def builder(kind: str, detail: Any, members: Sequence[Callable[[Any], Any]]) -> Callable[[Any], Any]:
    """Return a function that makes a container from the results of these functions, one for each member, for its
    argument. As in copy and pickle, ``__new__`` and ``__init__`` of named tuples and dataclasses do not run."""
    if kind in ("dict", "odict"):
        items = list(zip([key for _, key in detail], members, strict=True))
        if kind == "dict":
            return lambda source: {key: build(source) for key, build in items}
        return lambda source: OrderedDict([(key, build(source)) for key, build in items])
    if kind == "list":
        return lambda source: [build(source) for build in members]
    if kind == "tuple":
        return lambda source: tuple([build(source) for build in members])
    make = partial(tuple.__new__ if kind == "namedtuple" else partial(_make_dataclass, detail[1]), detail[0])
    return lambda source: make([build(source) for build in members])


def _make_dataclass(names: tuple[str, ...], cls: type, members: list[Any]) -> Any:
    made: Any = object.__new__(cls)
    for name, member in zip(names, members, strict=True):
        object.__setattr__(made, name, member)
    return made


def member_names(kind: str, detail: Any, count: int) -> Sequence[str]:
    """Return the names of a node's members, as paths have them: keys, fields or indices."""
    if kind in ("dict", "odict"):
        return [str(key) for _, key in detail]
    names: tuple[str, ...] = detail[1] if kind in ("namedtuple", "dataclass") else tuple(f"{i}" for i in range(count))
    return names


# -- values


def flatten(
    tree: Any,
    take: Callable[[Any, Path, list[Any]], Spec | Node] | None = None,
    *,
    kinds: frozenset[str] = CONTAINERS,
    at: Path = (),
) -> tuple[Spec, list[Any]]:
    """Take a tree apart into its spec and its leaves, in depth-first order. Copies nothing.

    Args:
        tree: any value.
        take: (value, path, leaves) -> a Node to go on into, or the spec of a leaf, which it has appended to leaves. By
            default, everything but a container is a leaf whose spec is LEAF.
        kinds: the containers that are opened by default.
        at: the path of the tree in a larger one.

    Raises:
        UnsupportedTypeError: a tree contains itself, or is nested more than 200 deep; names the place.
    """
    leaves: list[Any] = []

    def plain(value: Any, path: Path, leaves: list[Any]) -> Spec | Node:
        node = opened(value, kinds)
        if node is None:
            leaves.append(value)
        return node or LEAF

    taken = take or plain
    root = taken(tree, at, leaves)
    return root if isinstance(root, Spec) else _spec_of(root, tree, at, taken, leaves, []), leaves


def _spec_of(
    node: Node, value: Any, path: Path, take: Callable[..., Spec | Node], leaves: list[Any], above: list[int]
) -> Spec:
    """No closure of flatten: one that calls itself is a reference cycle, and would keep the leaves until the garbage
    collector runs."""
    if id(value) in above:
        raise UnsupportedTypeError(
            f"{path_of(path)}: the tree contains itself here (a cycle of {type(value).__name__}); "
            "a shared value must be a finite tree"
        )
    if len(above) >= MAX_DEPTH:
        raise UnsupportedTypeError(f"{path_of(path[:8])}/...: nested more than {MAX_DEPTH} deep")
    above.append(id(value))
    children = []
    for name, member in zip(node.names, node.members):  # noqa: B905  # of one length, and this runs often
        place = (*path, name)
        found = take(member, place, leaves)
        children.append(found if isinstance(found, Spec) else _spec_of(found, member, place, take, leaves, above))
    above.pop()
    return Spec(node.kind, node.detail, tuple(children))


def unflatten(spec: Spec, leaves: Sequence[Any]) -> Any:
    """Return the tree with this spec and these leaves. Raises ValueError for a wrong number of leaves."""
    return unflattener(spec)(leaves)


def unflattener(spec: Spec) -> Callable[[Sequence[Any]], Any]:
    """Return unflatten() for this spec, for trees that are made again and again."""

    def build(spec: Spec) -> Callable[[Iterator[Any]], Any]:
        if spec.kind not in CONTAINERS:
            return next
        return builder(spec.kind, spec.detail, [build(child) for child in spec.children])

    make, wanted = build(spec), len(paths(spec))

    def tree_of(leaves: Sequence[Any]) -> Any:
        if len(leaves) != wanted:
            raise ValueError(f"a tree of {wanted} leaves: found {len(leaves)}")
        return make(iter(leaves))

    return tree_of


def map(function: Callable[..., Any], tree: Any, *others: Any, kinds: frozenset[str] = BATCH) -> Any:
    """Return the same tree with the function's result for each leaf. The function also gets the leaves of other trees
    with the same structure."""
    node = opened(tree, kinds)
    if node is None:
        return function(tree, *others)
    members = [opened(other, kinds).members for other in others]  # type: ignore[union-attr]  # of the same structure
    return node.make([map(function, *each, kinds=kinds) for each in zip(node.members, *members, strict=True)])


def map_with_path(
    function: Callable[[str, Any], Any], tree: Any, *, at: str = "", kinds: frozenset[str] = BATCH
) -> Any:
    """Return the same tree with the function's result for each leaf and its place, a Python expression such as
    ``data[0]['x']`` for a tree ``at`` "data". Leaves come in depth-first order."""
    node = opened(tree, kinds)
    if node is None:
        return function(at, tree)
    places = subscripts(node)
    return node.make(
        [
            map_with_path(function, member, at=at + place, kinds=kinds)
            for place, member in zip(places, node.members, strict=True)
        ]
    )


def subscripts(node: Node) -> list[str]:
    """Return the Python text that selects each member of a container: ``['w']``, ``[0]``, ``.w``."""
    if node.kind in ("dict", "odict"):
        return [f"[{key!r}]" for _, key in node.detail]
    if node.kind == "dataclass":
        return [f".{name}" for name in node.detail[1]]
    return [f"[{index}]" for index in range(len(node.members))]


# -- specs


def path_of(path: Path) -> str:
    """Return a path as text: ``head/w``; that of the root is ``(the value itself)``."""
    return "/".join(path) if path else "(the value itself)"


def leaf_specs(spec: Spec, path: Path = (), *, through: bool = False) -> Iterator[tuple[Path, Spec]]:
    """Yield (path, spec) of every node that is not a container. If ``through``, yield the leaves below such a node in
    its place, by index."""
    if spec.kind not in CONTAINERS and not (through and spec.children):
        yield path, spec
        return
    for name, child in zip(names_of(spec), spec.children, strict=True):
        yield from leaf_specs(child, (*path, name), through=through)


def names_of(spec: Spec) -> Sequence[str]:
    """Return the names of a node's children."""
    return member_names(spec.kind, spec.detail, len(spec.children))


def paths(spec: Spec, *, through: bool = False) -> list[Path]:
    """Return the path of each node that leaf_specs() yields."""
    return [path for path, _ in leaf_specs(spec, through=through)]


def mismatch(
    expected: Spec, found: Spec, same_leaf: Callable[[Spec, Spec], bool], path: Path = ()
) -> tuple[Path, Spec, Spec] | None:
    """Return the first place where two trees differ in structure, apart from the order of names; None if they are
    alike."""
    if expected.kind not in CONTAINERS and found.kind not in CONTAINERS:
        return None if same_leaf(expected, found) else (path, expected, found)
    others = dict(zip(names_of(found), found.children, strict=True))
    if expected.kind != found.kind or set(names_of(expected)) != others.keys():
        return path, expected, found
    pairs = zip(names_of(expected), expected.children, strict=True)
    differences = (mismatch(mine, others[name], same_leaf, (*path, name)) for name, mine in pairs)
    return next(filter(None, differences), None)


Collect = Callable[[Any, list[Any]], bool]


def collector(spec: Spec, leaf: Callable[[Spec], Collect]) -> Collect:
    """Return a function (tree, leaves) -> bool that appends the leaves of a tree of this structure, in the order of the
    spec, and returns False for another structure. All that is known beforehand is prepared, for trees that come often.

    Args:
        spec: the structure. A dict may have its keys in another order; subclasses count as their kind.
        leaf: makes such a function for the spec of a leaf.
    """
    if spec.kind not in CONTAINERS:
        return leaf(spec)
    collects = [collector(child, leaf) for child in spec.children]
    if spec.kind in ("dict", "odict"):
        items = list(zip((key for _, key in spec.detail), collects, strict=True))
        return lambda tree, leaves: (
            isinstance(tree, dict)
            and len(tree) == len(items)
            and all(key in tree and collect(tree[key], leaves) for key, collect in items)
        )
    if spec.kind == "dataclass":
        fields = list(zip(spec.detail[1], collects, strict=True))
        return lambda tree, leaves: all(
            hasattr(tree, name) and collect(getattr(tree, name), leaves) for name, collect in fields
        )
    cls = list if spec.kind == "list" else tuple
    names = spec.detail[1] if spec.kind == "namedtuple" else None
    return lambda tree, leaves: (
        isinstance(tree, cls)
        and getattr(tree, "_fields", None) == names
        and len(tree) == len(collects)
        and all(collect(part, leaves) for collect, part in zip(collects, tree, strict=True))
    )
