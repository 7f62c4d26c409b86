"""Write to a channel: update, patch and edit. publishing.py opens it; versions.py makes the versions.

If a process is killed before the last step of making a version, the channel stays at the previous version.
"""

from __future__ import annotations

import contextlib
import os
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, Literal, Never, NoReturn, Self

from untorn import _core, html
from untorn.errors import BusyError, ClosedError
from untorn.first_guesses import only_known_arguments, unknown_arguments, unknown_attribute, words
from untorn.share import notes, storage
from untorn.share.attached import Attached, attached_to, drop_dead_attachments
from untorn.share.edit import Edit
from untorn.share.frozen_dict import FrozenDict
from untorn.share.journal import log_channel
from untorn.share.paths import InsidePacked
from untorn.share.places import Address, Files
from untorn.share.storage_errors import labelled, meaning
from untorn.share.subscriber import Subscriber
from untorn.share.table_edit import TableEdit
from untorn.share.table_writer import TableWriter
from untorn.share.versions import (
    FREE_SLOT_TIMEOUT_S,
    Planned,
    ReaderInfo,
    Tree,
    Versions,
    forked_error,
    readers_of,
)
from untorn.typevars import T

__all__ = ["Publisher", "ReaderInfo"]

_WRITE_GUESSES = words(("timeout wait block", "write timeout_s=, in seconds"))
_ATTRIBUTE_GUESSES = words(
    ("publish set put write send push store save add emit broadcast", "write update(value)"),
    (
        "value data get read load latest snapshot",
        "write subscriber().snapshot().value, or edit() to change it in place",
    ),
    ("subscribe reader receiver client attach connect", "write subscriber()"),
    ("wait follow cached", "a subscriber does that: write subscriber().{}()"),
    ("delete remove destroy rm", "write unlink()"),
    ("stop shutdown disconnect end exit", "write close()"),
    ("subscribers clients attached", "write readers()"),
    ("size bytes", "write nbytes"),
    ("number count", "write version"),
)
_NO_ITEMS = "to change a part of the value, write patch({key: value}) or edit(); to read it, subscriber().snapshot()"


class Publisher(Generic[T]):
    """The publisher of a channel: only its process may change the channel. Made by untorn.publish().

    Threads may share it; one writes at a time. A forked child may not publish. Used as a context manager, it closes on
    exit; a named channel's files stay until unlink().
    """

    def __init__(
        self, versions: Versions, files: Files | None, *, allow_pickle: bool = False, keep: bool = True
    ) -> None:
        self._files = files
        self._keep = keep
        self._label = files.label if files else "anonymous"
        self._tables = TableWriter(self._label, allow_pickle=allow_pickle, durable=versions.durable)
        self._when_dropped = weakref.finalize(self, _dropped, versions, self._tables, keep=keep)
        self._when_dropped.atexit = not keep
        self._id = versions.attachment.id
        self._allow_pickle = allow_pickle
        self._open_versions: Versions | None = versions  # None: closed
        # Held while a version is made, by a thread that may call this again: in the block of edit(), in a signal
        # handler or in a finalizer. It then finds the flag, which is set and cleared under the lock.
        self._lock = threading.RLock()
        self._is_writing = False
        self._reader: Attached | None = None  # of this channel, for edit() of a FrozenDict

    # -- properties

    @property
    def name(self) -> str | None:
        """The channel's name, its path if it has a directory of its own, or None if it is anonymous."""
        return self._files.label if self._files else None

    @property
    def version(self) -> int:
        """The newest published version."""
        return self._open().version

    @property
    def nbytes(self) -> int:
        """The bytes of shared memory that the channel's versions use now."""
        return sum(capacity for _, _, capacity, _, _ in self._open().slots())

    def readers(self) -> list[ReaderInfo]:
        """Return the living processes that read this channel, and the versions that each holds."""
        try:
            return readers_of(self._open())
        except OSError as error:
            raise labelled(error, self._label) from None

    def subscriber(self, *, allow_pickle: bool = False) -> Subscriber[T]:
        """Return a subscriber of this channel, to pass to other processes. It uses no resources until it is used.

        ``allow_pickle`` as in untorn.subscribe(): without it, pickled values are not unpickled.
        """
        attachment = self._open()
        places: tuple[tuple[str, str], ...] = ()
        if self._files:
            places = ((os.path.abspath(self._files.control), os.path.abspath(self._files.data)),)
        return Subscriber(Address(self._id, places, self._label).here(attachment), allow_pickle=allow_pickle)

    # -- writing

    @only_known_arguments
    def update(self, value: T, *more: Never, timeout_s: float = FREE_SLOT_TIMEOUT_S, **unknown: Never) -> int:
        """Publish ``value`` (copied) as the next version and return its number. Its structure and size may change.

        Does not wait for readers, unless they hold all ``max_slots`` slots: then it waits up to ``timeout_s`` seconds.

        Raises:
            UnsupportedTypeError: the value cannot be shared; nothing was published.
            ValueError: the channel is fixed, and the value has another structure; nothing was published.
            CapacityError: there is no memory for it, or every slot is held, and the message says by which processes.
                Nothing was published.
            ClosedError: this publisher is closed, or was inherited by fork.
            BrokenChannelError: the channel's files were removed, and another channel has its name now. Nothing was
                published. (If no other channel has the name, it is restored, with a RuntimeWarning.)
        """
        if more or unknown:
            instead = "update(value) replaces the whole value; for a part of it write patch({path: value})"
            guesses = _WRITE_GUESSES if unknown.keys() <= _WRITE_GUESSES.keys() else dict.fromkeys(unknown, instead)
            raise unknown_arguments("update", (value, *more), unknown, guesses=guesses, instead=instead)
        return self._publish_planned(value) or self._publish(self._tree(value), timeout_s)

    def _tree(self, value: Any, at: str = "") -> Tree:
        """Take a value apart."""
        versions = self._open_versions
        packs = versions is not None and versions.packs
        return Tree.of(value, allow_pickle=self._allow_pickle, at=at, pack=packs)

    def _publish_planned(self, value: T) -> int:
        """Publish a value that has the structure of the newest version in one call, and return the version's number.
        Returns 0, with nothing published, in any other case: _publish() then knows what to do."""
        versions = self._open_versions
        if versions is None or versions.planned is None or versions.attachment.forked:
            return 0
        with self._lock:
            if self._is_writing or (versions.name is not None and versions.name.looks()):
                return 0
            try:
                self._is_writing = True
                return versions.publish_planned(value)
            finally:
                self._is_writing = False

    def _publish(self, tree: Tree, timeout_s: float = FREE_SLOT_TIMEOUT_S) -> int:
        return self._write("update", lambda versions: versions.publish(tree, timeout_s))

    @only_known_arguments
    def patch(
        self, changes: Mapping[str, Any], *more: Never, timeout_s: float = FREE_SLOT_TIMEOUT_S, **unknown: Never
    ) -> int:
        """Publish the next version, in which only these parts have new values, and return its number.

        The cost depends on what changed, not on the whole tree: these parts are copied, and the parts that changed
        since the reused slot had its last version. If the type, dtype, shape or structure of a part changes, the other
        parts move and everything is copied.

        Args:
            changes: new values by path. A path consists of keys, indices and field names from the root: ``"head/w"``,
                ``"layers/0"``; it may lead to a whole subtree. ``""`` is the value itself.
            timeout_s: as in update().

        Raises:
            KeyError: there is nothing at a path; the message names similar paths.
            ValueError: one of the paths leads into another; or the channel is fixed, and a part has another structure.
            UnsupportedTypeError, CapacityError, ClosedError: as update(). Nothing was published.

        Example:
            >>> import numpy as np, untorn
            >>> weights = untorn.publish({"head": {"w": np.zeros(2)}, "body": np.zeros(1000)})
            >>> weights.patch({"head/w": np.ones(2)})
            2
            >>> weights.subscriber().snapshot().value["head"]["w"]
            array([1., 1.])
            >>> weights.close()
        """
        if more or unknown:
            instead = "the changes are one dict of path to value, as in patch({'w': value})"
            guesses = _WRITE_GUESSES if unknown.keys() <= _WRITE_GUESSES.keys() else dict.fromkeys(unknown, instead)
            raise unknown_arguments("patch", (changes, *more), unknown, guesses=guesses, instead=instead)
        if not isinstance(changes, Mapping):
            raise TypeError(f"changes: expected a dict of path to value, found {type(changes).__name__}")
        if self._versions.is_table and "" not in changes:
            with self.edit(timeout_s=timeout_s) as table:
                assert isinstance(table, TableEdit)
                table.update(changes)
                return self.version + 1
        trees = {path: self._tree(value, str(path).strip("/")) for path, value in changes.items()}
        return self._write("patch", lambda versions: versions.patch(trees, timeout_s))

    @only_known_arguments
    def edit(
        self,
        *more: Never,
        copy: bool = True,
        leaves: Iterable[str] | None = None,
        timeout_s: float = FREE_SLOT_TIMEOUT_S,
        **unknown: Never,
    ) -> AbstractContextManager[T, Literal[False]]:
        """Write the next version in place: yield a writable tree, and publish it unless the block raises an error.

        Arrays may be changed in place, which costs no copy on exit, or replaced; the structure may change as well.
        After the block the arrays are read-only.

        If the value is a FrozenDict, the block gets a mutable mapping: set and delete keys. The cost depends on what
        changed since the version was last written as a whole (docs/guide/dictionary.md).

        Args:
            copy: begin with the newest version, which costs a copy of its bytes. With False the NumPy arrays contain
                arbitrary bytes and every element must be written; everything else is as in the newest version.
            leaves: paths as in patch(). Only these may be changed, and the cost depends on these, not on the whole
                tree. The rest of the tree can be read; changing it raises ValueError, at once or on exit.
            timeout_s: as in update().

        Example:
            >>> import numpy as np, untorn
            >>> weights = untorn.publish({"w": np.zeros(2), "b": np.zeros(2)})
            >>> with weights.edit() as params:
            ...     params["w"] += 1
            >>> with weights.edit(leaves=["b"]) as params:
            ...     params["b"] += params["w"]
            >>> weights.version, weights.subscriber().snapshot().value["b"]
            (3, array([1., 1.]))
            >>> weights.close()
        """
        if more or unknown:
            instead = "to change only some parts write edit(leaves=[path, ...])"
            raise unknown_arguments("edit", more, unknown, guesses=_WRITE_GUESSES, instead=instead)
        return _core.Block(self._edit(copy, leaves, timeout_s))

    def _edit(self, copy: bool, leaves: Iterable[str] | None, timeout_s: float) -> Iterator[T]:
        """Run edit() as a generator, which yields the tree."""
        self._check_open()
        try:
            with self._lock:
                versions = self._check_turn("edit")
                try:
                    self._is_writing = True
                    if versions.name is not None:
                        versions.name.look()
                    if versions.planned is None and versions.is_table:
                        yield from self._edit_table(versions, leaves, timeout_s)
                        return
                    begun = versions.begin_planned(copy) if leaves is None else None
                    if begun is not None:
                        yield from self._edit_planned(versions, *begun, timeout_s)
                        return
                    layout, moved = versions.known_layout(), None
                    named = leaves if leaves is None or isinstance(leaves, str) else list(leaves)
                    try:
                        only = None if named is None else versions.indices_of(named)
                        unwritten = [] if copy else versions.array_indices(only)
                        slot, draft = versions.begin_from_newest(timeout_s, without=unwritten)
                    except InsidePacked:
                        layout, slot, draft = versions.begin_expanded(timeout_s)
                        only = versions.indices_of(named or (), layout.spec)
                        moved = bytearray(memoryview(draft)[: layout.nbytes])
                    decoder = layout.decoder(allow_pickle=self._allow_pickle)
                    edit = Edit(
                        self._open().seal,
                        versions.newest_draft if moved is None else partial(bytearray, moved),
                        layout,
                        draft,
                        decoder.value(draft),
                        only=only,
                        allow_pickle=self._allow_pickle,
                        pack=versions.packs if only is None else layout.has_packed,
                    )
                    try:
                        yield edit.tree
                        restructured = edit.collect()
                    finally:
                        edit.end()
                    if restructured is None:
                        self._versions.finish(layout, slot, only)
                        versions.packs = versions.packs and moved is None
                    else:
                        self._versions.publish(Tree(restructured.spec, None, restructured.leaves), timeout_s)
                except ClosedError:
                    self._check_open()
                    raise
                except _core.StatusError as error:
                    self._check_open()
                    raise meaning(error, self._label) from None
                finally:
                    self._is_writing = False
        finally:
            self._log_news()

    def _edit_table(self, versions: Versions, leaves: Iterable[str] | None, timeout_s: float) -> Iterator[Any]:
        """Run the rest of _edit() for a FrozenDict. A pin keeps the base until the next version is published."""
        if leaves is not None:
            raise ValueError(
                f"channel {self._label!r}: edit(leaves=...): its value is a FrozenDict, whose keys are no paths; write "
                "edit(), which costs what is changed"
            )
        if self._reader is None:
            self._reader = attached_to(self.subscriber().address)
        pinned = self._reader.pin()
        table = self._reader.value(pinned, self._allow_pickle)
        edit = TableEdit(table)
        try:
            yield edit
            changes, replacement = edit.changes(), edit.replacement()
        finally:
            edit.end()
        if replacement is not None:
            self._tables.end()
            whole = FrozenDict(replacement, allow_pickle=self._allow_pickle)
            versions.publish(Tree.of(whole, allow_pickle=self._allow_pickle), timeout_s)
            return
        self._tables.write(versions, self._reader, pinned, table, changes, timeout_s)

    def _edit_planned(self, versions: Versions, planned: Planned, draft: _core.Draft, timeout_s: float) -> Iterator[T]:
        """Run the rest of _edit() for a tree whose arrays were all changed in place, or replaced by others."""
        plan = planned.plan
        tree, originals = plan.open(draft)
        restructured = None
        try:
            yield tree
            if not plan.collect(draft, tree, originals):
                seal, layout = versions.attachment.seal, planned.layout
                edit = Edit(
                    seal,
                    None,
                    layout,
                    draft,
                    tree,
                    originals,
                    only=None,
                    allow_pickle=self._allow_pickle,
                    pack=versions.packs,
                )
                restructured = edit.collect()
        finally:
            if plan.release(originals):
                versions.attachment.seal(draft)
        if restructured is not None:
            self._versions.publish(Tree(restructured.spec, None, restructured.leaves), timeout_s)
        else:
            versions.finish_planned(planned, draft)

    def _receive(self, nbytes: int, version: int, timeout_s: float) -> Iterator[memoryview]:
        """Run lowlevel.receive_raw() as a generator, which yields the room for the version."""
        self._check_open()
        try:
            with self._lock:
                self._check_turn("receive_raw")
                try:
                    self._is_writing = True
                    self._look_after_name()
                    self._tables.end()
                    attachment = self._open()
                    slot, room = self._versions.begin_received(nbytes, version, timeout_s)
                    try:
                        yield room.memory
                    finally:
                        room.end(attachment)
                    self._versions.finish_received(slot, nbytes, version)
                except ClosedError:
                    self._check_open()
                    raise
                except _core.StatusError as error:
                    self._check_open()
                    raise meaning(error, self._label) from None
                finally:
                    self._is_writing = False
        finally:
            self._log_news()

    def _write(self, what: str, write: Callable[[Versions], int]) -> int:
        """Make one version. An interrupt (an exception from a signal handler) cannot come between taking the lock and
        setting the flag, or clearing it and releasing the lock; in a context manager written in Python it could."""
        self._check_open()  # first: in a forked child, a thread that does not exist there may hold the lock
        try:
            with self._lock:
                versions = self._check_turn(what)
                try:
                    self._is_writing = True
                    if versions.name is not None:
                        versions.name.look()
                    self._tables.end()
                    return write(versions)
                except ClosedError:
                    self._check_open()
                    raise
                except _core.StatusError as error:
                    self._check_open()
                    raise meaning(error, self._label) from None
                finally:
                    self._is_writing = False
        finally:
            self._log_news()

    def _log_news(self) -> None:
        """Log what happened while versions were made, without the lock: a handler of somebody else runs."""
        versions = self._open_versions
        if versions is not None:
            log_channel(versions.attachment, self._label)
        self._tables.log_news()

    def _check_turn(self, what: str) -> Versions:
        """Raise BusyError if this thread is writing already. A second thread waits for the lock instead."""
        versions = self._check_open()
        if self._is_writing:
            raise BusyError(
                f"channel {self._label!r}: {what}() inside edit(), or inside a call that a signal handler or a "
                "finalizer interrupts; end the block first: it publishes on exit"
            )
        return versions

    def _check_open(self) -> Versions:
        """Raise an error if a signal handler closed this in the middle of a version, or if this is a forked child."""
        versions = self._versions
        if versions.attachment.forked:
            raise forked_error(self._label)
        return versions

    def _look_after_name(self) -> None:
        """Notice, after some time, that the channel's files were removed, as writing does by itself. For a channel
        whose versions are written by others, such as a trainer's workers."""
        if self._versions.name is not None:
            self._versions.name.look()

    # -- closing

    @property
    def _versions(self) -> Versions:
        versions = self._open_versions  # read once, here as below: a signal handler may close this in between
        if versions is None:
            raise ClosedError(f"this publisher of channel {self._label!r} is closed")
        return versions

    @property
    def _attachment(self) -> _core.Attachment | None:
        versions = self._open_versions
        return None if versions is None else versions.attachment

    def _open(self) -> _core.Attachment:
        return self._versions.attachment

    def close(self) -> None:
        """End publishing. Readers keep their versions, and waiting readers learn that nothing newer will come. A named
        channel's files stay, for readers and for the next publisher, until unlink(). May be called twice.

        Waits for a thread that is writing a version."""
        versions = self._open_versions
        if versions is None:
            return
        forked = versions.attachment.forked
        # in a forked child, a thread that does not exist there may hold the lock
        with contextlib.nullcontext() if forked else self._lock:
            self._when_dropped.detach()
            if not forked:
                self._tables.end()
                if versions.name is not None and not self._keep:
                    versions.name.unlink()
                _end_living(versions.attachment)
            versions.attachment.retire()
            self._reader = None
            if versions.name is not None and not forked:
                versions.name.close()
            self._open_versions = None
        drop_dead_attachments()

    def unlink(self) -> None:
        """Remove the files of a named channel; attached readers keep it. Does nothing for an anonymous channel.

        May be called before or after close(), but after close() only if no other publisher has taken over the channel.
        """
        if self._files is None:
            return
        versions = self._open_versions
        if versions is None:
            taken = storage.take_over(self._files)
            if taken is None:
                return
            if taken.id == self._id:
                self._files.unlink()
            taken.retire()
            drop_dead_attachments()
            return
        if versions.attachment.forked and self._open_versions is not None:
            raise forked_error(self._label)
        if versions.name is not None:
            versions.name.unlink()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce__(self) -> Any:
        raise TypeError("a Publisher stays in its process; send publisher.subscriber() to others")

    if not TYPE_CHECKING:  # a type checker would take every name for one that is here

        def __getattr__(self, name: str) -> NoReturn:
            """Raise the error for an attribute that is not there."""
            raise unknown_attribute(self, name, _ATTRIBUTE_GUESSES)

        def __getitem__(self, key: object) -> NoReturn:
            """Raise the error for an item: a publisher has none."""
            raise TypeError(f"'Publisher' object has no items, such as {key!r}: {_NO_ITEMS}")

        def __setitem__(self, key: object, value: object) -> NoReturn:
            """Raise the error for an item: a publisher has none."""
            raise TypeError(f"'Publisher' object has no items, such as {key!r}: {_NO_ITEMS}")

    def _repr_html_(self) -> str:
        title = f"Publisher of {self._label!r}"
        if self._attachment is None:
            return html.facts(title, {"state": "closed"})
        readers = self.readers()
        told = html.facts(
            title, {"version": self.version, "size": html.size_text(self.nbytes), "readers": len(readers)}
        )
        if not readers:
            return told
        rows = [(each.pid, ", ".join(map(str, each.versions)) or "nothing") for each in readers[: html.MAX_ROWS]]
        return told + html.table("", ("reader", "holds versions"), rows, total=len(readers))

    def __repr__(self) -> str:
        attachment = self._attachment
        state = "closed" if attachment is None else f"version {attachment.version}"
        return f"<untorn.Publisher of {self._label!r}, {state}>"


def _end_living(attachment: _core.Attachment) -> None:
    with contextlib.suppress(OSError):  # the kernel does it at the latest when the process ends
        notes.end_living(attachment)


def _dropped(versions: Versions, tables: TableWriter, *, keep: bool) -> None:
    """End the channel of a Publisher that was garbage-collected without close(), or whose process exits."""
    attachment = versions.attachment
    if attachment.forked:
        return
    tables.end()
    with contextlib.suppress(OSError):  # then readers learn only that the publisher is gone
        if threading.main_thread().is_alive():  # otherwise the process exits
            notes.note_dropped(attachment)
        if versions.name is not None and not keep:
            versions.name.unlink()
