"""Shards of one example, of which batch normalization can compute no variance.

Such a model is trained like any other: a small batch is cut into fewer shards, of two examples at least. Which models
need that is found out by trying one on an example, before the first step, where there are batches that small. A batch
of a single example, such as the last of an epoch, cannot be helped, and is refused then.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from untorn.train.data import Source, sampler

if TYPE_CHECKING:
    from untorn.train.trainer import Trainer

__all__ = ["least_examples"]

_STEP_OF_TRIAL = 2**40


def least_examples(trainer: Trainer, source: Source, *, examples: int, batch_size: int, cut: bool) -> int:
    """Return how many examples a shard of these batches has at least: 2 if the model cannot be trained on one, else 1.
    Raises ValueError if a batch has a single one then; ``cut``: by fit, not by the user."""
    last = examples % batch_size or batch_size
    shards = (trainer.shards if trainer.mode == "sync" else 1) * trainer.accumulate
    if min(batch_size, last) >= 2 * shards:
        return 1
    error = _failure(trainer, source, 1)
    if error is None or _failure(trainer, source, 2) is not None:  # what fails anyway is reported by the workers
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


def _failure(trainer: Trainer, source: Source, examples: int) -> Exception | None:
    """Return what the model raises for the first examples, if it is one that may."""
    if not trainer._replica.needs_several:
        return None
    try:
        batch = source.take(np.arange(examples) % source.examples)
    except Exception:  # whatever the dataset raises; the workers report it, with its place
        return None
    rng = sampler.shard_rng(trainer.seed, _STEP_OF_TRIAL, 0, 1)
    with trainer.snapshot() as snapshot:
        return trainer._replica.failure(trainer._params_of(snapshot), batch, rng)
