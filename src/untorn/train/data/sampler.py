"""Choose the examples of each shard of each step, by pure functions of seed, epoch, step and shard.

Nothing here depends on the number of workers, and so the result does not either.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["ShardRandom", "epoch_order", "shard_bounds", "shard_rng", "steps_per_epoch", "used_examples"]

# different uses of the same seed draw from different streams
_ORDER_STREAM = 2**63


def epoch_order(seed: int, epoch: int, examples: int) -> NDArray[np.int64]:
    """Return the order of the examples in an epoch, shape (examples,), drawn from Philox keyed by (seed, epoch)."""
    key = np.array([seed, _ORDER_STREAM + epoch], np.uint64)
    return np.random.Generator(np.random.Philox(key=key)).permutation(examples)


def used_examples(examples: int, batch_size: int, *, drop_last: bool) -> tuple[int, int]:
    """Return the batch size and the number of examples in an epoch. Raises ValueError if ``drop_last`` leaves none."""
    if not drop_last:
        return min(batch_size, examples), examples
    if batch_size > examples:
        raise ValueError(
            f"drop_last: no batch is left; expected at least batch_size={batch_size:,} examples, found {examples:,}"
        )
    return batch_size, examples - examples % batch_size


def steps_per_epoch(examples: int, batch_size: int) -> int:
    """Return the number of batches in an epoch, of which the last may be smaller."""
    return -(-examples // batch_size)


def shard_bounds(
    step: int, shard: int, *, shards: int, examples: int, batch_size: int, min_examples: int = 1
) -> tuple[int, int]:
    """Return the positions [start, stop) in the epoch's order of one shard of one step of the epoch.

    A batch is cut into parts whose sizes differ by at most one; parts of a small batch may be empty. If they would have
    fewer than ``min_examples`` examples, the first few shards share the batch and the others are empty.
    """
    start = step * batch_size
    size = min(batch_size, examples - start)
    if size < min_examples * shards and min_examples > 1:
        shards = max(1, size // min_examples)
        shard = min(shard, shards)
        if shard == shards:
            return start + size, start + size
    return start + size * shard // shards, start + size * (shard + 1) // shards


def shard_rng(seed: int, step: int, shard: int, shards: int) -> np.random.Generator:
    """Return the generator of one shard of one step since training began: Philox keyed by (seed, step and shard)."""
    return ShardRandom(seed, shards).rng(step, shard)


class ShardRandom:
    """The random numbers of one shard after another. It resets a single generator for each shard, since making a
    new one takes ten times as long.

    Example:
        >>> random = ShardRandom(seed=0, shards=2)
        >>> first = random.rng(step=0, shard=0).random()
        >>> first == random.rng(step=0, shard=1).random()
        False
        >>> first == random.rng(step=0, shard=0).random()
        True
    """

    def __init__(self, seed: int, shards: int) -> None:
        self._seed = seed
        self._shards = shards
        self._philox = np.random.Philox(key=0)
        self._rng = np.random.Generator(self._philox)
        self._state: Any = self._philox.state  # before anything is drawn

    def rng(self, step: int, shard: int) -> np.random.Generator:
        """Return the generator for one shard of one step since training began. It is the same object each time."""
        self._state["state"]["key"] = (self._seed, step * self._shards + shard)
        self._philox.state = self._state
        return self._rng
