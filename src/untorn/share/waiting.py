"""Wait for channels in asyncio, without a busy thread per channel.

One daemon thread per process sleeps in the kernel on all channels that coroutines wait for, in any event loop::

    coroutine ── changed() ──> _Waiter ──> inbox, ring ──> thread: sleeps in _core.Watch on all channels
        ^                                                     │  something newer, or the publisher is gone
        └────── future <── loop.call_soon_threadsafe <────────┘

The thread decides nothing: it wakes coroutines, which check their channels themselves. It starts with the first waiter
and ends a moment after the last. The kernel lets a thread sleep on 127 channels, so each 127 more have another thread.

Only the thread uses the table of waiters. Other threads put a new waiter into the inbox, or mark one as gone, and ring.
None of this takes a lock, because a coroutine that is no longer awaited can be collected, and so leave, between any two
instructions of any thread, and a signal handler or a finalizer may begin to wait there. The thread that succeeds in
taking ``_serving``, without blocking, serves. It checks the inbox once more after it has released that, and a thread
that puts something in checks ``_serving`` afterwards, so no waiter is forgotten.
"""

from __future__ import annotations

import atexit
import contextlib
import math
import os
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from numbers import Real
from typing import TYPE_CHECKING, Generic, Self, TypeAlias, final

from untorn import _core
from untorn.errors import BrokenChannelError, CapacityError
from untorn.share.snapshot import Snapshot
from untorn.typevars import T_co

if TYPE_CHECKING:
    import asyncio

__all__ = ["NewerSnapshots", "changed", "deadline_of"]

#: what to wait for: a channel's next version, or a queue's next event
Source: TypeAlias = "_core.Attachment | _core.QueueGate"

#: how often the kernel is asked whether the publishers of these channels are alive
LIVENESS_INTERVAL_S = 0.2
#: how long the thread stays without waiters, since coroutines come back between two versions
IDLE_S = 0.2


def deadline_of(timeout_s: float) -> float:
    """Return the time by the monotonic clock at which a wait ends. Raises TypeError or ValueError."""
    if not isinstance(timeout_s, Real):
        raise TypeError(f"timeout_s: expected a number of seconds, found {type(timeout_s).__name__}")
    if math.isnan(timeout_s):
        raise ValueError("timeout_s: expected a number of seconds, found nan")
    return time.monotonic() + float(timeout_s)


async def changed(attachment: Source, newer_than: int, *, or_lost: bool, timeout_s: float | None = None) -> None:
    """Return when the channel may have something newer, or time is up, so that it should be checked again.

    Args:
        attachment: the channel.
        newer_than: the known version.
        or_lost: also return when the channel has no living publisher.
        timeout_s: the longest time to wait, in seconds.
    """
    import asyncio

    loop = asyncio.get_running_loop()
    waiter = _Waiter(attachment, newer_than, or_lost, loop)
    timer = None if timeout_s is None else loop.call_later(max(0.0, timeout_s), waiter.wake)
    watcher = _watcher_for(attachment)
    try:
        watcher.add(waiter)
        await waiter.future
    finally:
        watcher.leave(waiter)
        if timer is not None:
            timer.cancel()


@final
class NewerSnapshots(Generic[T_co]):
    """The iterator of ``async for``. It keeps the number of the last snapshot, not the snapshot.

    It is not an async generator, because one that is left early stays suspended, with everything it refers to, until
    its loop closes it.
    """

    __slots__ = ("_ended", "_seen", "_take")

    def __init__(self, take: Callable[[int], Awaitable[Snapshot[T_co]]], ended: Callable[[], bool]) -> None:
        self._take = take
        self._ended = ended
        self._seen = 0

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Snapshot[T_co]:
        try:
            snapshot = await self._take(self._seen)
        except BrokenChannelError:
            if self._ended():
                raise StopAsyncIteration from None
            raise
        self._seen = snapshot.version
        return snapshot


def _is_lost(attachment: Source) -> bool:
    """Return whether the coroutines should check the publisher themselves. True if the kernel cannot tell whether it is
    alive, since they then raise the reason."""
    if isinstance(attachment, _core.QueueGate):
        return False  # a queue has no publisher
    try:
        return not attachment.publisher_alive()
    except OSError:
        return True


@final
class _Waiter:
    """One coroutine that waits for one channel."""

    __slots__ = ("attachment", "future", "gone", "loop", "newer_than", "or_lost")

    def __init__(self, attachment: Source, newer_than: int, or_lost: bool, loop: asyncio.AbstractEventLoop) -> None:
        self.attachment = attachment
        self.newer_than = newer_than
        self.or_lost = or_lost
        self.loop = loop
        self.future: asyncio.Future[None] = loop.create_future()
        self.gone = False  # it no longer needs the thread

    def wake(self) -> None:
        """Wake the coroutine, in its loop's thread."""
        if not self.future.done():
            self.future.set_result(None)

    def nudge(self) -> None:
        """Wake the coroutine, from any thread."""
        self.gone = True
        with contextlib.suppress(RuntimeError):  # its loop is closed, so nothing waits there any more
            self.loop.call_soon_threadsafe(self.wake)


@final
class _Watcher:
    """The thread and its table of waiters."""

    def __init__(self, *, polls: bool = False) -> None:
        self._watch = _core.Watch(polls)
        self._serving = threading.Lock()  # held by the thread; others only ask whether it is
        self._thread: threading.Thread | None = None
        self._stopping = False
        self._inbox: deque[_Waiter] = deque()
        self._some_left = False
        # used only by the thread: the waiters of each channel, and the oldest version that one of them knows
        self._waiters: dict[Source, list[_Waiter]] = {}
        self._versions: dict[Source, int] = {}
        self._due: deque[_Waiter] = deque()  # those to wake, which are in the table no more
        self._look_at = 0.0  # when to check next which publishers are alive
        self._idle_until = 0.0

    def has_room(self, attachment: Source) -> bool:
        """Return whether it can sleep on one more channel. This is a guess; if it is wrong, waiting is only slower.
        False in a finalizer that the thread itself runs, which would wait for its own thread."""
        if self._thread is threading.current_thread():
            return False
        return attachment in self._waiters or len(self._waiters) + len(self._inbox) < _core.WATCH_WORDS

    def add(self, waiter: _Waiter) -> None:
        """Wake this waiter once, when its channel should be checked. Raises CapacityError if no thread can start."""
        self._inbox.append(waiter)
        if not self._serving.locked():  # one thread too many ends at once
            try:
                threading.Thread(target=self._run, name="untorn-waiting", daemon=True).start()
            except BaseException as error:
                with contextlib.suppress(ValueError):
                    self._inbox.remove(waiter)  # otherwise its channel would stay open for a thread that never comes
                if not isinstance(error, RuntimeError):
                    raise
                raise CapacityError(
                    "waiting in asyncio needs one thread of this process, and the system does not start another; end "
                    "some threads or processes, raise `ulimit -u` or the control group's pids.max, or use wait() in a "
                    "thread that you have"
                ) from error
        self._watch.ring()

    def leave(self, waiter: _Waiter) -> None:
        """Forget this waiter and no longer wake it. Takes no lock, and may be called from any thread."""
        if not waiter.gone:
            waiter.gone = True
            self._some_left = True
            self._watch.ring()

    def stop(self) -> None:
        """End the thread now, even if there are waiters."""
        self._stopping = True
        self._watch.ring()
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join()
        self._stopping = False

    def forget(self) -> None:
        """Forget everything in a forked child, which does not have the thread."""
        self._inbox.clear()
        self._due.clear()
        self._waiters.clear()
        self._versions.clear()
        self._watch.forget()

    # -- the code below runs in the thread. No local of _run refers to a waiter or a channel while it sleeps.

    def _run(self) -> None:
        while self._serving.acquire(blocking=False):
            left: list[_Waiter] = []
            failed = True
            try:
                self._thread = threading.current_thread()
                self._idle_until = time.monotonic() + IDLE_S
                while self._gather():
                    self._serve(self._watch.wait(self._versions, self._pause_s()))
                failed = False
            finally:
                if failed:
                    left = self._give_up()
                self._thread = None
                self._serving.release()
                if failed:  # each waiter checks its channel, comes back, and finds a new thread
                    self._nudge_all(left)
            if not self._inbox or self._stopping:
                return

    def _gather(self) -> bool:
        """Add new waiters and drop those that left. Returns False if the thread should end."""
        while self._inbox:
            waiter = self._inbox.popleft()
            self._waiters.setdefault(waiter.attachment, []).append(waiter)
            self._tidy(waiter.attachment)
        if self._some_left:
            self._some_left = False
            for attachment in list(self._waiters):
                self._tidy(attachment)
        now = time.monotonic()
        if self._waiters:
            self._idle_until = now + IDLE_S
        return bool(self._waiters or now < self._idle_until) and not self._stopping

    def _pause_s(self) -> float:
        return max(0.0, (self._look_at if self._waiters else self._idle_until) - time.monotonic())

    def _serve(self, ready: Iterable[Source]) -> None:
        """Wake the waiters of these channels that have something to check, or, if it is time to check which publishers
        are alive, those of all channels."""
        now = time.monotonic()
        if now >= self._look_at:
            self._look_at = now + LIVENESS_INTERVAL_S
            ready = list(self._waiters)
        for attachment in ready:
            self._find_due(attachment)
            self._tidy(attachment)
        while self._due:  # at the end: the thread of a loop that is woken needs the GIL at once
            self._due.popleft().nudge()

    def _find_due(self, attachment: Source) -> None:
        """Note the waiters that should check this channel."""
        version = attachment.version
        if isinstance(attachment, _core.QueueGate) and version > self._versions[attachment]:
            attachment.pass_on()  # it wakes one process, and the coroutines here may be busy or cancelled
        waiters = self._waiters[attachment]
        asks = any(waiter.or_lost and version <= waiter.newer_than for waiter in waiters)
        lost = asks and _is_lost(attachment)
        for waiter in waiters:
            if version > waiter.newer_than or (lost and waiter.or_lost):
                self._due.append(waiter)
                waiter.gone = True
            elif waiter.loop.is_closed():  # and its tasks were not cancelled
                waiter.gone = True

    def _tidy(self, attachment: Source) -> None:
        """Drop the waiters of a channel that are gone, and the channel with the last."""
        waiters = [waiter for waiter in self._waiters[attachment] if not waiter.gone]
        if waiters:
            self._waiters[attachment] = waiters
            self._versions[attachment] = min(waiter.newer_than for waiter in waiters)
        else:
            del self._waiters[attachment]
            self._versions.pop(attachment, None)

    def _give_up(self) -> list[_Waiter]:
        """Forget all waiters after a failure, and return them."""
        waiters = [*self._due, *(waiter for group in self._waiters.values() for waiter in group)]
        self._due.clear()
        self._waiters.clear()
        self._versions.clear()
        return waiters

    def _nudge_all(self, waiters: list[_Waiter]) -> None:
        """Wake these waiters, and those that came before ``_serving`` was released and so started no thread."""
        while self._inbox:
            waiters.append(self._inbox.popleft())
        for waiter in waiters:
            waiter.nudge()


#: the first has room for 127 channels; others exist only in a process that waits for more
_watchers = [_Watcher()]


def _watcher_for(attachment: Source) -> _Watcher:
    for watcher in list(_watchers):
        if watcher.has_room(attachment):
            return watcher
    watcher = _Watcher()
    _watchers.append(watcher)
    return watcher


def _after_fork() -> None:
    for watcher in _watchers:
        watcher.forget()
    _watchers[:] = [_Watcher()]


def _at_exit() -> None:
    for watcher in _watchers:
        watcher.stop()


os.register_at_fork(after_in_child=_after_fork)
atexit.register(_at_exit)
