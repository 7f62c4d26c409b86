"""The sampler: every example once per epoch, in shards that depend only on seed, epoch, step and shard."""

import numpy as np
import pytest

from untorn.train.data.sampler import epoch_order, shard_bounds, shard_rng, steps_per_epoch


@pytest.mark.parametrize("examples", [1, 2, 17, 1000])
def test_an_order_has_every_example_once(examples):
    order = epoch_order(3, 0, examples)
    assert order.dtype == np.int64
    assert sorted(order) == list(range(examples))


def test_an_order_depends_on_seed_and_epoch():
    base = epoch_order(3, 5, 100)
    assert (base == epoch_order(3, 5, 100)).all()
    assert (base != epoch_order(3, 6, 100)).any()
    assert (base != epoch_order(4, 5, 100)).any()


def test_the_largest_seed_is_a_seed():
    assert sorted(epoch_order(2**63 - 1, 2**31, 10)) == list(range(10))
    shard_rng(2**63 - 1, 2**40, 1023, 1024).random()


@pytest.mark.parametrize(("examples", "batch_size", "steps"), [(1, 1, 1), (10, 10, 1), (11, 10, 2), (5, 100, 1)])
def test_steps_per_epoch_counts_the_last_smaller_batch(examples, batch_size, steps):
    assert steps_per_epoch(examples, batch_size) == steps


@pytest.mark.parametrize("shards", [1, 2, 3, 7, 16, 100])
@pytest.mark.parametrize(("examples", "batch_size"), [(1, 1), (64, 64), (65, 64), (103, 10), (5, 3)])
def test_shards_cover_an_epoch_in_order_without_overlap(shards, examples, batch_size):
    sizes = {"shards": shards, "examples": examples, "batch_size": batch_size}
    at = 0
    for step in range(steps_per_epoch(examples, batch_size)):
        parts = []
        for shard in range(shards):
            start, stop = shard_bounds(step, shard, **sizes)
            assert start == at
            at = stop
            parts.append(stop - start)
        assert max(parts) - min(parts) <= 1
        assert sum(parts) == min(batch_size, examples - step * batch_size)
    assert at == examples


def test_more_shards_than_examples_leaves_some_empty():
    bounds = [shard_bounds(0, shard, shards=8, examples=3, batch_size=3) for shard in range(8)]
    assert sum(start == stop for start, stop in bounds) == 5


def test_random_numbers_are_keyed_by_seed_step_and_shard():
    def draw(seed, step, shard):
        return tuple(shard_rng(seed, step, shard, 4).random(3))

    keys = [(seed, step, shard) for seed in (0, 1) for step in range(5) for shard in range(4)]
    assert len({draw(*key) for key in keys}) == len(keys)
    assert draw(0, 3, 2) == draw(0, 3, 2)


def test_the_order_and_the_shards_use_different_streams():
    order = epoch_order(7, 0, 50)
    assert (shard_rng(7, 0, 0, 1).permutation(50) != order).any()
