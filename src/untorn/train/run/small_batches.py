"""The minimum size of a shard, for models that cannot be trained on a single example.

Batch normalization, for one, can compute no variance of a single example. For such a model, a small batch is cut into
fewer shards, of at least two examples. To find out, this tries the model on one example before the first step, if a
batch is that small. A batch of a single example, such as the last one of an epoch, is then refused.
"""

from __future__ import annotations

import numpy as np

from untorn.train.data import Source, sampler
from untorn.train.run.local_model import LocalModel
from untorn.train.run.weights import Weights
from untorn.train.settings import Settings

__all__ = ["min_shard_examples"]

_STEP_OF_TRIAL = 2**40


def min_shard_examples(
    local: LocalModel,
    weights: Weights,
    source: Source,
    settings: Settings,
    *,
    examples: int,
    batch_size: int,
    cut: bool,
) -> int:
    """Return the minimum number of examples of a shard: 2 if the model cannot be trained on a single one, else 1.
    Raises ValueError if it is 2 and a batch has a single example. ``cut`` says whether fit cuts the batches, or else
    the user; the message depends on it."""

    def failure(count: int) -> Exception | None:
        """Return the exception that the model raises for the first examples, or None."""
        if not local.replica.needs_several:
            return None
        try:
            batch = source.take(np.arange(count) % source.examples)
        except Exception:  # from the dataset; the workers will report it, with the examples
            return None
        rng = sampler.shard_rng(settings.seed, _STEP_OF_TRIAL, 0, 1)
        with weights.snapshot() as snapshot:
            return local.replica.failure(local.params(snapshot), batch, rng)

    last = examples % batch_size or batch_size
    if min(batch_size, last) >= 2 * settings.parts:
        return 1
    error = failure(1)
    if error is None or failure(2) is not None:  # the workers will report a model that always fails
        return 1
    if 1 not in (last, batch_size):
        return 2
    found, advice = "a batch has a single example", "give batches of at least two"
    if cut:
        found = f"{examples} examples in batches of {batch_size} leave a last batch of one"
        advice = "leave it out with drop_last=True, or choose another batch_size"
    if cut and batch_size == 1:
        found, advice = "batch_size is 1", "choose a larger one"
    raise ValueError(
        f"data: {found}, and the model cannot be trained on one example ({type(error).__name__}: {error}); {advice}"
    )
