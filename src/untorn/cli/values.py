"""Values of a channel's newest version, by path, as text."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from untorn import trees
from untorn.share import subscribe

__all__ = ["member", "values_at"]

_MAX_TEXT = 4000
#: for arrays of more elements than this, only the edges are shown
_SUMMARY = 100


def values_at(channel: str, paths: Iterable[str], *, allow_pickle: bool = False) -> dict[str, str]:
    """Return the text of the value at each path, all from one version. Attaches as a reader meanwhile.

    Raises ValueError, which names similar paths, if there is no value at a path, and the errors of untorn.subscribe.
    """
    with subscribe(channel, allow_pickle=allow_pickle) as subscriber, subscriber.snapshot() as snapshot:
        value = snapshot.value
        return {path: _text(path, member(value, path), snapshot.version) for path in paths}


def member(value: Any, path: str) -> Any:
    """Return the value at a path of a tree, such as ``head/w`` or ``layers/0/w``; the tree itself for ``""``."""
    found = list(_find(value, path)) if path else [value]
    if found:
        return found[0]
    known = list(_paths(value))
    near = difflib.get_close_matches(path, known, n=3, cutoff=0.5) or known[:5]
    raise ValueError(
        f"no value at {path!r}; "
        + (f"similar paths: {', '.join(map(repr, near))}" if near else "the value has no parts")
    )


def _members(value: Any) -> dict[str, Any]:
    """Return the parts of a container by name; empty for a leaf."""
    if isinstance(value, Mapping):
        return {str(key): part for key, part in value.items()}
    node = trees.opened(value)
    return {} if node is None else dict(zip(node.names, node.members, strict=True))


def _find(value: Any, path: str) -> Iterable[Any]:
    """Yield the values at a path. There may be several, since a key may itself contain slashes."""
    for name, part in _members(value).items():
        if name == path:
            yield part
        elif path.startswith(name + "/"):
            yield from _find(part, path[len(name) + 1 :])


def _paths(value: Any, prefix: str = "") -> Iterable[str]:
    for name, part in _members(value).items():
        yield prefix + name
        yield from _paths(part, f"{prefix}{name}/")


def _text(path: str, value: Any, version: int) -> str:
    what = type(value).__name__
    if isinstance(value, np.ndarray):
        what = f"{value.dtype} {value.shape}"
    with np.printoptions(threshold=_SUMMARY, edgeitems=3, linewidth=100):
        text = str(value) if isinstance(value, np.ndarray | np.generic) else repr(value)
    if len(text) > _MAX_TEXT:
        text = f"{text[:_MAX_TEXT]}... ({len(text):,} characters)"
    lines = "\n".join("".join(c if c.isprintable() else repr(c)[1:-1] for c in line) for line in text.split("\n"))
    return f"{path or '(all)'} of version {version}: {what}\n{lines}"
