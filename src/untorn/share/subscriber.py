"""Reading: subscribers and snapshots.

::

    Subscriber ──┐
    Subscriber ──┴─> _Attached (one per channel and process) ──> _core.Attachment (a reader row, the mappings)
    Snapshot ──> _core.Hold (a pinned version) <── base of every array of Snapshot.value

A subscriber that was pickled finds its channel again by its identity; unpickled twice in one process it is one
attachment, which is kept for the next task of a pool. A version stays pinned while anything refers to its Hold, so
views outlive snapshots, subscribers and channels.
"""

from __future__ import annotations

import contextlib
import math
import os
import time
import weakref
from collections.abc import AsyncIterator, Iterator
from numbers import Real
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, Self, overload

from untorn import _core
from untorn.errors import (
    BrokenChannelError,
    CapacityError,
    ChannelNotFoundError,
    ClosedError,
    FormatError,
    UnsupportedTypeError,
    UntornError,
)
from untorn.share import storage, waiting
from untorn.share.layout import Decoder
from untorn.share.naming import signpost_target
from untorn.share.obstacles import labelled, meaning
from untorn.share.storage import Address
from untorn.share.typevars import T, T_co

if TYPE_CHECKING:
    from untorn.share.publisher import Publisher

__all__ = ["Snapshot", "Subscriber", "subscribe"]

#: how often a waiting reader asks the kernel whether its publisher lives
LIVENESS_INTERVAL_S = 0.1
_MAX_DECODERS = 64


class _Attached:
    """This process's reading side of one channel, shared by all its subscribers here."""

    def __init__(self, attachment: _core.Attachment, address: Address) -> None:
        self.attachment = attachment
        self.address = address
        self._decoders: dict[int, Decoder] = {}

    def decoder(self, hold: _core.Hold, allow_pickle: bool = False) -> Decoder:
        """The decoder of a pinned version; kept while the schema stays the same."""
        key = hold.schema_id << 1 | allow_pickle
        known = self._decoders.get(key)
        if known is not None and known.slot_nbytes <= hold.nbytes:
            return known
        try:
            decoder = Decoder(schema_of(hold), hold.nbytes, allow_pickle=allow_pickle)
        except (FormatError, UnsupportedTypeError, ImportError) as error:
            raise type(error)(f"channel {self.address.label!r}, version {hold.version}: {error}") from error
        self._decoders[key] = decoder
        _drop_oldest(self._decoders, _MAX_DECODERS)
        return decoder

    def pin(self) -> _core.Hold:
        label = self.address.label
        try:
            return self.attachment.pin()
        except _core.StatusError as error:
            if error.args[0] == "no_row" and self.attachment.control_fd < 0:
                raise CapacityError(
                    f"channel {label!r}: this process was forked when its parent could open no file for it (ulimit -n, "
                    "or /proc is not mounted); subscribe again here"
                ) from None
            if error.args[0] == "no_row":
                raise CapacityError(
                    f"channel {label!r}: this process was forked when every reader row was taken, and none is free "
                    "now; close some subscribers, or publish with a larger max_readers"
                ) from None
            if error.args[0] == "no_slot":
                raise CapacityError(
                    f"channel {label!r}: this process holds {self.held} versions, and the slots that are left are "
                    "reserved for the publisher; let old snapshots and views go, and copy what is to be kept"
                ) from None
            raise meaning(error, label) from None
        except OSError as error:
            raise labelled(error, label) from None

    @property
    def held(self) -> int:
        """The number of versions that this process holds."""
        rows = self.attachment.rows()
        return max((held.bit_count() for _, pid, _, held in rows if pid == os.getpid()), default=0)


def schema_of(hold: _core.Hold) -> bytes:
    """Return the schema of a pinned version. Raises FormatError if it cannot be one; then nothing was copied."""
    try:
        return hold.schema()
    except _core.StatusError:
        raise FormatError(
            f"its schema should be {hold.schema_nbytes:,} bytes of text, and there are zeros in it; the channel's file "
            "is damaged, or was not written by untorn"
        ) from None


# What follows has no lock. Threads come here, and so do signal handlers, finalizers and forks, between any two
# instructions of a thread, which could not let a lock go meanwhile. Each step is one operation of a dict, and a file
# has one _core.Attachment in a process, however many ask for it at the same time (csrc/module_channel.c).

_attached: weakref.WeakValueDictionary[bytes, _Attached] = weakref.WeakValueDictionary()


def _attach(address: Address) -> _Attached:
    known = _attached.get(address.id)
    if known is not None:
        return _unless_copied(known, address)
    attachment = storage.open_channel(address.places, address.label, _core.READER, id=address.id or None)
    if attachment.version == 0:
        attachment, address = _follow(attachment, address)
    known = _attached.get(attachment.id)  # the same channel under another address, or a copy of its files
    if known is not None and known.attachment is attachment:
        return known
    attached = _Attached(attachment, Address(attachment.id, address.places, address.label))
    if known is None:  # another thread may be faster: then there are two objects over one attachment
        _attached[attachment.id] = attached
    return attached


def _unless_copied(known: _Attached, address: Address) -> _Attached:
    """Return the channel that is known by this id, unless the address leads to another one with the same: somebody
    copied the files of one, and both went on."""
    with contextlib.suppress(UntornError, OSError):  # gone, or another channel has the name now
        if address.leads_elsewhere(known.attachment):
            attachment = storage.open_channel(address.places, address.label, _core.READER, id=address.id)
            if attachment is not known.attachment and attachment.version != 0:
                return _Attached(attachment, address)
    return known


def _follow(signpost: _core.Attachment, address: Address) -> tuple[_core.Attachment, Address]:
    """Follow a channel without a version to the one it is a signpost to, which lost its files. Raises
    ChannelNotFoundError if it is none: its making or removal was cut short."""
    target = signpost_target(signpost.control_fd, address.label)
    if target is not None:
        with contextlib.suppress(ChannelNotFoundError):
            attachment = storage.open_channel(target.places, target.label, _core.READER, id=target.id)
            return attachment, Address(target.id, (*target.places, *address.places), target.label)
    raise storage.not_found(address.places, address.label)


#: attachments of subscribers that came here by pickle, most recent last: a task that is handed a Subscriber would
#: otherwise attach anew each time
_kept: dict[bytes, _Attached] = {}
_MAX_KEPT = 8


def _keep(attached: _Attached) -> None:
    """Keep this attachment for the next task; let go those whose publisher is gone, and the oldest of too many."""
    _kept.pop(attached.attachment.id, None)
    _kept[attached.attachment.id] = attached
    _drop_oldest(_kept, _MAX_KEPT)
    let_go_of_the_dead()


def _drop_oldest(table: dict[Any, Any], most: int) -> None:
    """Remove all but the newest ``most`` entries."""
    if len(table) > most:
        for key in list(table)[:-most]:
            table.pop(key, None)


def let_go_of_the_dead() -> None:
    """Of the attachments that are kept for the next task, end those to channels that have neither a publisher nor a
    name."""
    for attached in list(_kept.values()):
        with contextlib.suppress(OSError):  # nobody says that its publisher is dead
            if not attached.attachment.publisher_alive() and not attached.address.is_named(attached.attachment):
                _kept.pop(attached.attachment.id, None)


class Snapshot(Generic[T_co]):
    """One published version, whole, for as long as anything refers to it.

    Use it as a context manager, or just let it go. Views into ``value`` keep the version pinned on their own, also
    after the block.

    Example:
        >>> import numpy as np, untorn
        >>> with untorn.publish({"w": np.zeros(3)}) as weights:
        ...     with weights.subscriber().snapshot() as snap:
        ...         snap.version, snap.value["w"].sum()
        (1, np.float64(0.0))
    """

    __slots__ = ("_allow_pickle", "_attached", "_hold", "_value", "version")

    #: the version's number: 1 for the first, one more for each published
    version: int

    def __init__(self, attached: _Attached, hold: _core.Hold, allow_pickle: bool = False) -> None:
        self._attached = attached
        self._allow_pickle = allow_pickle
        self._hold: _core.Hold | None = hold
        self._value: Any = _MISSING
        self.version = hold.version

    def _held(self) -> _core.Hold:
        hold = self._hold  # read once, here as below: a signal handler may close this in between
        if hold is None:
            raise ClosedError(
                f"this snapshot of version {self.version} is closed; take a new one, or keep a view into its value"
            )
        return hold

    @property
    def value(self) -> T_co:
        """The published value. Arrays are read-only views of shared memory (no copy), and so are the values of other
        libraries where these allow it (docs/values.md); numbers, str, bytes and containers are copies.

        Does not block. Raises ClosedError after close(), FormatError if the bytes are not a version,
        UnsupportedTypeError for a pickled value without allow_pickle, ImportError if the value's library is missing.
        """
        hold, value = self._held(), self._value
        if value is _MISSING:
            value = self._attached.decoder(hold, self._allow_pickle).value(hold)
            if self._hold is not None:
                self._value = value
        return value  # type: ignore[no-any-return]  # decoding cannot know the type

    @property
    def published_at(self) -> float:
        """When this version was published, in seconds since the epoch (as time.time())."""
        return self._held().published_ns / 1e9

    @property
    def nbytes(self) -> int:
        """Bytes of shared memory of this version."""
        return self._held().nbytes

    def close(self) -> None:
        """Let this version go; views into it that are still alive keep it. Closing twice is fine."""
        self._hold = None
        self._value = None

    def __enter__(self) -> Self:
        self._held()
        return self

    def __exit__(self, *_: object) -> None:
        self._hold = None
        self._value = None

    def __reduce__(self) -> Any:
        raise TypeError("a Snapshot stays in its process; send the Subscriber, or what you need of the value")

    def __repr__(self) -> str:
        hold = self._hold
        state = "closed" if hold is None else f"{hold.nbytes:,} bytes"
        return f"<untorn.Snapshot of {self._attached.address.label!r}, version {self.version}, {state}>"


_MISSING = object()


class Subscriber(Generic[T_co]):
    """Reads a channel: snapshots of its newest version, and waiting for newer ones.

    Made by untorn.subscribe() or Publisher.subscriber(). It pickles to a few hundred bytes (process arguments, pools,
    queues); unpickled twice in one process it is one attachment. Threads may share it. It survives fork.
    """

    __slots__ = ("__weakref__", "_address", "_allow_pickle", "_attached_or_none", "_closed")

    def __init__(self, address: Address, attached: _Attached | None = None, *, allow_pickle: bool = False) -> None:
        self._address = address
        self._allow_pickle = allow_pickle
        self._attached_or_none = attached
        self._closed = False

    @property
    def _attached(self) -> _Attached:
        if self._closed:
            raise ClosedError(f"this subscriber of channel {self._address.label!r} is closed; subscribe again")
        attached = self._attached_or_none
        if attached is None:
            attached = _attach(self._address)
            if not self._closed:
                self._attached_or_none = attached
        return attached

    @property
    def address(self) -> Address:
        """Where to find the channel: small, picklable, and attaches to nothing by itself."""
        return self._address

    def attach(self) -> None:
        """Attach now rather than at first use. Raises ChannelNotFoundError if the channel is gone."""
        _ = self._attached

    @property
    def version(self) -> int:
        """The number of the newest published version."""
        return self._attached.attachment.version

    @property
    def name(self) -> str:
        """The channel's name, or its path, or ``anonymous``."""
        return self._address.label

    def publisher_alive(self) -> bool:
        """Return whether the kernel says that the channel has a living publisher. One system call. Raises OSError if it
        does not say, as on a file system without locks."""
        try:
            return self._attached.attachment.publisher_alive()
        except OSError as error:
            raise labelled(error, self.name) from None

    def snapshot(self, *, newer_than: int | None = None, timeout_s: float | None = None) -> Snapshot[T_co]:
        """The newest version; cost does not depend on its size, and nothing is copied.

        Args:
            newer_than: wait until the newest version is greater than this one. Without it, does not block.
            timeout_s: seconds to wait at most; None waits as long as a publisher lives.

        Raises:
            TimeoutError: nothing newer came in time.
            BrokenChannelError: nothing newer can come: the publisher closed the channel or is dead.
            ClosedError: this subscriber is closed.

        Example:
            >>> import untorn
            >>> publisher = untorn.publish("first")
            >>> reader = publisher.subscriber()
            >>> reader.snapshot().value
            'first'
            >>> _ = publisher.update("second")
            >>> reader.snapshot(newer_than=1, timeout_s=5).value
            'second'
            >>> publisher.close()
        """
        attached = self._attached_or_none
        if attached is None or self._closed:
            attached = self._attached
        if newer_than is not None:
            self.wait(newer_than, timeout_s)
        try:
            hold = attached.attachment.pin()
        except (_core.StatusError, OSError):
            hold = attached.pin()
        return Snapshot(attached, hold, self._allow_pickle)

    def wait(self, newer_than: int, timeout_s: float | None = None) -> int:
        """Block until a version greater than ``newer_than`` is published; returns its number (or a later one).

        Spins briefly, then sleeps; signals such as Ctrl-C are handled. Raises as snapshot() does: with ``timeout_s`` a
        named channel is waited for to the end, since a new publisher may take it over; without, a dead or closed
        publisher raises BrokenChannelError within a fraction of a second.
        """
        attachment = self._waited(newer_than)
        if attachment.version > newer_than:
            return attachment.version
        deadline = None if timeout_s is None else _deadline(timeout_s)
        while True:
            left = LIVENESS_INTERVAL_S if deadline is None else deadline - time.monotonic()
            if attachment.wait(newer_than, max(0.0, min(left, LIVENESS_INTERVAL_S))):
                return attachment.version
            version = self._verdict(attachment, newer_than, timeout_s, deadline)
            if version is not None:
                return version

    async def wait_async(self, newer_than: int, timeout_s: float | None = None) -> int:
        """wait() for asyncio: blocks the coroutine alone. Returns and raises what wait() does.

        However many coroutines and channels, one thread of this process sleeps for all of them. Gives other tasks a
        turn also when a newer version is there already. Cancelling the task ends the wait at once.

        Example:
            >>> import asyncio, untorn
            >>> with untorn.publish("first") as publisher:
            ...     asyncio.run(publisher.subscriber().wait_async(0, timeout_s=5))
            1
        """
        import asyncio

        attachment = self._waited(newer_than)
        deadline = None if timeout_s is None else _deadline(timeout_s)
        version = self._verdict(attachment, newer_than, timeout_s, deadline)
        if version is not None:
            await asyncio.sleep(0)
        while version is None:
            left_s = None if deadline is None else deadline - time.monotonic()
            await waiting.changed(attachment, newer_than, or_lost=True, timeout_s=left_s)
            version = self._verdict(attachment, newer_than, timeout_s, deadline)
        return version

    async def snapshot_async(self, *, newer_than: int | None = None, timeout_s: float | None = None) -> Snapshot[T_co]:
        """snapshot() for asyncio: waits as wait_async() does. Returns and raises what snapshot() does.

        Example:
            >>> import asyncio, untorn
            >>> with untorn.publish("first") as publisher:
            ...     asyncio.run(publisher.subscriber().snapshot_async(newer_than=0, timeout_s=5)).value
            'first'
        """
        if newer_than is not None:
            await self.wait_async(newer_than, timeout_s)
        return self.snapshot()

    def _waited(self, newer_than: int) -> _core.Attachment:
        """The channel to wait for, once the version is known to be one."""
        attachment = self._attached.attachment
        if not isinstance(newer_than, int):
            raise TypeError(f"newer_than: expected a version number (int), found {type(newer_than).__name__}")
        if not 0 <= newer_than < 2**58:
            raise ValueError(f"newer_than: expected a version number from 0 on, found {newer_than}")
        return attachment

    def _verdict(
        self, attachment: _core.Attachment, newer_than: int, timeout_s: float | None, deadline: float | None
    ) -> int | None:
        """What a wait has come to: the version that is newer, None to go on waiting, or the error that ends it."""
        lost = self._loss(attachment)  # first: the last version may have come just before the end
        if attachment.version > newer_than:
            return attachment.version
        if lost and self._has_successor():
            raise BrokenChannelError(
                f"channel {self.name!r}: nothing newer than version {newer_than} can come, because {lost}, and "
                f"another channel has this name now: subscribe again; version {attachment.version} of this one can "
                "still be read"
            )
        if lost and (deadline is None or not self._may_be_taken_over()):
            raise BrokenChannelError(
                f"channel {self.name!r}: nothing newer than version {newer_than} can come, because {lost}; "
                f"version {attachment.version} can still be read"
            )
        if deadline is not None and time.monotonic() >= deadline:
            raise TimeoutError(
                f"channel {self.name!r}: nothing newer than version {newer_than} within {timeout_s} s"
                + (f" ({lost})" if lost else "")
            )
        return None

    def _loss(self, attachment: _core.Attachment) -> str:
        """Why nothing newer can come, as the kernel sees it; empty while the publisher lives."""
        if self.publisher_alive():
            return ""
        return "its publisher closed it" if attachment.closed else "its publisher is dead"

    def _has_successor(self) -> bool:
        attached = self._attached
        return attached.address.has_successor(attached.attachment)

    def _has_ended(self) -> bool:
        """Return whether the channel was closed by its publisher, with no other in its place."""
        return self._attached.attachment.closed and not self._has_successor()

    def _may_be_taken_over(self) -> bool:
        return any(not control.startswith("/proc/") for control, _ in self._address.places)

    def __iter__(self) -> Iterator[Snapshot[T_co]]:
        """The newest version, then every time something newer is there the newest of it. Ends when the publisher
        closes the channel; raises BrokenChannelError if it dies."""
        seen = 0
        while True:
            try:
                snapshot = self.snapshot(newer_than=seen)
            except BrokenChannelError:
                if self._has_ended():
                    return
                raise
            seen = snapshot.version
            yield snapshot
            del snapshot  # or the old version would stay pinned while we wait

    def __aiter__(self) -> AsyncIterator[Snapshot[T_co]]:
        """As __iter__, for ``async for``: the newest version, then every time something newer is there the newest of
        it. Ends when the publisher closes the channel; raises BrokenChannelError if it dies."""
        return waiting.NewerSnapshots(lambda seen: self.snapshot_async(newer_than=seen), self._has_ended)

    def close(self) -> None:
        """Stop using the channel. Snapshots and views that were taken stay valid. Closing twice is fine."""
        self._closed = True
        attached, self._attached_or_none = self._attached_or_none, None
        if attached is not None:
            _kept.pop(attached.attachment.id, None)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        attached = self._attached_or_none
        address = self._address if attached is None else attached.address.here(attached.attachment)
        return _unpickle, (address.id, address.places, address.label, self._allow_pickle)

    def __repr__(self) -> str:
        if self._closed:
            return f"<untorn.Subscriber of {self.name!r}, closed>"
        return f"<untorn.Subscriber of {self.name!r}>"


def _deadline(timeout_s: float) -> float:
    """When to give up, on the monotonic clock."""
    if not isinstance(timeout_s, Real):
        raise TypeError(f"timeout_s: expected a number of seconds, found {type(timeout_s).__name__}")
    if math.isnan(timeout_s):
        raise ValueError("timeout_s: expected a number of seconds, found nan")
    return time.monotonic() + float(timeout_s)


def _unpickle(id: bytes, places: tuple[tuple[str, str], ...], label: str, allow_pickle: bool) -> Subscriber:
    address = Address(id, places, label)
    try:
        attached = _attach(address)
    except (UntornError, OSError):
        # Pools unpickle outside the task, where an error ends the worker, and multiprocessing.Pool then waits for ever.
        # So the first use tries again, and raises.
        return Subscriber(address, allow_pickle=allow_pickle)
    _keep(attached)
    return Subscriber(address, attached, allow_pickle=allow_pickle)


@overload
def subscribe(
    channel: Publisher[T] | Subscriber[T], *, timeout_s: float = 0, allow_pickle: bool = False
) -> Subscriber[T]: ...
@overload
def subscribe(
    channel: str | os.PathLike[str], *, timeout_s: float = 0, allow_pickle: bool = False
) -> Subscriber[Any]: ...
def subscribe(
    channel: str | os.PathLike[str] | Subscriber | Publisher,
    *,
    timeout_s: float = 0,
    allow_pickle: bool = False,
) -> Subscriber:
    """Attach to a channel for reading.

    Args:
        channel: a name ("policy"), a path (anything with a slash, or a Path: directory/name), or a Publisher or
            Subscriber that was handed over.
        timeout_s: seconds to wait for the channel to appear.
        allow_pickle: unpickle what the publisher pickled, as in numpy.load(). A pickle can run any code: say so only if
            you trust whoever publishes. The publisher must have said so too.

    Raises:
        ChannelNotFoundError: there is none (within timeout_s).
        FormatError: the file of that name is not a channel.
        CapacityError: all its reader rows are taken.

    Example:
        >>> import untorn
        >>> with untorn.publish([1, 2], name="doc-example") as publisher:
        ...     untorn.subscribe("doc-example").snapshot().value
        ...     publisher.unlink()
        [1, 2]
    """
    from untorn.share.publisher import Publisher

    if isinstance(channel, Publisher):
        return channel.subscriber(allow_pickle=allow_pickle)
    if isinstance(channel, Subscriber):
        address, attached = channel._address, channel._attached  # noqa: SLF001 (the new one is of the same class)
        return Subscriber(address, attached, allow_pickle=allow_pickle)
    if not isinstance(channel, str | os.PathLike):
        raise TypeError(
            f"channel: expected a name, a path, a Publisher or a Subscriber, found {type(channel).__name__}"
        )
    text = os.fspath(channel)
    if "/" in text or not isinstance(channel, str):
        files = storage.named(os.path.basename(text), os.path.dirname(text) or ".")
    else:
        files = storage.named(text)
    address = Address(b"", ((files.control, files.data),), files.label)
    deadline = _deadline(timeout_s)
    while True:
        try:
            return Subscriber(address, _attach(address), allow_pickle=allow_pickle)
        except ChannelNotFoundError:
            if time.monotonic() >= deadline:
                raise
        time.sleep(0.01)
