"""Shards of one example, of which batch normalization can compute no variance.

Such a model is trained like any other: a small batch is cut into fewer shards, of two examples at least. Whether a
model needs that is found out by trying it on an example, before the first step, where there are batches that small. A
batch of a single example, such as the last of an epoch, cannot be helped, and is refused then.
"""

from __future__ import annotations

import numpy as np

from untorn.train.data import Source, sampler
from untorn.train.run.local_model import LocalModel
from untorn.train.run.weights import Weights
from untorn.train.settings import Settings

__all__ = ["least_examples"]

_STEP_OF_TRIAL = 2**40


def least_examples(
    local: LocalModel,
    weights: Weights,
    source: Source,
    settings: Settings,
    *,
    examples: int,
    batch_size: int,
    cut: bool,
) -> int:
    """Return how many examples a shard of these batches has at least: 2 if the model cannot be trained on one, else 1.
    Raises ValueError if a batch has a single one then; ``cut``: by fit, not by the user."""

    def failure(count: int) -> Exception | None:
        """Return what the model raises for the first examples, if it is one that may."""
        if not local.replica.needs_several:
            return None
        try:
            batch = source.take(np.arange(count) % source.examples)
        except Exception:  # whatever the dataset raises; the workers report it, with its place
            return None
        rng = sampler.shard_rng(settings.seed, _STEP_OF_TRIAL, 0, 1)
        with weights.snapshot() as snapshot:
            return local.replica.failure(local.params(snapshot), batch, rng)

    last = examples % batch_size or batch_size
    if min(batch_size, last) >= 2 * settings.parts:
        return 1
    error = failure(1)
    if error is None or failure(2) is not None:  # what fails anyway is reported by the workers
        return 1
    if 1 not in (last, batch_size):
        return 2
    found, advice = "a batch has a single example", "give batches of two at least"
    if cut:
        found = f"{examples} examples in batches of {batch_size} leave a last batch of one"
        advice = "leave it out with drop_last=True, or choose another batch_size"
    if cut and batch_size == 1:
        found, advice = "batch_size is 1", "choose a larger one"
    raise ValueError(
        f"data: {found}, and the model cannot be trained on one example ({type(error).__name__}: {error}); {advice}"
    )
