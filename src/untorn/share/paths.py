"""Paths in a tree, such as ``head/w`` or ``layers/0/bias``; the empty path is the value itself.

A part is the str() of a dict's key, an index, or a field's name. Keys that contain a slash are found as well.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import Any, NamedTuple

from untorn.share.specs import OPAQUE
from untorn.trees import CONTAINERS, Path, Spec, leaf_specs, names_of, path_of

__all__ = ["InsidePacked", "New", "Place", "expanded", "find", "leaf_paths", "replaced"]


class InsidePacked(Exception):
    """A path leads into a packed container, which is one leaf: expanded() gives its parts places of their own."""


class New(NamedTuple):
    """A leaf of a new value, where a leaf of the newest version is its index."""

    leaf: Any


class Place(NamedTuple):
    """A node of a tree.

    Attributes:
        path: the requested path.
        trail: for each node on the way, its index among its siblings.
        spec: the node's spec.
        first: the index of its first leaf.
        size: the number of its leaves.
    """

    path: str
    trail: tuple[int, ...]
    spec: Spec
    first: int
    size: int

    @property
    def leaves(self) -> range:
        """The indices of its leaves."""
        return range(self.first, self.first + self.size)


def leaf_count(spec: Spec) -> int:
    """Return the number of leaves of a node."""
    inner = spec.kind in CONTAINERS or spec.kind in OPAQUE
    return sum(map(leaf_count, spec.children)) if inner else 1


def find(root: Spec, path: str) -> Place:
    """Return the node at ``path``. Raises KeyError, which names similar paths, if there is none; InsidePacked."""
    if not isinstance(path, str):
        raise TypeError(f"path: expected a str such as 'head/w', found {type(path).__name__}")
    trail: list[int] = []
    spec, first, rest = root, 0, path.strip("/")
    done: Path = ()
    while rest:
        if spec.kind == "packed":
            raise InsidePacked
        names = list(names_of(spec)) if spec.kind in CONTAINERS else []
        index = _longest_match(names, rest)
        if index < 0:
            raise KeyError(_unknown(path, done, spec, names, rest))
        first += sum(map(leaf_count, spec.children[:index]))
        done = (*done, names[index])
        rest = rest[len(names[index]) + 1 :]
        spec = spec.children[index]
        trail.append(index)
    return Place(path, tuple(trail), spec, first, leaf_count(spec))


def replaced(root: Spec, trail: tuple[int, ...], node: Spec) -> Spec:
    """Return the same tree with another node at that place."""
    if not trail:
        return node
    children = list(root.children)
    children[trail[0]] = replaced(children[trail[0]], trail[1:], node)
    return root._replace(children=tuple(children))


def expanded(root: Spec, unpack: Callable[[int], tuple[Spec, list[Any]]], first: int = 0) -> tuple[Spec, list[Any]]:
    """Return the same tree without packed containers, and for each of its leaves the index that it had, or a New one.

    Args:
        root: the tree.
        unpack: (index of a packed leaf) -> its spec and its leaves.
        first: the index of the tree's first leaf.
    """
    if root.kind == "packed":
        spec, leaves = unpack(first)
        return spec, [New(leaf) for leaf in leaves]
    if root.kind not in CONTAINERS:
        return root, list(range(first, first + leaf_count(root)))
    children, sources = [], []
    for child in root.children:
        spec, found = expanded(child, unpack, first)
        children.append(spec)
        sources += found
        first += leaf_count(child)
    return root._replace(children=tuple(children)), sources


def leaf_paths(root: Spec) -> list[str]:
    """Return the path of each leaf, in order; the leaves of a foreign value have the path of that value."""
    return [path_of(path) for path, spec in leaf_specs(root) for _ in range(leaf_count(spec))]


def _longest_match(names: list[str], rest: str) -> int:
    found = -1
    for index, name in enumerate(names):
        matches = rest == name or rest.startswith(name + "/")
        if matches and (found < 0 or len(name) > len(names[found])):
            found = index
    return found


def _unknown(path: str, done: Path, spec: Spec, names: list[str], rest: str) -> str:
    where = path_of(done)
    if not names:
        what = spec.detail[0] if spec.kind == "adapter" else spec.kind
        return f"{path!r}: {where} is a {what}, which has no parts with names; give a new value for {where} itself"
    near = difflib.get_close_matches(rest.partition("/")[0], names, 3, 0.5) or names[:5]
    return f"{path!r}: no {rest.partition('/')[0]!r} in {where}; there is {', '.join(map(repr, near))}"
