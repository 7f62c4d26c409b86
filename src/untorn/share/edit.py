"""Writing the next version in place: a writable tree over a slot that nobody can read yet.

When the block is over, nothing may write into the slot any more. The arrays that were handed out become read-only. A
slice of one that somebody kept would still be writable; where the reference counts say that there may be one, the
pages under it are replaced by a private copy: writes to it then change nothing that others see.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

from untorn import _core
from untorn.share.layout import Decoder, Layout, leaf_indices
from untorn.share.tree import Spec, flatten
from untorn.share.views import array_over

__all__ = ["Edit"]

# originals, the tree or container, the loop's name, and the argument of getrefcount
_OWN_REFERENCES = 4


class Edit:
    """One edit of one slot. Begin with the tree, then ``collect``, then ``end``; ``end`` also after an error.

    Attributes:
        tree: the writable tree.
        draft: the slot.
    """

    def __init__(self, attachment: _core.Attachment, layout: Layout, slot: int, *, copy: bool) -> None:
        self._attachment = attachment
        self._layout = layout
        self.draft = attachment.draft(slot)
        self._copy_newest(everything=copy)
        self.tree = Decoder(layout.schema, layout.nbytes).value(self.draft)
        self._originals = flatten(self.tree)[1]

    def _copy_newest(self, *, everything: bool) -> None:
        newest = memoryview(self._attachment.draft(self._attachment.latest_slot))
        if everything:
            _core.copy(self.draft, 0, newest[: self._layout.nbytes])
            return
        for index in leaf_indices(self._layout, arrays=False):
            _, start = self._layout.leaves[index]
            _core.copy(self.draft, start, newest[start : self._layout.leaf_end(index)])

    def collect(self) -> tuple[Spec, list[Any]] | None:
        """Bring what was replaced into the slot; None then. If the structure changed: the tree's spec and leaves, none
        of which lies in the slot."""
        spec, leaves = flatten(self.tree)
        same_structure = spec == self._layout.spec
        space = array_over(self.draft, np.uint8, self._layout.nbytes, 0)
        for index, leaf in enumerate(leaves):
            in_place = same_structure and leaf is self._originals[index]
            if isinstance(leaf, np.ndarray) and not in_place and np.may_share_memory(leaf, space):
                leaves[index] = leaf.copy(order="K")  # it moved to another place in the tree
        if not same_structure:
            return spec, leaves
        for index, leaf in enumerate(leaves):
            if leaf is not self._originals[index]:
                self._layout.write_leaf(self.draft, index, leaf)
        self._layout.write_schema(self.draft)
        return None

    def end(self) -> None:
        """From here on nobody writes to the slot through what was handed out."""
        spread = False
        for leaf in self._originals:
            if isinstance(leaf, np.ndarray):
                leaf.flags.writeable = False
                # whoever wrote `as params` for a single array has one reference more
                allowed = _OWN_REFERENCES + (leaf is self.tree)
                spread = spread or sys.getrefcount(leaf) > allowed
        if spread:
            self._attachment.seal(self.draft)
