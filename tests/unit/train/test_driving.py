"""The rule for applying gradients: it keeps the bound of async training for any order of gradients."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from untorn.train.run.steps import may_apply


def train(rng: random.Random, bound: int, batches: int, slow: int) -> list[int]:
    """Lanes as driving.Lanes runs them, with workers that take any time; the staleness of each gradient. ``slow``: so
    many of the first batches take until nothing else can go on."""
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
