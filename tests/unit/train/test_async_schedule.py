"""The schedule of async training: the bound on the staleness holds for every order of arrival."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from untorn.train.run.async_schedule import AsyncSchedule, may_apply


def train(rng: random.Random, bound: int, batches: int, slow: int) -> list[int]:
    """Run batches by the rule of AsyncSchedule, with workers that take random times. Return the staleness of each
    gradient. The first ``slow`` batches take until nothing else can continue."""
    under_way: dict[int, int] = {}
    ready: set[int] = set()
    found, made, opened = [], 0, 0
    while made < batches:
        while len(under_way) <= bound and opened < batches:
            under_way[opened] = made
            opened += 1
        waiting = [batch for batch in under_way if batch not in ready]
        quick = [batch for batch in waiting if batch >= slow]
        may = [
            batch
            for batch in ready
            if may_apply(made, [since for other, since in under_way.items() if other != batch], bound)
        ]
        if may and rng.random() < 0.8:
            batch = rng.choice(may)
            found.append(made - under_way.pop(batch))
            ready.remove(batch)
            made += 1
        elif quick or waiting:
            ready.add(rng.choice(quick or waiting))
        else:
            assert may, "everything is there, and nothing may be applied"
    return found


@given(seed=st.integers(0, 2**32), bound=st.integers(0, 6), slow=st.integers(0, 8))
def test_no_gradient_is_older_than_the_bound_and_none_waits_for_ever(seed, bound, slow):
    staleness = train(random.Random(seed), bound, 40, slow)
    assert len(staleness) == 40
    assert max(staleness) <= bound


def test_the_bound_is_used_up(rng):
    assert max(train(rng, 3, 200, 1)) == 3


@pytest.mark.parametrize("bound", [0, 1, 5])
def test_all_that_began_together_may_be_applied_in_any_order(bound):
    for left in range(bound + 1):
        assert may_apply(bound - left, [0] * left, bound)
    assert not may_apply(1, [0] * bound, bound) or bound == 0


def drive(schedule: AsyncSchedule, rng: random.Random, *, first: int, until: int, holds: bool) -> list[int]:
    """Run a schedule without a board; return the staleness of each gradient, in the order in which they are applied."""
    batches: dict[int, int] = {}
    since: dict[int, int] = {}
    arrived: set[int] = set()
    found: list[int] = []
    schedule.begin(first=first, until=until)
    made = first
    while made < until:
        while (slot := schedule.next_start()) is not None:
            assert slot not in batches, "a slot has one batch at a time"
            batches[slot], since[slot] = schedule.next_batch, made
            schedule.started(slot, made=made)
        assert batches, "there is work, and nothing is in flight"
        slot = schedule.next_apply(arrived.__contains__, made=made)
        if slot is not None:
            assert slot in arrived
            found.append(made - since.pop(slot))
            del batches[slot]
            arrived.remove(slot)
            schedule.applied(slot)
            made += 1
            continue
        waiting = sorted(batches.keys() - arrived)
        assert waiting, "all have arrived, and nothing may be applied"
        arrived.add(rng.choice(waiting))
        if holds and rng.random() < 0.2 and schedule.hold():
            assert schedule.next_start() is None
            schedule.release()
        else:
            schedule.release()
    assert schedule.next_start() is None
    assert not schedule.in_flight
    return found


@given(seed=st.integers(0, 2**32), bound=st.integers(0, 6), holds=st.booleans())
def test_a_schedule_applies_every_batch_within_the_bound(seed, bound, holds):
    rng, schedule = random.Random(seed), AsyncSchedule(bound + 1, bound)
    for first, until in ((0, 12), (12, 13), (13, 40)):
        staleness = drive(schedule, rng, first=first, until=until, holds=holds)
        assert len(staleness) == until - first
        assert max(staleness) <= bound


def test_with_a_bound_of_0_one_batch_is_in_flight(rng):
    schedule = AsyncSchedule(1, 0)
    schedule.begin(first=0, until=2)
    assert schedule.next_start() == 0
    schedule.started(0, made=0)
    assert schedule.next_start() is None
    assert schedule.next_apply(lambda slot: False, made=0) is None
    assert schedule.next_apply(lambda slot: True, made=0) == 0


def test_nothing_begins_while_a_schedule_is_held():
    schedule = AsyncSchedule(2, 1)
    schedule.begin(first=0, until=4)
    schedule.started(0, made=0)
    assert not schedule.hold()
    assert schedule.next_start() is None
    schedule.applied(0)
    assert schedule.hold()
    schedule.release()
    assert schedule.next_start() == 0


def test_the_batch_that_was_begun_first_is_applied_first():
    schedule = AsyncSchedule(3, 2)
    schedule.begin(first=0, until=3)
    for slot in (2, 0, 1):
        schedule.started(slot, made=0)
    assert schedule.next_apply(lambda slot: True, made=0) == 2
    assert schedule.next_apply(lambda slot: slot < 2, made=0) == 0
