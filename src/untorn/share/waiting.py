"""Waiting for channels in asyncio, without a busy thread per channel.

One daemon thread per process sleeps in the kernel on all channels that coroutines wait for, in any event loop::

    coroutine ── changed() ──> _Waiter ──> inbox, ring ──> thread: sleeps in _core.Watch on all channels
        ^                                                     │  something newer, or the publisher is gone
        └────── future <── loop.call_soon_threadsafe <────────┘

The thread decides nothing: it nudges, and the coroutine looks for itself. It starts with the first waiter and ends a
moment after the last. The kernel lets it sleep on 127 channels; each 127 more have one more thread.

Only the thread touches the table of waiters. Others put a new waiter into the inbox, or mark one
as gone, and ring. Nothing of this takes a lock: a coroutine that nobody awaits any more can be collected, and so leave,
between any two instructions of any thread; and a signal handler or a finalizer may begin to wait there. Which thread
serves is decided by the one that succeeds in taking ``_serving``, without waiting for it. It looks into the inbox once
more after it has given that up, and a thread that puts something in looks at ``_serving`` afterwards, so none is
forgotten.
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
from typing import TYPE_CHECKING, Generic, Self, final

from untorn import _core
from untorn.errors import BrokenChannelError, CapacityError
from untorn.share.snapshot import Snapshot
from untorn.typevars import T_co

if TYPE_CHECKING:
    import asyncio

__all__ = ["NewerSnapshots", "changed", "deadline_of"]

#: how often the kernel is asked whether the publishers of the channels that are waited for live
LIVENESS_INTERVAL_S = 0.2
#: how long the thread stays when nobody waits: coroutines come back between two versions
IDLE_S = 0.2


def deadline_of(timeout_s: float) -> float:
    """Return when a wait of so many seconds gives up, on the monotonic clock. Raises TypeError or ValueError."""
    if not isinstance(timeout_s, Real):
        raise TypeError(f"timeout_s: expected a number of seconds, found {type(timeout_s).__name__}")
    if math.isnan(timeout_s):
        raise ValueError("timeout_s: expected a number of seconds, found nan")
    return time.monotonic() + float(timeout_s)


async def changed(
    attachment: _core.Attachment, newer_than: int, *, or_lost: bool, timeout_s: float | None = None
) -> None:
    """Return when it is worth looking at the channel again: something newer is there, or time is up.

    Args:
        attachment: the channel.
        newer_than: the version that is known.
        or_lost: return also when the channel has no living publisher.
        timeout_s: seconds to wait at most.
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
    """What ``async for`` goes through. Keeps the number of the last snapshot, not the snapshot.

    Not an async generator: one that is left early stays suspended, with all that it refers to, until its loop gets
    round to closing it.
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


def _is_lost(attachment: _core.Attachment) -> bool:
    """Return whether it is time for the coroutines to look at the publisher themselves. It is also when the kernel does
    not say: they raise why."""
    try:
        return not attachment.publisher_alive()
    except OSError:
        return True


@final
class _Waiter:
    """One coroutine that waits for one channel."""

    __slots__ = ("attachment", "future", "gone", "loop", "newer_than", "or_lost")

    def __init__(
        self, attachment: _core.Attachment, newer_than: int, or_lost: bool, loop: asyncio.AbstractEventLoop
    ) -> None:
        self.attachment = attachment
        self.newer_than = newer_than
        self.or_lost = or_lost
        self.loop = loop
        self.future: asyncio.Future[None] = loop.create_future()
        self.gone = False  # it needs the thread no more

    def wake(self) -> None:
        """Let the coroutine go on. In its loop's thread."""
        if not self.future.done():
            self.future.set_result(None)

    def nudge(self) -> None:
        """Let the coroutine go on. From any thread."""
        self.gone = True
        with contextlib.suppress(RuntimeError):  # its loop is closed: nobody waits there any more
            self.loop.call_soon_threadsafe(self.wake)


@final
class _Watcher:
    """The thread, and what it knows."""

    def __init__(self, *, polls: bool = False) -> None:
        self._watch = _core.Watch(polls)
        self._serving = threading.Lock()  # held by the thread; others only ask whether it is
        self._thread: threading.Thread | None = None
        self._stopping = False
        self._inbox: deque[_Waiter] = deque()
        self._some_left = False
        # the thread's own: who waits for a channel, and the oldest version that any of them knows
        self._waiters: dict[_core.Attachment, list[_Waiter]] = {}
        self._versions: dict[_core.Attachment, int] = {}
        self._look_at = 0.0  # when to ask next who lives
        self._idle_until = 0.0

    def has_room(self, attachment: _core.Attachment) -> bool:
        """Return whether it can sleep on this channel as well. A guess: without room it would only be slower. False for
        a finalizer that the thread itself runs: that would wait for its own thread."""
        if self._thread is threading.current_thread():
            return False
        return attachment in self._waiters or len(self._waiters) + len(self._inbox) < _core.WATCH_WORDS

    def add(self, waiter: _Waiter) -> None:
        """Nudge this waiter when there is something to see; once. Raises CapacityError if no thread can be started."""
        self._inbox.append(waiter)
        if not self._serving.locked():  # one thread too many ends at once
            try:
                threading.Thread(target=self._run, name="untorn-waiting", daemon=True).start()
            except BaseException as error:
                with contextlib.suppress(ValueError):
                    self._inbox.remove(waiter)  # or its channel would stay open for a thread that never comes
                if not isinstance(error, RuntimeError):
                    raise
                raise CapacityError(
                    "waiting in asyncio needs one thread of this process, and the system does not start another; end "
                    "some threads or processes, raise `ulimit -u` or the control group's pids.max, or use wait() in a "
                    "thread that you have"
                ) from error
        self._watch.ring()

    def leave(self, waiter: _Waiter) -> None:
        """Nudge this waiter no more, and forget it. Takes no lock; from any thread."""
        if not waiter.gone:
            waiter.gone = True
            self._some_left = True
            self._watch.ring()

    def stop(self) -> None:
        """End the thread now, whoever waits."""
        self._stopping = True
        self._watch.ring()
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join()
        self._stopping = False

    def forget(self) -> None:
        """In a forked child, which has all this but not the thread: let everything go."""
        self._inbox.clear()
        self._waiters.clear()
        self._versions.clear()
        self._watch.forget()

    # -- what follows runs in the thread. No local of _run refers to a waiter or a channel while it sleeps.

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
                if failed:  # everybody looks for itself, comes back, and finds a new thread
                    self._nudge_all(left)
            if not self._inbox or self._stopping:
                return

    def _gather(self) -> bool:
        """Take in who came and let go who left; False when the thread is to end."""
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

    def _serve(self, ready: Iterable[_core.Attachment]) -> None:
        """Nudge who has something to see, at these channels or, when it is time to ask who lives, at all."""
        now = time.monotonic()
        if now >= self._look_at:
            self._look_at = now + LIVENESS_INTERVAL_S
            ready = list(self._waiters)
        for attachment in ready:
            lost, version = _is_lost(attachment), attachment.version
            for waiter in self._waiters[attachment]:
                if version > waiter.newer_than or (lost and waiter.or_lost):
                    waiter.nudge()
                elif waiter.loop.is_closed():  # without having cancelled its tasks
                    waiter.gone = True
            self._tidy(attachment)

    def _tidy(self, attachment: _core.Attachment) -> None:
        """Drop the waiters of a channel that are gone, and the channel with the last."""
        waiters = [waiter for waiter in self._waiters[attachment] if not waiter.gone]
        if waiters:
            self._waiters[attachment] = waiters
            self._versions[attachment] = min(waiter.newer_than for waiter in waiters)
        else:
            del self._waiters[attachment]
            self._versions.pop(attachment, None)

    def _give_up(self) -> list[_Waiter]:
        """Forget all waiters, after a failure; return those there were."""
        waiters = [waiter for group in self._waiters.values() for waiter in group]
        self._waiters.clear()
        self._versions.clear()
        return waiters

    def _nudge_all(self, waiters: list[_Waiter]) -> None:
        """Nudge these, and those that came until ``_serving`` was given up and so began no thread."""
        while self._inbox:
            waiters.append(self._inbox.popleft())
        for waiter in waiters:
            waiter.nudge()


#: the first has room for 127 channels; there are others only in a process that waits for more
_watchers = [_Watcher()]


def _watcher_for(attachment: _core.Attachment) -> _Watcher:
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
