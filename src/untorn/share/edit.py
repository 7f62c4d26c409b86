"""Write the next version in place, through a writable tree over a slot that no reader can see yet.

After the block, nothing may write to the slot. The arrays of the tree become read-only. A slice of one that was kept
would still be writable, so if the reference counts show that there may be one, the pages under it are replaced by a
private copy, and writes to it change nothing that others see.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from untorn import _core
from untorn.share.layout import Layout
from untorn.share.paths import leaf_paths
from untorn.share.specs import Deferred, flatten
from untorn.share.views import array_over
from untorn.trees import Spec

__all__ = ["Edit"]


def _reference_counts(leaves: list[Any]) -> list[int]:
    """Return the number of references to each of these objects, including those made by this call."""
    return [sys.getrefcount(leaf) for leaf in leaves]


#: that number for an array to which only the list and its container refer; it depends on the version of Python
_OWN_REFERENCES = _reference_counts([np.empty(0)])[0] + 1
#: that number for the base of an array to which only the array refers
_VIEW = np.empty(0).view()
_BASE_REFERENCES = sys.getrefcount(_VIEW.base)


class Collected(NamedTuple):
    """The result of editing a tree."""

    spec: Spec
    leaves: list[Any]


class Edit:
    """One edit of a slot. Use the tree, then call ``collect``, then ``end``; call ``end`` after an error, too.

    Args:
        seal: lets later writes through a draft go to a private copy.
        newest: returns the newest version's slot, for ``only``; None if no version is the newest.
        layout: the layout of the newest version.
        draft: the slot, which contains the newest version.
        tree: the value in the slot, writable.
        originals: its leaves, in order, if they are known: the arrays, and anything in the place of others.
        only: the leaves that may be changed; None for all.
        allow_pickle: as in publish().
        pack: whether the tree is flattened with packed containers (specs.py).

    Attributes:
        tree: the writable tree.
    """

    def __init__(
        self,
        seal: Callable[[Any], None],
        newest: Callable[[], _core.Draft | bytearray] | None,
        layout: Layout,
        draft: _core.Draft | _core.QueueDraft,
        tree: Any,
        originals: list[Any] | None = None,
        *,
        only: frozenset[int] | None,
        allow_pickle: bool,
        pack: bool = False,
    ) -> None:
        self._seal = seal
        self._newest = newest
        self._layout = layout
        self._draft = draft
        self._only = only
        self._allow_pickle = allow_pickle
        self._pack = pack
        # an array that is the whole tree belongs to its view alone: what else refers to it is a slice of the view
        self.tree: Any = tree.view() if originals is None and isinstance(tree, np.ndarray) else tree
        self._originals = self._flatten().leaves if originals is None else originals
        for index in self._fixed():
            if isinstance(self._originals[index], np.ndarray):
                self._originals[index].flags.writeable = False

    def _flatten(self) -> Collected:
        return Collected(*flatten(self.tree, allow_pickle=self._allow_pickle, pack=self._pack))

    def _fixed(self) -> Iterator[int]:
        """The leaves that may not be changed."""
        return iter(()) if self._only is None else (i for i in range(len(self._originals)) if i not in self._only)

    def collect(self) -> Collected | None:
        """Write replaced leaves to the slot, and return None. If the structure changed, return the tree's spec and its
        leaves, none of which lies in the slot."""
        spec, leaves = self._flatten()
        same_structure = spec == self._layout.spec
        space = array_over(self._draft, np.uint8, self._layout.nbytes, 0)
        for index, leaf in enumerate(leaves):
            if same_structure and leaf is self._originals[index]:
                continue  # including scalars that can be changed in place, which are copies and are written below
            if type(leaf) is Deferred:
                leaves[index] = leaf.array()  # it may have been made from something in the slot
            elif isinstance(leaf, np.ndarray) and np.may_share_memory(leaf, space):
                in_place = same_structure and self._is_in_place(index, leaf)
                leaves[index] = leaf if in_place else leaf.copy(order="K")  # it moved to another place in the tree
        if self._only is not None:
            self._check_fixed(same_structure, leaves)
        if not same_structure:
            return Collected(spec, leaves)
        for index, leaf in enumerate(leaves):
            named = self._only is None or index in self._only
            if named and not self._is_in_place(index, leaf):
                self._layout.write_leaf(self._draft, index, leaf)
        self._layout.write_schema(self._draft)
        return None

    def _is_in_place(self, index: int, leaf: Any) -> bool:
        """Return whether this is the array that was given for this place, as an object or by its address."""
        if not isinstance(leaf, np.ndarray):
            # a structured scalar can be changed in place, but is a copy
            return leaf is self._originals[index] and not isinstance(leaf, np.void)
        if leaf is self._originals[index]:
            return True
        place = self._layout.array(self._draft, index)
        return bool(leaf.ctypes.data == place.ctypes.data and leaf.strides == place.strides)

    def _check_fixed(self, same_structure: bool, leaves: list[Any]) -> None:
        """Check that leaves which were not named are unchanged."""
        if not same_structure:
            raise ValueError(
                "edit(leaves=...): the block changed the structure of the tree, or the type, dtype or shape of a leaf; "
                "use edit() or update() for that. Nothing was published"
            )
        for index in self._fixed():
            if self._was_changed(index, leaves[index]):
                raise ValueError(
                    f"edit(leaves=...): {leaf_paths(self._layout.spec)[index]!r} was changed, but was not named; "
                    "name it in leaves=, or use edit(). Nothing was published"
                )

    def _was_changed(self, index: int, leaf: Any) -> bool:
        if isinstance(leaf, np.void):
            newest = self._newest_slot()
            start, end = self._layout.leaf_range(index)
            return bool(leaf.tobytes() != memoryview(newest)[start:end])
        if isinstance(leaf, _core.FrozenMemory):  # a packed container
            return memoryview(leaf) != memoryview(self._originals[index])
        if not isinstance(leaf, np.ndarray):
            return leaf is not self._originals[index] and bool(leaf != self._originals[index])
        if not self._layout.has_foreign:
            return not self._is_in_place(index, leaf)
        # a library such as torch ignores that memory is read-only, and one such as JAX gives out a copy
        published = self._layout.array(self._newest_slot(), index)
        if leaf.tobytes() == published.tobytes():
            return False
        before = self._originals[index]  # the pickle of a set can have other bytes each time that the set is made
        is_pickled_anew = isinstance(before, np.ndarray) and not self._is_in_place(index, leaf)
        return not (is_pickled_anew and leaf.tobytes() == before.tobytes())

    def _newest_slot(self) -> _core.Draft | bytearray:
        assert self._newest is not None
        return self._newest()

    def end(self) -> None:
        """Ensure that no later write through the tree's arrays reaches the slot."""
        spread = False
        for leaf, count in zip(self._originals, _reference_counts(self._originals), strict=True):
            if isinstance(leaf, np.ndarray):
                leaf.flags.writeable = False
                is_root = leaf is self.tree  # then the variable in `as params` is one more reference
                spread = spread or count > _OWN_REFERENCES + is_root
                spread = spread or (is_root and sys.getrefcount(leaf.base) > _BASE_REFERENCES)
        if spread or self._layout.has_foreign:
            self._seal(self._draft)
