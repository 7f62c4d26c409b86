"""Writing: publish, update and edit.

A version is made in three steps: pick a slot that nobody can read, copy the leaves into it, make it the latest with
one store. A process killed anywhere before the last leaves the channel at the version before.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from untorn import _core
from untorn.errors import BusyError, CapacityError, ClosedError
from untorn.share import storage
from untorn.share.edit import Edit
from untorn.share.layout import Layout
from untorn.share.storage import Address, Files
from untorn.share.subscriber import Subscriber
from untorn.share.tree import Spec, flatten

__all__ = ["Publisher", "ReaderInfo", "publish"]

#: how long update() and edit() wait for a slot when readers hold all of them
FREE_SLOT_TIMEOUT_S = 5.0


@dataclass(frozen=True)
class ReaderInfo:
    """One reader of a channel, as its publisher sees it.

    Attributes:
        pid: its process, as it calls itself.
        versions: the versions that it holds now, oldest first.
        age_s: seconds since the oldest of them was published; 0.0 if it holds none.
    """

    pid: int
    versions: tuple[int, ...]
    age_s: float


def publish(
    value: Any,
    *,
    name: str | None = None,
    directory: str | os.PathLike[str] | None = None,
    slots: int = 4,
    max_slots: int = 64,
    max_readers: int = 256,
    durable: bool = False,
    allow_pickle: bool = False,
) -> Publisher:
    """Open a channel with ``value`` as its first version, or take over the channel of a dead publisher.

    Args:
        value: a dict, list, tuple, named tuple or dataclass tree of NumPy arrays, numbers, str, bytes and None. It is
            copied into shared memory.
        name: the channel's name for subscribe(); without one it is anonymous: handed to other processes as
            ``publisher.subscriber()``, and freed by the kernel with the last process that uses it.
        directory: where a named channel's files are; by default this user's own directory in /dev/shm.
        slots: how many versions keep their space for reuse.
        max_slots: how many versions can exist at a time (2 to 64), when readers hold old ones.
        max_readers: how many processes can read at a time.
        durable: not available yet.
        allow_pickle: not available yet.

    Raises:
        BusyError: the channel has a living publisher.
        UnsupportedTypeError: the value, or something in it, cannot be shared.
        CapacityError: no room for the channel.
        FormatError: the file of that name is not a channel.

    Example:
        >>> import numpy as np, untorn
        >>> weights = untorn.publish({"w": np.zeros(2)})
        >>> weights.update({"w": np.ones(2)})
        2
        >>> weights.close()
    """
    if durable or allow_pickle:
        raise NotImplementedError("durable= and allow_pickle= are not available in this version of untorn")
    _check_range("slots", slots, 1, 64)
    _check_range("max_slots", max_slots, 2, 64)
    _check_range("max_readers", max_readers, 1, 65535)
    if name is None and directory is not None:
        raise ValueError("directory= needs name=: an anonymous channel has no files")
    return publish_spec(value, None, name=name, directory=directory, sizes=(max_readers, max_slots, slots))


def publish_spec(
    value: Any,
    extra: Any,
    *,
    name: str | None,
    directory: str | os.PathLike[str] | None,
    sizes: tuple[int, int, int],
) -> Publisher:
    """publish() with a second tree stored beside the value, which Snapshot.extra shows; None for none."""
    tree = _Tree(value, extra)
    if name is None:
        attachment = storage.attach(*storage.anonymous(*sizes), _core.PUBLISHER, "anonymous")
        publisher = Publisher(attachment, None)
        publisher._publish(tree, FREE_SLOT_TIMEOUT_S)
        storage.seal(attachment)
        return publisher
    files = storage.named(name, directory)
    while True:
        if files.exists():
            taken = storage.take_over(files)
            if taken is None:
                continue
            publisher = Publisher(taken, files)
            publisher._publish(tree, FREE_SLOT_TIMEOUT_S)
            return publisher
        made = storage.attach(*storage.nameless(files, *sizes), _core.PUBLISHER, files.label)
        publisher = Publisher(made, files)
        publisher._publish(tree, FREE_SLOT_TIMEOUT_S)
        if storage.give_names(files, made):
            return publisher


def _check_range(name: str, value: int, least: int, most: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name}: expected an int, found {type(value).__name__}")
    if not least <= value <= most:
        raise ValueError(f"{name}: expected {least} to {most}, found {value}")


class _Tree:
    """A value taken apart, with what is stored beside it."""

    def __init__(self, value: Any, extra: Any = None) -> None:
        self.spec, self.leaves = flatten(value)
        self.extra: Spec | None = None
        if extra is not None:
            self.extra, more = flatten(extra)
            self.leaves += more

    @classmethod
    def of(cls, spec: Spec, leaves: list[Any]) -> _Tree:
        """A value that was taken apart before."""
        tree = cls.__new__(cls)
        tree.spec, tree.leaves, tree.extra = spec, leaves, None
        return tree


class Publisher:
    """The one process that may change a channel. Made by untorn.publish().

    Threads may share it; one writes at a time. A child made by fork may not publish. As a context manager it closes
    on exit; a named channel's files stay until unlink().
    """

    def __init__(self, attachment: _core.Attachment, files: Files | None) -> None:
        self._attachment: _core.Attachment | None = attachment
        self._files = files
        self._label = files.label if files else "anonymous"
        self._id = attachment.id
        self._layout: Layout | None = None
        self._schema_id = 0
        self._lock = threading.Lock()
        self._writer = 0  # the thread that has the lock

    # -- what it is

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
        """Bytes of shared memory that the channel's versions take now."""
        return sum(capacity for _, _, capacity, _, _ in self._open().slots())

    def readers(self) -> list[ReaderInfo]:
        """The living processes that read this channel, and which versions each holds."""
        attachment = self._open()
        published = {slot: (version, at_ns) for slot, _, _, version, at_ns in attachment.slots()}
        now_ns = time.time_ns()
        infos = []
        for _, pid, _, held in attachment.rows():
            versions = sorted(published[slot] for slot in published if held >> slot & 1)
            age_s = max(0.0, (now_ns - min(at for _, at in versions)) / 1e9) if versions else 0.0
            infos.append(ReaderInfo(pid, tuple(version for version, _ in versions), age_s))
        return infos

    def subscriber(self) -> Subscriber:
        """A subscriber of this channel, to be handed to other processes. Costs nothing until it is used."""
        attachment = self._open()
        places: tuple[tuple[str, str], ...] = ()
        if self._files:
            places = ((os.path.abspath(self._files.control), os.path.abspath(self._files.data)),)
        return Subscriber(Address(self._id, places, self._label).here(attachment))

    # -- writing

    def update(self, value: Any, *, timeout_s: float = FREE_SLOT_TIMEOUT_S) -> int:
        """Publish ``value`` (copied) as the next version; returns its number. It may have another structure and size.

        Never waits for readers, except when they hold every slot up to the cap: then up to ``timeout_s`` seconds.

        Raises:
            UnsupportedTypeError: the value cannot be shared; nothing was published.
            CapacityError: no memory for it, or every slot is held: the message says by whom. Nothing was published.
            ClosedError: this publisher is closed, or was inherited by fork.
        """
        tree = _Tree(value)
        with self._writing("update"):
            return self._publish(tree, timeout_s)

    @contextlib.contextmanager
    def edit(self, *, copy: bool = True, timeout_s: float = FREE_SLOT_TIMEOUT_S) -> Iterator[Any]:
        """Write the next version in place: a writable tree, published on exit, dropped if the block raises.

        Arrays may be changed in place (no copy on exit) or replaced; the structure may change as well. After the
        block they are read-only.

        Args:
            copy: begin with the newest version (one copy of its bytes). With False the arrays hold arbitrary bytes and
                every element must be written; everything that is not an array is as in the newest version.
            timeout_s: as in update().

        Example:
            >>> import numpy as np, untorn
            >>> weights = untorn.publish({"w": np.zeros(2)})
            >>> with weights.edit() as params:
            ...     params["w"] += 1
            >>> weights.version, weights.subscriber().snapshot().value["w"]
            (2, array([1., 1.]))
            >>> weights.close()
        """
        with self._writing("edit"):
            attachment = self._open()
            layout = self._known_layout()
            slot = self._pick(layout.nbytes, timeout_s)
            edit = Edit(attachment, layout, slot, copy=copy)
            try:
                yield edit.tree
                restructured = edit.collect()
            finally:
                edit.end()
            if restructured is None:
                self._make_latest(layout, slot)
            else:
                self._publish(_Tree.of(*restructured), timeout_s)

    @contextlib.contextmanager
    def _writing(self, what: str) -> Iterator[None]:
        """One thread writes at a time; a second waits, but the same thread may not begin twice."""
        if self._open().forked:
            raise self._forked()
        if self._writer == threading.get_ident():
            raise BusyError(
                f"channel {self._label!r}: {what}() inside edit(); end the block first: it publishes on exit"
            )
        with self._lock:
            self._writer = threading.get_ident()
            try:
                yield
            finally:
                self._writer = 0

    def _known_layout(self) -> Layout:
        if self._layout is None:
            raise ClosedError(f"channel {self._label!r} has no version yet")
        return self._layout

    def _publish(self, tree: _Tree, timeout_s: float) -> int:
        attachment = self._open()
        layout = self._layout
        if layout is None or layout.spec != tree.spec or layout.extra != tree.extra:
            layout = Layout(tree.spec, tree.extra)
        slot = self._pick(layout.nbytes, timeout_s)
        draft = attachment.draft(slot)
        for index, leaf in enumerate(tree.leaves):
            layout.write_leaf(draft, index, leaf)
        layout.write_schema(draft)
        return self._make_latest(layout, slot)

    def _make_latest(self, layout: Layout, slot: int) -> int:
        attachment = self._open()
        version = attachment.version + 1
        if self._layout is None or self._layout.schema != layout.schema:
            self._schema_id = version
        self._layout = layout
        attachment.publish(slot, version, layout.nbytes, len(layout.schema), self._schema_id)
        return version

    def _pick(self, nbytes: int, timeout_s: float) -> int:
        attachment = self._open()
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                return attachment.pick(nbytes)
            except _core.StatusError as error:
                code, number = error.args
                if code == "forked":
                    raise self._forked() from None
                if code == "no_space":
                    raise storage.no_space(
                        attachment.data_fd,
                        nbytes,
                        f"channel {self._label!r}: version {attachment.version + 1}",
                    ) from None
                if code != "no_slot":
                    raise OSError(number, os.strerror(number), self._label) from None
            if time.monotonic() >= deadline:
                raise self._no_slot(timeout_s)
            time.sleep(0.0005)

    def _no_slot(self, timeout_s: float) -> CapacityError:
        attachment = self._open()
        holders = "; ".join(
            f"pid {reader.pid} holds version{'s' if len(reader.versions) > 1 else ''} "
            + ", ".join(map(str, reader.versions))
            for reader in self.readers()
            if reader.versions
        )
        return CapacityError(
            f"channel {self._label!r}: no free slot for version {attachment.version + 1} within {timeout_s} s: all "
            f"{attachment.max_slots} are held ({holders or 'by readers that just went'}); "
            "let old snapshots go, or publish with a larger max_slots"
        )

    # -- the end

    def _open(self) -> _core.Attachment:
        if self._attachment is None:
            raise ClosedError(f"this publisher of channel {self._label!r} is closed")
        return self._attachment

    def _forked(self) -> ClosedError:
        return ClosedError(
            f"channel {self._label!r}: this process was forked from its publisher, and only the parent may publish; "
            "here use publisher.subscriber()"
        )

    def close(self) -> None:
        """End publishing. Readers keep what they have; waiting ones learn that nothing newer comes. A named channel's
        files stay, for readers and for the next publisher, until unlink(). Closing twice is fine."""
        if self._attachment is not None:
            self._attachment.retire()
            self._attachment = None

    def unlink(self) -> None:
        """Remove the files of a named channel; readers that are attached keep it. Does nothing on an anonymous one.

        May be called before or after close(); after it, only if no other publisher has taken the channel over.
        """
        if self._files is None:
            return
        if self._attachment is None:
            taken = storage.take_over(self._files)
            if taken is None:
                return
            if taken.id == self._id:
                self._files.unlink()
            taken.retire()
            return
        if self._attachment.forked:
            raise self._forked()
        if self._files.is_same_file(self._attachment.control_fd):
            self._files.unlink()

    def __enter__(self) -> Publisher:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce__(self) -> Any:
        raise TypeError("a Publisher stays in its process; send publisher.subscriber() to others")

    def __repr__(self) -> str:
        state = "closed" if self._attachment is None else f"version {self._attachment.version}"
        return f"<untorn.Publisher of {self._label!r}, {state}>"
