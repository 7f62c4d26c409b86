"""Waiting at a queue, for items or for room. A wait looks for dead processes, and undoes what they left."""

from __future__ import annotations

import math
import time

from untorn import _core
from untorn.share import waiting

__all__ = ["LIVENESS_INTERVAL_S", "deadline_of", "wait", "wait_async"]

#: how often a waiting process looks for dead ones
LIVENESS_INTERVAL_S = 0.1


def deadline_of(block: bool, timeout: float | None, timeout_s: float | None) -> float | None:
    """Return the time by the monotonic clock at which a wait ends; None for never. Raises TypeError or ValueError."""
    if block not in (True, False):
        raise TypeError(f"block: expected True or False, found {block!r}; a time in seconds is timeout_s=")
    if timeout is not None and timeout_s is not None:
        raise TypeError("timeout and timeout_s are the same; pass one of them")
    longest = timeout_s if timeout is None else timeout
    if not block:
        return -math.inf
    return None if longest is None else waiting.deadline_of(longest)


def wait(core: _core.Queue, for_room: bool, seen: int, deadline: float | None) -> bool:
    """Wait for events other than those seen, a moment at most. Returns False if time is up."""
    left = LIVENESS_INTERVAL_S if deadline is None else deadline - time.monotonic()
    if left <= 0:
        return False
    try:
        if not core.wait(for_room, seen, min(left, LIVENESS_INTERVAL_S)) and left > LIVENESS_INTERVAL_S:
            core.look_for_dead()
    except BaseException:  # of a signal handler: what this process may have been woken for is there for another one
        core.pass_on(for_room)
        raise
    return True


async def wait_async(
    core: _core.Queue, gates: dict[bool, _core.QueueGate], for_room: bool, seen: int, deadline: float | None
) -> bool:
    """Wait as wait() does, but in asyncio. ``gates`` keeps what it waits at for the next time."""
    left = LIVENESS_INTERVAL_S if deadline is None else deadline - time.monotonic()
    if left <= 0:
        return False
    gate = gates.get(for_room)
    if gate is None:
        gate = gates[for_room] = _core.QueueGate(core, for_room)
    await waiting.changed(gate, seen, or_lost=False, timeout_s=min(left, LIVENESS_INTERVAL_S))
    if core.events(for_room) == seen:
        core.look_for_dead()
    return True
