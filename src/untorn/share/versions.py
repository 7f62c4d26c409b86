"""Make versions: pick a slot that no reader can see, update its leaves, and make it the latest.

For each slot this process knows the layout and the version that it contains, and for each leaf the version that last
changed it. So if only some leaves change, only these are written, and those that the slot has missed since::

    slots        leaves changed at       patch of leaf b = version 7 into slot 2
    0: v6        a: v2                   a   has v2, and 2 <= 4        nothing to do
    1: v5        b: v5  -> 7             b   the new value             written
    2: v4        c: v6                   c   has v1, and 6 > 4         copied from slot 0

Only this process knows what a slot contains, and it forgets that before it writes to the slot. So if a publisher is
killed, the next one begins with whole copies.
"""

from __future__ import annotations

import errno
import os
import struct
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from untorn import _core
from untorn.errors import CapacityError, ClosedError, FormatError
from untorn.share import storage
from untorn.share.fixed import check_structure
from untorn.share.frozen_dict import is_table
from untorn.share.layout import Layout
from untorn.share.naming import NameKeeper
from untorn.share.paths import InsidePacked, New, Place, expanded, find, leaf_count, replaced
from untorn.share.received import Room, received_schema
from untorn.share.specs import flatten
from untorn.share.storage_errors import labelled, meaning, no_space, unmappable
from untorn.share.tree_plans import tree_plan_of
from untorn.trees import Spec

__all__ = ["FREE_SLOT_TIMEOUT_S", "ReaderInfo", "Tree", "Versions", "forked_error", "readers_of"]

#: how long a writer waits for a slot when readers hold all of them
FREE_SLOT_TIMEOUT_S = 5.0
_VERSION = struct.Struct("<Q")
#: version numbers have 58 bits
_VERSIONS_END = 1 << 58


@dataclass(frozen=True)
class ReaderInfo:
    """One reader of a channel, as its publisher sees it.

    Attributes:
        pid: its process id, as the reader itself wrote it down.
        versions: the versions that it holds now, oldest first.
        age_s: the age of the oldest of these in seconds; 0.0 if it holds none.
    """

    pid: int
    versions: tuple[int, ...]
    age_s: float


class Tree(NamedTuple):
    """A value taken apart, with the second tree that is stored beside it."""

    spec: Spec
    extra: Spec | None
    leaves: list[Any]

    @classmethod
    def of(cls, value: Any, extra: Any = None, *, allow_pickle: bool = False, at: str = "", pack: bool = False) -> Tree:
        """Take the value apart without a copy, except for what is packed (specs.py). Raises UnsupportedTypeError, whose
        text begins with the path; ``at`` is the path of the value itself."""
        spec, leaves = flatten(value, allow_pickle=allow_pickle, at=at, pack=pack)
        if extra is None:
            return cls(spec, None, leaves)
        beside, more = flatten(extra, allow_pickle=allow_pickle)
        return cls(spec, beside, leaves + more)

    def expanded(self) -> Tree:
        """Return the same without packed containers."""
        leaves = self.leaves

        def unpack(index: int) -> tuple[Spec, list[Any]]:
            return flatten(_core.plain_unpack(leaves[index], 0, memoryview(leaves[index]).nbytes))

        spec, sources = expanded(self.spec, unpack)
        return Tree(spec, None, [source.leaf if isinstance(source, New) else leaves[source] for source in sources])


class _Content(NamedTuple):
    """The contents of a slot: a version with this layout."""

    layout: Layout
    version: int


class _Known(NamedTuple):
    """This process's knowledge of the newest version."""

    version: int
    layout: Layout | None  # None: there is no version yet, or not as a value
    schema: bytes | None  # None: there is no version yet
    nbytes: int
    schema_id: int
    changed_at: NDArray[np.uint64]  # by leaf of `layout`: the version that changed it last


class Planned(NamedTuple):
    """What is needed to publish a version with the structure of the newest one in one call."""

    plan: _core.TreePlan
    layout: Layout
    schema_id: int


class Versions:
    """The writing side of an attachment. The caller ensures that only one thread writes at a time.

    An error or Ctrl-C can end a method between any two steps. So knowledge about a version is prepared before the
    version is published, and adopted once the channel has it; knowledge about a slot is forgotten before the slot is
    written.

    Attributes:
        attachment: the publisher's attachment.
        name: looks after the channel's name, if it has one.
        fixed: whether every version must have the structure of the first.
        packs: whether large plain containers are packed: unless the channel is fixed, or parts of one were changed by
            their paths, which costs less if they have their own places.
        durable: whether each version is written to the disk before it becomes the newest.
        planned: for a version with the structure of the newest one; None if it must be made step by step.
    """

    def __init__(self, attachment: _core.Attachment, label: str, *, durable: bool, fixed: bool = False) -> None:
        self.attachment = attachment
        self.fixed = fixed
        self.packs: bool = not fixed
        self.name: NameKeeper | None = None
        self.planned: Planned | None = None
        self._newest_is_lost = False
        self._label = label
        self.durable = durable
        self._contents: dict[int, _Content] = {}
        self._known_or_past = self._coming = _Known(0, None, None, 0, 0, np.zeros(0, np.uint64))
        # durable: the slot table if it is unchanged since control was last flushed, and whether `latest` was, too
        self._table: list[tuple[int, ...]] | None = None
        self._settled = attachment.version == 0

    @property
    def layout(self) -> Layout | None:
        """The layout of the newest version; None before the first, and if it did not come as a value."""
        return self._known().layout

    @property
    def is_table(self) -> bool:
        """Whether the newest version is a FrozenDict that this process published."""
        layout = self.layout
        return layout is not None and layout.extra is None and is_table(layout.spec)

    def _known(self) -> _Known:
        """Return the knowledge of the newest version, which an interrupted publish() may not have adopted yet."""
        version = self.attachment.version
        if self._coming.version <= version:
            self._known_or_past = self._coming
        known = self._known_or_past
        if known.version != version:  # a trainer's workers publish too, and this process does not know their versions
            everything = np.full(len(known.changed_at), version, np.uint64)
            known = self._known_or_past = self._coming = known._replace(version=version, changed_at=everything)
        return known

    # -- whole versions

    def publish(self, tree: Tree, timeout_s: float) -> int:
        """Publish the next version, with all of it copied. Returns its number."""
        layout = self.layout
        repeats = layout is not None and layout.spec == tree.spec and layout.extra == tree.extra
        if layout is None or not repeats:
            if layout is not None and self.fixed:
                check_structure(self._label, layout.spec, tree.spec)
            layout = Layout(tree.spec, tree.extra)
        slot, draft = self.begin(layout.nbytes, timeout_s)
        for index, leaf in enumerate(tree.leaves):
            layout.write_leaf(draft, index, leaf)
        layout.write_schema(draft)
        version = self.finish(layout, slot, None)
        if repeats:
            self._plan()
        return version

    def publish_changes(self, tree: Tree, base: tuple[int, int], timeout_s: float, *, most: int) -> int:
        """Publish the next version, as changes of an older one that a reader of this process holds. Returns its number.

        Args:
            tree: the changes (frozen_dict.py).
            base: the version that they change, which is no change itself, and its slot.
            timeout_s: how long to wait for a slot, in seconds.
            most: the size to which changes grow, as a rule.
        """
        layout = Layout(tree.spec)
        room = _room(layout.nbytes, most)
        slot, draft = self.begin(room, timeout_s)
        for index, leaf in enumerate(tree.leaves):
            layout.write_leaf(draft, index, leaf)
        layout.write_schema(draft)
        return self.finish(layout, slot, None, base=base)

    def claim_spare(self, most: int) -> tuple[int, int]:
        """Claim the free slots that are larger than this, to give their space back; return them as bits, and how many
        bytes they have."""
        self._settle()  # what the newest version on the disk needs is kept
        claimed, nbytes = self.attachment.claim_spare(most)
        if claimed:
            self._table = None
        return claimed, nbytes

    # -- versions with the structure of the newest one, in one call. The core leaves a slot without a version until it
    # is complete, and _known() notices versions that it did not make, so an interrupt may come at any step

    def _plan(self) -> Planned | None:
        """Prepare for more versions with the structure of the newest one."""
        known = self._known()
        layout = known.layout
        if layout is None or self.durable or self._newest_is_lost:
            return None
        if layout.plan is None:
            layout.plan = tree_plan_of(layout.schema, layout.payload, layout.nbytes) or False
        if layout.plan is not False:
            self.planned = Planned(layout.plan, layout, known.schema_id)
        return self.planned

    def publish_planned(self, value: Any) -> int:
        """Publish the next version as publish() does, and return its number; 0, with nothing published, if it must be
        made step by step."""
        planned = self.planned
        if planned is None:
            return 0
        plan, layout, schema_id = planned
        try:
            latest = self.attachment.publish_tree(plan, value, schema_id)
        except _core.StatusError as error:
            self._lose_newest(error)
            return 0
        return self._keep_planned(layout, latest)

    def begin_planned(self, copy: bool) -> tuple[Planned, _core.Draft] | None:
        """Return a slot with the bytes of the newest version, to be changed, in which arrays have any bytes if they are
        not to be copied; None if that must be done step by step."""
        planned = self.planned or self._plan()
        if planned is None or not planned.plan.edits:
            return None
        try:
            draft = self.attachment.begin_tree(planned.plan, copy)
        except _core.StatusError as error:
            self._lose_newest(error)
            return None
        return None if draft is None else (planned, draft)

    def finish_planned(self, planned: Planned, draft: _core.Draft) -> int:
        """Publish that slot and return the version's number."""
        return self._keep_planned(planned.layout, self.attachment.end_tree(planned.plan, draft, planned.schema_id))

    def _keep_planned(self, layout: Layout, latest: int) -> int:
        if not latest:
            self.planned = None
            return 0
        version: int = latest >> 6
        self._contents[latest & 63] = _Content(layout, version)
        return version

    # -- versions in which some leaves changed

    def patch(self, trees: Mapping[str, Tree], timeout_s: float) -> int:
        """Publish the next version, in which the parts at these paths have other values."""
        layout = self.known_layout()
        try:
            places = {path: find(layout.spec, path) for path in trees}
        except InsidePacked:
            spec, sources = self._expanded()
            places = {path: find(spec, path) for path in trees}
            _check_apart(list(places.values()))
            trees = {path: tree.expanded() for path, tree in trees.items()}
            version = self._restructure(spec, sources, places, trees, timeout_s)
            self.packs = False  # so that only the first change of a part costs this
            return version
        _check_apart(list(places.values()))
        if any(places[path].spec != tree.spec for path, tree in trees.items()):
            for path, tree in trees.items() if self.fixed else ():
                at = tuple(filter(None, path.strip("/").split("/")))
                check_structure(self._label, places[path].spec, tree.spec, at)
            return self._restructure(layout.spec, list(range(leaf_count(layout.spec))), places, trees, timeout_s)
        leaves = {
            index: leaf
            for path, tree in trees.items()
            for index, leaf in zip(places[path].leaves, tree.leaves, strict=True)
        }
        return self.rewrite(leaves, timeout_s)

    def rewrite(self, leaves: Mapping[int, Any], timeout_s: float) -> int:
        """Publish the next version, in which the leaves with these indices have other values of the same form."""
        layout = self.known_layout()
        slot, draft = self.begin_from_newest(timeout_s, without=leaves)
        for index, leaf in leaves.items():
            layout.write_leaf(draft, index, leaf)
        return self.finish(layout, slot, leaves)

    def _expanded(self) -> tuple[Spec, list[int | New]]:
        """Return the structure of the newest version without packed containers, and where its leaves come from."""
        layout, newest = self.known_layout(), self._newest_bytes()

        def unpack(index: int) -> tuple[Spec, list[Any]]:
            start, end = layout.leaf_range(index)
            return flatten(_core.plain_unpack(newest, start, end - start))

        return expanded(layout.spec, unpack)

    def _restructure(
        self,
        spec: Spec,
        sources: list[int | New],
        places: dict[str, Place],
        trees: Mapping[str, Tree],
        timeout_s: float,
    ) -> int:
        """Publish a patch that moves leaves, so that all of them are copied to a new layout.

        Args:
            spec: the structure before the patch.
            sources: for each of its leaves, the index of the leaf in the newest version, or a new leaf.
            places: the places in ``spec`` that change.
            trees: the new values.
            timeout_s: how long to wait for a slot, in seconds.
        """
        # from the back, so that earlier indices stay valid; an empty container begins where its neighbour does
        for path in sorted(trees, key=lambda path: (places[path].first, places[path].trail), reverse=True):
            place = places[path]
            spec = replaced(spec, place.trail, trees[path].spec)
            sources[place.first : place.first + place.size] = map(New, trees[path].leaves)
        layout, slot, _ = self._moved(spec, sources, timeout_s)
        return self.finish(layout, slot, None)

    def _moved(self, spec: Spec, sources: list[int | New], timeout_s: float) -> tuple[Layout, int, _core.Draft]:
        """Return a slot with these leaves in a layout of their own."""
        old = self.known_layout()
        if old.extra is not None:
            sources = [*sources, *range(leaf_count(old.spec), len(old.leaves))]
        layout = Layout(spec, old.extra)
        slot, draft = self.begin(layout.nbytes, timeout_s)
        newest = self._newest_bytes()
        for index, source in enumerate(sources):
            if isinstance(source, New):
                layout.write_leaf(draft, index, source.leaf)
            else:
                start, end = old.leaf_range(source)
                _core.copy(draft, layout.leaf_range(index)[0], newest[start:end])
        layout.write_schema(draft)
        return layout, slot, draft

    def begin_expanded(self, timeout_s: float) -> tuple[Layout, int, _core.Draft]:
        """Return a slot with the newest version, without packed containers, in a layout of its own."""
        return self._moved(*self._expanded(), timeout_s)

    def indices_of(self, paths: Iterable[str], spec: Spec | None = None) -> frozenset[int]:
        """Return the indices of the leaves at these paths, in the newest version or in a tree of this spec. Raises
        InsidePacked."""
        if isinstance(paths, str):
            raise TypeError(f"leaves: expected a list of paths, found the str {paths!r}; write [{paths!r}]")
        spec = spec or self.known_layout().spec
        return frozenset(index for path in paths for index in find(spec, path).leaves)

    def array_indices(self, among: frozenset[int] | None) -> list[int]:
        """Return which of these leaves (of all leaves, for None) are arrays."""
        return [index for index in self.known_layout().arrays if among is None or index in among]

    def begin_from_newest(self, timeout_s: float, *, without: Iterable[int]) -> tuple[int, _core.Draft]:
        """Return a slot with the newest version, except for the leaves ``without``, which may have any bytes."""
        layout, changed_at = self.known_layout(), self._known().changed_at
        slot, draft, content = self._begin(layout.nbytes, timeout_s)
        newest = self._newest_bytes()
        same_bytes = content is not None and _VERSION.unpack_from(draft)[0] == content.version
        if content is None or content.layout is not layout or not same_bytes:
            stale = np.ones(len(layout.leaves), bool)
            layout.write_schema(draft)
        else:
            stale = changed_at > content.version
        stale[list(without)] = False
        for start, end in layout.ranges(np.flatnonzero(stale)):
            _core.copy(draft, start, newest[start:end])
        return slot, draft

    def _newest_bytes(self) -> memoryview:
        if self._newest_is_lost:
            raise FormatError(
                f"channel {self._label!r}: its newest version is lost, because its data file was shortened; "
                "publish a whole value with update()"
            )
        return memoryview(self.newest_draft())

    def known_layout(self) -> Layout:
        """The layout of the newest version."""
        layout = self.layout
        if layout is not None:
            return layout
        if self.attachment.version == 0:
            raise ClosedError(f"channel {self._label!r} has no version yet")
        raise ValueError(
            f"channel {self._label!r}: version {self.attachment.version} did not come from this publisher as a value, "
            "which therefore cannot change parts of it; publish a whole value with update() first"
        )

    # -- the steps

    def begin(self, nbytes: int, timeout_s: float) -> tuple[int, _core.Draft]:
        """Return a slot with at least this room that no reader can see, and its bytes, writable."""
        slot, draft, _ = self._begin(nbytes, timeout_s)
        return slot, draft

    def _begin(self, nbytes: int, timeout_s: float) -> tuple[int, _core.Draft, _Content | None]:
        """Return such a slot, and its contents, which are forgotten here before anything is written."""
        self._settle()
        table, self._table = self._table, None  # an error below must not hide that it was changed in between
        slot = self._pick(nbytes, timeout_s)
        if self.durable and table == self._read_table():
            self._table = table
        content = self._contents.pop(slot, None)
        return slot, self._draft(slot), content

    def newest_draft(self) -> _core.Draft:
        """Return the slot of the newest version."""
        return self._draft(self.attachment.latest_slot)

    def _draft(self, slot: int) -> _core.Draft:
        try:
            return self.attachment.draft(slot)
        except _core.StatusError as error:
            raise meaning(error, self._label) from None
        except OSError as error:
            raise labelled(error, self._label) from None

    def finish(
        self, layout: Layout, slot: int, changed: Iterable[int] | None, *, base: tuple[int, int] = (0, 0)
    ) -> int:
        """Make a complete slot the latest. ``changed`` are the leaves that differ from the previous version; None for
        all. ``base``: the version that this one changes, and its slot; (0, 0) for none."""
        known = self._known()
        version = known.version + 1
        if version >= _VERSIONS_END:
            raise FormatError(
                f"channel {self._label!r}: its newest version has the number {self.attachment.version}, after which "
                "none comes; the control file is damaged: remove its files"
            )
        if changed is None or known.layout is not layout:
            changed_at = np.full(len(layout.leaves), version, np.uint64)
        else:
            changed_at = known.changed_at.copy()
            changed_at[list(changed)] = version
        schema_id = known.schema_id if known.schema == layout.schema else version
        coming = _Known(version, layout, layout.schema, layout.nbytes, schema_id, changed_at)
        return self._make_latest(slot, coming, base[0] << 6 | base[1])

    def _make_latest(self, slot: int, coming: _Known, base: int = 0) -> int:
        attachment, version = self.attachment, coming.version
        attachment.finish(slot, version, coming.nbytes, len(coming.schema or b""), coming.schema_id, base)
        self._sync_data()
        self._settled = False
        self._coming = coming
        try:
            attachment.publish(slot, version)
        except BaseException:  # it may have been published all the same
            self._known()
            self._coming = self._known_or_past
            raise
        self._newest_is_lost = False
        if self.planned is not None and self.planned.layout is not coming.layout:
            self.planned = None
        if coming.layout is not None:
            self._contents[slot] = _Content(coming.layout, version)
        self._sync_latest()
        return version

    # -- versions that come as bytes

    def begin_received(self, nbytes: int, version: int, timeout_s: float) -> tuple[int, Room]:
        """Return a slot, and the room in it for a whole version that comes as bytes and gets this number."""
        self._check_number(version)
        if nbytes < _core.HEADER_NBYTES:
            raise FormatError(
                f"channel {self._label!r}: version {version} cannot have {nbytes} bytes: its header alone has "
                f"{_core.HEADER_NBYTES}"
            )
        slot, draft = self.begin(nbytes, timeout_s)
        return slot, Room(draft, nbytes)

    def finish_received(self, slot: int, nbytes: int, version: int) -> int:
        """Make the version in this slot the latest, after checking it."""
        known, layout = self._known(), self.layout
        memory = memoryview(self._draft(slot))[:nbytes]
        try:
            schema = received_schema(memory, known.schema if nbytes == known.nbytes else None)
        except FormatError as error:
            raise FormatError(f"channel {self._label!r}, version {version}: {error}") from error
        if known.schema != schema:
            layout = None
        self._check_number(version)
        changed_at = np.full(0 if layout is None else len(layout.leaves), version, np.uint64)
        schema_id = known.schema_id if known.schema == schema else version
        return self._make_latest(slot, _Known(version, layout, schema, nbytes, schema_id, changed_at))

    def learn(self, tree: Tree) -> None:
        """Learn the layout of the newest version, which came as bytes, from its value. Raises ValueError if a version
        with this value would be laid out in another way."""
        known = self._known()
        layout = Layout(tree.spec, tree.extra)
        if layout.schema != known.schema:
            raise ValueError(f"channel {self._label!r}: version {known.version} has another structure than this value")
        changed_at = np.full(len(layout.leaves), known.version, np.uint64)
        self._known_or_past = self._coming = known._replace(layout=layout, changed_at=changed_at)

    def newest(self) -> memoryview:
        """Return the bytes of the newest version."""
        return self._newest_bytes()[: self._known().nbytes]

    def _check_number(self, version: int) -> None:
        newest = self.attachment.version
        if not newest < version < _VERSIONS_END:
            raise ValueError(
                f"version: expected a number greater than {newest}, the newest version of channel {self._label!r}, "
                f"and less than 2**58; found {version}"
            )

    # -- durable: the order in which data reaches the disk. Without a flush, it may do so at any time and in any order

    def _settle(self) -> None:
        """Before any slot is written, ensure that the newest version is on the disk and is the newest there, too. It
        may not be if the previous publisher was not durable, or if one was killed or interrupted between its last two
        steps. Then the version that is the newest on the disk lies in a slot that seems to be free."""
        if not self.durable or self._settled:
            return
        attachment = self.attachment
        storage.sync_names(attachment.control_fd)
        os.fdatasync(attachment.data_fd)
        attachment.publish(attachment.latest_slot, attachment.version)  # after a failed sync the page counts as clean
        self._sync_latest()

    def _read_table(self) -> list[tuple[int, ...]]:
        return [extent[:3] for extent in self.attachment.slots()]

    def _sync_data(self) -> None:
        """Flush what the latest word is about to refer to, the bytes and the slot table, before that word."""
        if not self.durable:
            return
        os.fdatasync(self.attachment.data_fd)
        if self._table is None:
            os.fdatasync(self.attachment.control_fd)

    def _sync_latest(self) -> None:
        """Flush, so that the newest version is on the disk when this returns."""
        if not self.durable:
            return
        table = self._read_table()
        os.fdatasync(self.attachment.control_fd)
        self._table, self._settled = table, True

    def _pick(self, nbytes: int, timeout_s: float) -> int:
        attachment = self.attachment
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                return attachment.pick(nbytes)
            except _core.StatusError as error:
                if error.args[0] == "no_space":
                    raise self._no_space(nbytes, error.args[1]) from None
                if error.args[0] == "truncated":
                    self._lose_newest(error)
                    continue
                if error.args[0] == "unlinked" and self.name is not None:
                    self.name.restore()
                    continue
                if error.args[0] != "no_slot":
                    raise meaning(error, self._label) from None
            except OSError as error:
                if error.errno == errno.ENOMEM:
                    raise unmappable(nbytes, self._next_version(), error.errno) from None
                raise labelled(error, self._label) from None
            if time.monotonic() >= deadline:
                raise self.no_slot(timeout_s)
            time.sleep(0.0005)

    def _lose_newest(self, error: _core.StatusError) -> None:
        """Record that the data file was shortened. A whole version then replaces the lost one, in new space. Raises any
        other error unchanged."""
        if error.args[0] != "truncated":
            raise error
        self._newest_is_lost = True
        self.planned = None
        self._contents.clear()

    def _no_space(self, nbytes: int, number: int) -> CapacityError:
        return no_space(self.attachment.data_fd, nbytes, self._next_version(), number=number)

    def _next_version(self) -> str:
        return f"channel {self._label!r}: version {self.attachment.version + 1}"

    def no_slot(self, timeout_s: float) -> CapacityError:
        """Return the error for a channel whose slots are all held; it names the holders."""
        attachment = self.attachment
        try:
            readers = readers_of(attachment)
        except OSError as error:  # it cannot be found out which readers are alive
            raise labelled(error, self._label) from None
        holders = "; ".join(
            f"pid {reader.pid} holds version{'s' if len(reader.versions) > 1 else ''} "
            + ", ".join(map(str, reader.versions))
            for reader in readers
            if reader.versions
        )
        return CapacityError(
            f"channel {self._label!r}: no free slot for version {attachment.version + 1} within {timeout_s} s: all "
            f"{attachment.max_slots} are held ({holders or 'by readers that just went'}); "
            "let old snapshots go, or publish with a larger max_slots"
        )


def _room(nbytes: int, most: int) -> int:
    """Return how much space to give to changes of this size. They grow, and so the same slots are used many times."""
    step = 1 << max(12, nbytes.bit_length() - 2)
    room = -(-nbytes // step) * step
    return most if nbytes <= most < room else room


def _check_apart(places: list[Place]) -> None:
    for place in places:
        for other in places:
            if other is not place and other.trail[: len(place.trail)] == place.trail:
                raise ValueError(f"patch: {other.path!r} lies in {place.path!r}, which is replaced as a whole")


def readers_of(attachment: _core.Attachment) -> list[ReaderInfo]:
    """Return the living readers of a channel."""
    published = {slot: (version, at_ns) for slot, _, _, version, at_ns in attachment.slots()}
    now_ns = time.time_ns()
    infos = []
    for _, pid, _, held in attachment.rows():
        versions = sorted(published[slot] for slot in published if held >> slot & 1)
        age_s = max(0.0, (now_ns - min(at for _, at in versions)) / 1e9) if versions else 0.0
        infos.append(ReaderInfo(pid, tuple(version for version, _ in versions), age_s))
    return infos


def forked_error(label: str) -> ClosedError:
    """Return the error for a publisher in a process that was forked from its own."""
    return ClosedError(
        f"channel {label!r}: this process was forked from its publisher, and only the parent may publish; "
        "here use publisher.subscriber()"
    )
