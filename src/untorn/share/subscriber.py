"""Subscribers: take snapshots of a channel, and wait for newer ones.

::

    Subscriber ──┐
    Subscriber ──┴─> Attached (one per channel and process) ──> _core.Attachment (a reader row, the mappings)
    Snapshot ──> _core.Hold (a pinned version) <── base of every array of Snapshot.value

A pickled subscriber finds its channel again by its identity. If it is unpickled twice in one process, both share an
attachment, which is kept for the next task of a pool. A version stays pinned while anything refers to its Hold, so
views outlive snapshots, subscribers and channels.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, Never, NoReturn, Self, TypeVar

from untorn import _core, html
from untorn.errors import BrokenChannelError, ChannelNotFoundError, ClosedError, FormatError, UntornError
from untorn.first_guesses import only_known_arguments, unknown_arguments, unknown_attribute, words
from untorn.share import notes, waiting
from untorn.share.attached import Attached, attached_to, forget, keep
from untorn.share.caching import key_of
from untorn.share.following import Following, Source
from untorn.share.journal import log_channel
from untorn.share.places import Address
from untorn.share.snapshot import Snapshot
from untorn.share.storage_errors import labelled
from untorn.typevars import T_co

__all__ = ["Subscriber"]

#: how often a waiting reader asks the kernel whether its publisher is alive
LIVENESS_INTERVAL_S = 0.1

R = TypeVar("R")

_SNAPSHOT_GUESSES = words(
    ("timeout max_wait", "write timeout_s=, in seconds"),
    ("newer since after min_version than last seen", "write newer_than="),
    ("version", "only the newest version can be read; newer_than= waits for a newer one"),
    ("block blocking wait", "write newer_than=snap.version, which waits, and timeout_s="),
    ("copy", "arrays are views; copy what is to be changed: snap.value[...].copy()"),
)
_BY_POSITION = "write snapshot(newer_than=...)"
_ATTRIBUTE_GUESSES = words(
    ("value data get read load latest recv receive pull fetch poll peek current", "write snapshot().value"),
    ("next", "write snapshot(newer_than=snap.version), or `for snap in subscriber`"),
    ("listen watch stream on_update subscribe", "write `for snap in subscriber`, or follow()"),
    ("update publish set put write send push patch edit", "a subscriber only reads; its publisher writes"),
    ("unlink delete remove", "write publisher.unlink(), or `untorn rm NAME`"),
    ("readers", "write publisher.readers(), or `untorn show NAME`"),
    ("alive is_alive live closed", "write publisher_alive()"),
    ("nbytes size published_at", "a snapshot has that: write snapshot().nbytes or snapshot().published_at"),
    ("stop shutdown disconnect unsubscribe end exit", "write close()"),
    ("cache memo memoize", "write cached(build)"),
)


class Subscriber(Generic[T_co]):
    """Reads a channel: takes snapshots of its newest version, and waits for newer ones.

    Made by untorn.subscribe() or Publisher.subscriber(). It pickles to a few hundred bytes (for process arguments,
    pools, queues); if it is unpickled twice in one process, both share an attachment. Threads may share it. It survives
    fork.
    """

    __slots__ = ("__weakref__", "_address", "_allow_pickle", "_attached_or_none", "_closed")

    def __init__(self, address: Address, attached: Attached | None = None, *, allow_pickle: bool = False) -> None:
        self._address = address
        self._allow_pickle = allow_pickle
        self._attached_or_none = attached
        self._closed = False

    @property
    def _attached(self) -> Attached:
        if self._closed:
            raise ClosedError(f"this subscriber of channel {self._address.label!r} is closed; subscribe again")
        attached = self._attached_or_none
        if attached is None:
            attached = attached_to(self._address)
            if not self._closed:
                self._attached_or_none = attached
        return attached

    @property
    def address(self) -> Address:
        """The address of the channel, which is small and picklable, and attaches to nothing by itself."""
        return self._address

    def attach(self) -> None:
        """Attach now, not at the first use. Raises ChannelNotFoundError if the channel is gone."""
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
        """Whether the channel has a living publisher, according to the kernel. Needs one system call. Raises OSError if
        the kernel cannot tell, as on a file system without locks."""
        try:
            return self._attached.attachment.publisher_alive()
        except OSError as error:
            raise labelled(error, self.name) from None

    @only_known_arguments
    def snapshot(
        self, *more: Never, newer_than: int | None = None, timeout_s: float | None = None, **unknown: Never
    ) -> Snapshot[T_co]:
        """Return the newest version. The cost does not depend on its size, and nothing is copied.

        Args:
            newer_than: block until the newest version is greater than this one. Without it, do not block.
            timeout_s: the longest time to wait, in seconds; None waits as long as a publisher lives.

        Raises:
            TimeoutError: no newer version was published in time.
            BrokenChannelError: no newer version can come, since the publisher closed the channel or is dead.
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
        if more or unknown:
            raise unknown_arguments("snapshot", more, unknown, guesses=_SNAPSHOT_GUESSES, instead=_BY_POSITION)
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

    def cached(self, build: Callable[[T_co], R]) -> R:
        """Return ``build(value)`` for the newest version, made once per version and process: for what is made from a
        value, such as an index, a module or a compiled model.

        All subscribers of the channel in this process share the results, so a task of a pool finds what an earlier task
        made. Threads may ask at the same time: one runs ``build``, the others block until it is done. Once it is asked
        for a newer version, the results of older versions are dropped. An error of ``build`` is raised, and not kept.

        Args:
            build: a function of the value. Define it in a module, or as a method: functions are told apart by
                themselves, and a nested function that uses variables around it is another one at each call.

        Raises what snapshot() and Snapshot.value do, and BusyError if ``build`` asks for its own result.

        Example:
            >>> import numpy as np, untorn
            >>> with untorn.publish(np.array([3.0, 1.0, 2.0])) as publisher:
            ...     reader = publisher.subscriber()
            ...     reader.cached(np.argsort), reader.cached(np.argsort) is reader.cached(np.argsort)
            (array([1, 2, 0]), True)
        """
        key, snapshot = key_of(build), self.snapshot()
        made: R = self._attached.results.get(key, snapshot.version, lambda: build(snapshot.value))
        return made

    @only_known_arguments
    def wait(self, newer_than: int, timeout_s: float | None = None, **unknown: Never) -> int:
        """Block until a version greater than ``newer_than`` is published. Returns its number, or a later one.

        Spins briefly, then sleeps; signals such as Ctrl-C are handled. Raises as snapshot() does: with ``timeout_s``,
        wait for a named channel to the end, since a new publisher may take it over; without, raise BrokenChannelError
        within a fraction of a second if the publisher is dead or has closed the channel.
        """
        if unknown:
            raise unknown_arguments("wait", keywords=unknown, guesses=_SNAPSHOT_GUESSES)
        attachment = self._waited(newer_than)
        if attachment.version > newer_than:
            return attachment.version
        deadline = None if timeout_s is None else waiting.deadline_of(timeout_s)
        while True:
            left = LIVENESS_INTERVAL_S if deadline is None else deadline - time.monotonic()
            if attachment.wait(newer_than, max(0.0, min(left, LIVENESS_INTERVAL_S))):
                return attachment.version
            log_channel(attachment, self.name)
            version = self._verdict(attachment, newer_than, timeout_s, deadline)
            if version is not None:
                return version

    @only_known_arguments
    async def wait_async(self, newer_than: int, timeout_s: float | None = None, **unknown: Never) -> int:
        """Wait as wait() does, in asyncio: block only the coroutine. Returns and raises what wait() does.

        One thread of this process sleeps for all coroutines and channels. Other tasks get to run even if a newer
        version exists already. Cancelling the task ends the wait at once.

        Example:
            >>> import asyncio, untorn
            >>> with untorn.publish("first") as publisher:
            ...     asyncio.run(publisher.subscriber().wait_async(0, timeout_s=5))
            1
        """
        import asyncio

        if unknown:
            raise unknown_arguments("wait_async", keywords=unknown, guesses=_SNAPSHOT_GUESSES)
        attachment = self._waited(newer_than)
        deadline = None if timeout_s is None else waiting.deadline_of(timeout_s)
        if attachment.version > newer_than:
            await asyncio.sleep(0)
        while attachment.version <= newer_than:
            version = self._verdict(attachment, newer_than, timeout_s, deadline)
            if version is not None:
                return version
            left_s = None if deadline is None else deadline - time.monotonic()
            await waiting.changed(attachment, newer_than, or_lost=True, timeout_s=left_s)
        return attachment.version

    @only_known_arguments
    async def snapshot_async(
        self, *more: Never, newer_than: int | None = None, timeout_s: float | None = None, **unknown: Never
    ) -> Snapshot[T_co]:
        """Return a snapshot as snapshot() does, but wait in asyncio as wait_async() does. Raises what snapshot() does.

        Example:
            >>> import asyncio, untorn
            >>> with untorn.publish("first") as publisher:
            ...     asyncio.run(publisher.subscriber().snapshot_async(newer_than=0, timeout_s=5)).value
            'first'
        """
        if more or unknown:
            raise unknown_arguments("snapshot_async", more, unknown, guesses=_SNAPSHOT_GUESSES, instead=_BY_POSITION)
        if newer_than is not None:
            await self.wait_async(newer_than, timeout_s)
        return self.snapshot()

    def _waited(self, newer_than: int) -> _core.Attachment:
        """Return the channel to wait for, after checking the version."""
        attachment = self._attached.attachment
        if not isinstance(newer_than, int):
            text = f"newer_than: expected a version number (int), found {type(newer_than).__name__}"
            raise TypeError(f"{text}; write newer_than=snap.version" if isinstance(newer_than, Snapshot) else text)
        if not 0 <= newer_than < 2**58:
            raise ValueError(f"newer_than: expected a version number from 0 on, found {newer_than}")
        return attachment

    def _verdict(
        self, attachment: _core.Attachment, newer_than: int, timeout_s: float | None, deadline: float | None
    ) -> int | None:
        """Return the newer version, or None to continue waiting. Raises the error that ends the wait."""
        lost = self._loss(attachment)  # first, since the last version may have been published just before the end
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
        """Return why no newer version can come, according to the kernel; empty while the publisher lives."""
        if self.publisher_alive():
            return ""
        if attachment.closed:
            return "its publisher closed it"
        pid = notes.was_dropped(attachment)
        return "its publisher is dead" if pid is None else notes.dropped_text(pid)

    def _has_successor(self) -> bool:
        attached = self._attached
        return attached.address.has_successor(attached.attachment)

    def _has_ended(self) -> bool:
        """Return whether the channel was closed by its publisher, with no other in its place."""
        return self._attached.attachment.closed and not self._has_successor()

    def _may_be_taken_over(self) -> bool:
        return self._address.has_name

    def __iter__(self) -> Iterator[Snapshot[T_co]]:
        """Yield the newest version, and then the newest one whenever a newer one is published. Ends when the publisher
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
            del snapshot  # otherwise the old version would stay pinned during the wait

    def __aiter__(self) -> AsyncIterator[Snapshot[T_co]]:
        """Iterate as __iter__ does, with ``async for``: yield the newest version, and then the newest one whenever a
        newer one is published. Ends when the publisher closes the channel; raises BrokenChannelError if it dies."""
        return waiting.NewerSnapshots(lambda seen: self.snapshot_async(newer_than=seen), self._has_ended)

    def follow(self, *, timeout_s: float | None = None) -> Following[T_co]:
        """Return an iterator over the newest versions under the channel's name, for ``for`` and ``async for``: the
        newest version, and then the newest one whenever there is a newer one.

        It goes on when the publisher ends and another one takes the channel over, and when the channel is removed
        (Publisher.unlink(), ``untorn rm``) and published anew under its name: that one begins with version 1. This
        subscriber itself stays at its channel. An anonymous channel cannot be published again, so the iterator then
        ends as iteration over the subscriber does.

        Args:
            timeout_s: the longest wait for each version, in seconds; None waits forever.

        Raises:
            TimeoutError: by the iterator, if nothing newer came in time. It can be asked again.

        Example:
            >>> import untorn
            >>> first = untorn.publish("old", name="doc-follow")
            >>> seen = untorn.subscribe("doc-follow").follow(timeout_s=5)
            >>> next(seen).value
            'old'
            >>> first.unlink(), first.close()
            (None, None)
            >>> with untorn.publish("new", name="doc-follow", keep=False):
            ...     next(seen).value
            'new'
        """
        if timeout_s is not None:
            waiting.deadline_of(timeout_s)
        return Following(self._source(), timeout_s)

    def _source(self) -> Source[T_co]:
        return Source(self.name, self._attachment_or_none, self.snapshot, self._successor, self._is_over)

    def _attachment_or_none(self) -> _core.Attachment | None:
        try:
            return self._attached.attachment
        except ChannelNotFoundError:
            if not self._may_be_taken_over():
                raise
            return None

    def _is_over(self, seen: int) -> bool:
        """Return whether an anonymous channel was closed. Raises BrokenChannelError if its publisher died."""
        if self._may_be_taken_over():
            return False
        attachment = self._attached.attachment
        try:
            self._verdict(attachment, max(seen, attachment.version), None, None)
        except BrokenChannelError:
            if not self._has_ended():
                raise
            return True
        return False

    def _successor(self) -> Source[T_co] | None:
        """Return the channel that the name leads to, if that is another one."""
        attached = self._attached_or_none
        if attached is not None and not self._address.has_successor(attached.attachment):
            return None
        names = tuple(place for place in self._address.places if not place[0].startswith("/proc/"))
        address = Address(b"", names, self.name)
        try:
            found = attached_to(address)
        except (ChannelNotFoundError, FormatError):  # it is being made, or removed
            return None
        if attached is not None and found.attachment is attached.attachment:
            return None
        return Subscriber[T_co](address, found, allow_pickle=self._allow_pickle)._source()  # noqa: SLF001 (of the same class)

    def close(self) -> None:
        """Stop using the channel. Existing snapshots and views stay valid. May be called twice."""
        self._closed = True
        attached, self._attached_or_none = self._attached_or_none, None
        if attached is not None:
            forget(attached)

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

    if not TYPE_CHECKING:  # a type checker would take every name for one that is here

        def __getattr__(self, name: str) -> NoReturn:
            """Raise the error for an attribute that is not there."""
            raise unknown_attribute(self, name, _ATTRIBUTE_GUESSES)

        def __getitem__(self, key: object) -> NoReturn:
            """Raise the error for an item: a snapshot has them."""
            raise TypeError(f"'Subscriber' object has no items, such as {key!r}: write snapshot().value[{key!r}]")

    def _repr_html_(self) -> str:
        title = f"Subscriber of {self.name!r}"
        if self._closed:
            return html.facts(title, {"state": "closed"})
        try:
            alive = "alive" if self.publisher_alive() else "gone"
            return html.facts(title, {"newest version": self.version, "publisher": alive})
        except (UntornError, OSError) as error:
            return html.facts(title, {"state": error})

    def __repr__(self) -> str:
        if self._closed:
            return f"<untorn.Subscriber of {self.name!r}, closed>"
        return f"<untorn.Subscriber of {self.name!r}>"


def _unpickle(id: bytes, places: tuple[tuple[str, str], ...], label: str, allow_pickle: bool) -> Subscriber:
    address = Address(id, places, label)
    try:
        attached = attached_to(address)
    except (UntornError, OSError):
        # Pools unpickle outside the task, where an error ends the worker and multiprocessing.Pool then waits forever.
        # So the first use tries again, and raises the error.
        return Subscriber(address, allow_pickle=allow_pickle)
    keep(attached)
    return Subscriber(address, attached, allow_pickle=allow_pickle)
