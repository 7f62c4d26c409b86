"""Check a model on a part of its data before it is trained: ``Trainer.check``.

::

    B          a small batch                                  loss and gradient
    B B B B    each of its examples four times                the same for means, four times as much for sums
    first half of B, second half of B                         their mean is that of B, if shards do not matter
    B, with weights moved a little in some direction          the slope that the gradient says

All of it is computed in this process, from the newest weights. Nothing is changed.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from untorn.engines.threads import threads_limited
from untorn.share.lowlevel import flatten
from untorn.train.arguments import checked_count
from untorn.train.data import Source, batch_size_of, batches_of, sampler, source_of
from untorn.train.models.base import Gradient, Replica, Rows
from untorn.train.settings import Settings
from untorn.trees import path_of, paths, unflatten

__all__ = ["Check", "check", "data_to_check"]

Scale = Literal["mean", "sum", "other", "unknown"]
_Array = NDArray[Any]

#: the most examples of the batch that is repeated, and how often each of them is
_EXAMPLES = 64
_TIMES = 4
#: how far from a mean (0) or a sum (1) the growth with the number of examples may be: random numbers disturb it
_GROWTH = 0.15
#: the step of a difference, in units of a weight's size, and the relative error that is an error: for models that
#: compute in float64, and for others
_EXACT, _COARSE = (1e-6, 1e-3), (3e-3, 0.1)
#: what a step of several processes costs beside its computations
_HANDOVER_S = 1e-4
#: how often a time is measured
_REPEATS = 3
#: fewer workers are enough if they are as fast as the fastest number within this
_WORTH = 0.05
_STEP = 2**41


@dataclass(frozen=True, kw_only=True)
class Slope:
    """The change of the loss with a change of one parameter array, all of whose numbers move a little, up or down at
    random; for models that differentiate themselves, of all parameters along the gradient.

    Attributes:
        gradient: as the model's gradient says it.
        numerical: as losses on both sides say it.
        agree: whether these are equal within the precision of the model.
    """

    gradient: float
    numerical: float
    agree: bool


@dataclass(frozen=True, kw_only=True)
class Check:
    """What Trainer.check found. ``str()`` and ``repr()`` are a report.

    Attributes:
        problems: what is wrong and what to do about it; empty if nothing is.
        notes: what may be intended.
        loss: of the newest weights, on the first examples.
        loss_scale, gradient_scale: "mean", "sum", "other" (neither), or "unknown" (it is zero).
        shards_matter: whether the mean of the gradients of two halves differs from that of the whole batch, as it does
            with batch normalization; None if the batch was too small to tell.
        slopes: by parameter, the slope of the loss as the gradient says it, and as differences of losses say it.
        gradient_s: seconds to compute the gradient of one shard of a whole batch, with ``threads_per_worker`` threads.
        read_s: seconds to read these examples.
        step_s: estimated seconds of a step, by number of workers.
        workers: the smallest number of workers that is about as fast as any, by this estimate.
    """

    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    loss: float
    loss_scale: Scale
    gradient_scale: Scale
    shards_matter: bool | None
    slopes: dict[str, Slope]
    gradient_s: float
    read_s: float
    step_s: dict[int, float]
    workers: int

    @property
    def ok(self) -> bool:
        """Whether there are no problems."""
        return not self.problems

    def __repr__(self) -> str:
        agree = sum(slope.agree for slope in self.slopes.values())
        shards = {True: "matter", False: "do not matter", None: "not known"}[self.shards_matter]
        rows = [
            (
                "loss",
                f"{self.loss:.6g}, a {self.loss_scale}" if self.loss_scale in ("mean", "sum") else f"{self.loss:.6g}",
            ),
            ("gradient", f"a {self.gradient_scale}" if self.gradient_scale in ("mean", "sum") else self.gradient_scale),
            ("slopes", f"{agree} of {len(self.slopes)} agree with the gradient"),
            ("shards", shards),
            ("shard", f"{_time(self.gradient_s)} for the gradient, {_time(self.read_s)} to read its examples"),
            ("step", ", ".join(f"{_time(s)} with {_workers(n)}" for n, s in self.step_s.items())),
            ("advice", _workers(self.workers)),
        ]
        lines = [
            "<Check: no problem>"
            if self.ok
            else f"<Check: {len(self.problems)} problem{'s' * (len(self.problems) != 1)}>"
        ]
        lines += [f"  {name:<9} {text}" for name, text in rows]
        lines += [f"  problem:  {text}" for text in self.problems]
        return "\n".join(lines + [f"  note:     {text}" for text in self.notes])


def check(
    source: Source,
    batch_size: int,
    *,
    replica: Replica,
    params: Any,
    trained: int,
    settings: Settings,
    exact: bool,
) -> Check:
    """Check a model. Raises what the model raises; NonFiniteLossError for a loss that is not finite.

    Args:
        source: its data.
        batch_size: the examples of a step.
        replica: the model, in this process.
        params: the weights, a tree of arrays.
        trained: the number of arrays that are trained, which come last.
        settings: those of the training.
        exact: check the gradient of each array, in float64; else only along the gradient.
    """
    batch_size = min(batch_size, source.examples)
    shard = max(1, -(-batch_size // settings.parts))
    count = min(max(shard, 2), _EXAMPLES, source.examples)
    chosen = np.arange(max(1, count - count % 2))
    with threads_limited(settings.threads_per_worker):
        probe = _Probe(source, replica, params, settings.seed, trained)
        loss, gradients = probe.at(chosen)
        repeated = probe.at(np.tile(chosen, _TIMES))
        scales = _scale(loss, repeated[0]), _scale(_norm(gradients), _norm(repeated[1]))
        # the halves of a sum add up to twice as much as it
        matter = None if "sum" in scales else _shards_matter(probe, chosen, gradients)
        slopes = probe.slopes(chosen, gradients) if exact else probe.slope_along(chosen, loss, gradients)
        costs = _costs(probe, np.arange(shard), settings)
    problems, notes = _verdict(*scales, slopes, exact=exact)
    if matter:
        notes.append(
            "the gradients of two halves of a batch do not average to that of the whole (batch normalization, losses "
            "between examples, weighted classes, dropout): the result depends on shards=; with shards=1 it is that of "
            "one process"
        )
    return Check(
        problems=problems, notes=notes, loss=loss, loss_scale=scales[0], gradient_scale=scales[1],
        shards_matter=matter, slopes=slopes, **costs,
    )  # fmt: skip


def data_to_check(data: Any, arrays: Callable[[Any], Any], batch_size: int | None) -> tuple[Source, int]:
    """Return the source of the data, or of the first batch of an iterable, and the examples of a step."""
    if batches_of(data) is not None:
        if batch_size is not None:
            raise ValueError("batch_size: the data is an iterable of batches, which has its own; leave it out")
        if isinstance(data, Iterator):
            raise TypeError("data: an iterator would lose the batch that is checked; give that batch, and batch_size=")
        source = source_of("data", arrays(next(iter(data))))
        return source, source.examples
    batch_size = batch_size_of(data) if batch_size is None else batch_size
    if batch_size is None:
        raise TypeError("check() needs batch_size=, the examples per step; only iterables of batches have their own")
    return source_of("data", arrays(data)), checked_count("batch_size", batch_size, 1, 2**31)


class _Probe:
    """Computes losses and gradients of chosen examples, always with the same random numbers."""

    def __init__(self, source: Source, replica: Replica, params: Any, seed: int, trained: int) -> None:
        self.source = source
        self._replica = replica
        self._seed = seed
        self._trained = trained
        self._spec, self._leaves = flatten(params)
        self._first = len(self._leaves) - trained
        self._names = [path_of(path) for path in paths(self._spec)][self._first :]

    def of(self, batch: Any, leaves: list[Any] | None = None) -> Gradient:
        """Return loss and gradient of a batch, with these weights or with the newest."""
        rng = sampler.shard_rng(self._seed, _STEP, 0, 1) if self._replica.takes_rng else None
        return self._replica(unflatten(self._spec, self._leaves if leaves is None else leaves), batch, rng)

    def at(self, indices: NDArray[np.int64]) -> tuple[float, list[_Array]]:
        """Return the loss and the gradients of these examples."""
        found = self.of(self.source.take(indices))
        leaves = [g.dense() if isinstance(g, Rows) else g for g in found.leaves[len(found.leaves) - self._trained :]]
        gradients = zip(leaves, self._leaves[self._first :], strict=True)
        return found.loss, [np.array(np.zeros(leaf.shape) if g is None else g, np.float64) for g, leaf in gradients]

    @property
    def nbytes(self) -> int:
        """The size of the parameters that are trained."""
        return sum(leaf.nbytes for leaf in self._leaves[self._first :])

    def slopes(self, chosen: NDArray[np.int64], gradients: list[_Array]) -> dict[str, Slope]:
        """Return the slope of each parameter array in a random direction, in float64 if the model can."""
        wide = [leaf.astype(np.float64) for leaf in self._leaves]
        try:
            self.of(self.source.take(chosen), wide)
        except Exception:  # such as compiled code for float32
            wide = self._leaves
        rng, slopes = np.random.default_rng(self._seed), {}
        for index, (name, gradient) in enumerate(zip(self._names, gradients, strict=True), self._first):
            signs = rng.choice([-1.0, 1.0], size=gradient.shape)
            size = max(math.sqrt(float(np.square(wide[index]).mean())), 1e-2) if gradient.size else 1.0

            def slope(length: float, index: int = index, signs: Any = signs) -> float:
                return self._difference(chosen, wide, {index: signs * length}) / length

            said, norm = float((gradient * signs).sum()), math.sqrt(float(np.square(gradient).sum()))
            step, error = _EXACT
            numerical = slope(size * step)
            # float32, in the weights or inside the model, leaves fewer digits: the differences are noise, or zero
            noise = wide is self._leaves or (numerical == 0 and said != 0)
            if noise or not _agree(numerical, slope(10 * size * step), 10 * error, norm):
                step, error = _COARSE
                numerical = slope(size * step)
            slopes[name] = Slope(gradient=said, numerical=numerical, agree=_agree(said, numerical, error, norm))
        return slopes

    def slope_along(self, chosen: NDArray[np.int64], loss: float, gradients: list[_Array]) -> dict[str, Slope]:
        """Return the slope of all parameters along the gradient, which a model in float32 can tell."""
        norm = math.sqrt(sum(float(np.square(gradient).sum()) for gradient in gradients))
        if norm == 0:
            return {}
        length = 1e-2 * max(abs(loss), 1e-3) / norm  # the loss changes by about a hundredth
        moves = {index: length / norm * gradient for index, gradient in enumerate(gradients, self._first)}
        numerical = self._difference(chosen, self._leaves, moves) / length
        return {"all": Slope(gradient=norm, numerical=numerical, agree=_agree(norm, numerical, _COARSE[1], norm))}

    def _difference(self, chosen: NDArray[np.int64], leaves: list[_Array], moves: dict[int, Any]) -> float:
        """Return half the difference of the losses after these moves and after their opposites."""

        def loss(sign: int) -> float:
            moved = [
                np.array(leaf + sign * moves[index], leaf.dtype) if index in moves else leaf
                for index, leaf in enumerate(leaves)
            ]
            return self.of(self.source.take(chosen), moved).loss

        return (loss(1) - loss(-1)) / 2


def _agree(one: float, other: float, error: float, scale: float) -> bool:
    return abs(one - other) <= error * max(abs(one), abs(other), scale) + 1e-12


# -- means and sums


def _scale(once: float, repeated: float) -> Scale:
    """Return what a number is, from its value for a batch and for one with each example several times."""
    if abs(once) < 1e-9 and abs(repeated) < 1e-9:
        return "unknown"
    if once == 0 or repeated / once <= 0:
        return "other"
    growth = math.log(repeated / once) / math.log(_TIMES)
    return "mean" if abs(growth) < _GROWTH else "sum" if abs(growth - 1) < _GROWTH else "other"


def _norm(gradients: list[_Array]) -> float:
    return math.sqrt(sum(float(np.square(gradient).sum()) for gradient in gradients))


def _shards_matter(probe: _Probe, chosen: NDArray[np.int64], whole: list[_Array]) -> bool | None:
    half = len(chosen) // 2
    if half < 2:
        return None
    first, second = probe.at(chosen[:half])[1], probe.at(chosen[half:])[1]
    distance = _norm([(one + other) / 2 - each for one, other, each in zip(first, second, whole, strict=True)])
    return distance > 1e-3 * max(_norm(whole), 1e-6)


def _verdict(loss: Scale, gradient: Scale, slopes: dict[str, Slope], *, exact: bool) -> tuple[list[str], list[str]]:
    """Return the problems, and the notes."""
    problems, notes = [], []
    if loss == gradient == "sum":
        problems.append(
            "loss and gradient are sums over the batch: return means, divided by the number of examples; a sum makes "
            "the learning rate depend on batch_size, and the parts of a batch are averaged as means"
        )
    elif "sum" in (loss, gradient):
        summed, other, kind = ("loss", "gradient", gradient) if loss == "sum" else ("gradient", "loss", loss)
        problems.append(
            f"the {summed} is a sum over the batch, and the {other} is {'a mean' if kind == 'mean' else 'not'}: divide "
            f"the {summed} by the number of examples"
        )
    elif "other" in (loss, gradient):
        notes.append(
            "loss or gradient change when each example of a batch comes four times, and are no sums: as with terms "
            "between the examples of a batch, or a penalty that is added to a sum"
        )
    for name, slope in slopes.items():
        if slope.agree or loss != gradient == "sum":
            continue
        numbers = f"{slope.gradient:.6g}, and the loss changes by {slope.numerical:.6g}"
        if exact:
            problems.append(f"the gradient of {name!r} is wrong: in a random direction it says {numbers}")
        else:
            notes.append(
                f"along the gradient it says {numbers}: a part of the loss may not reach the gradient (detach, "
                "stop_gradient), or jump"
            )
    return problems, notes


# -- costs


def _costs(probe: _Probe, indices: NDArray[np.int64], settings: Settings) -> dict[str, Any]:
    """Return the measured times, and what they say about a step."""
    read_s = _seconds(lambda: probe.source.take(indices))
    batch = probe.source.take(indices)
    gradient_s = _seconds(lambda: probe.of(batch))
    numbers, other = np.ones(max(1, probe.nbytes // 4), np.float32), np.ones(max(1, probe.nbytes // 4), np.float32)
    pass_s = _seconds(lambda: np.add(numbers, other, out=other))
    shards = settings.shards
    most = settings.places if settings.is_async else min(settings.places, shards)
    counts = {1 << power for power in range(max(1, most).bit_length())} | {max(1, most), settings.workers}
    step_s = {}
    for workers in sorted(counts):
        at_once = max(1, min(workers, settings.places))
        rounds = 1 / at_once if settings.is_async else -(-shards // at_once)
        update_s = (shards + 2) * pass_s / at_once
        step_s[workers] = rounds * settings.accumulate * (gradient_s + read_s) + update_s + _HANDOVER_S
    least = min(step_s.values())
    advice = min(workers for workers, seconds in step_s.items() if seconds <= least * (1 + _WORTH))
    return {"gradient_s": gradient_s, "read_s": read_s, "step_s": step_s, "workers": advice}


def _seconds(call: Callable[[], Any]) -> float:
    """Return the median of a few calls, after one to warm up."""
    call()
    times = []
    for _ in range(_REPEATS):
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
    return sorted(times)[_REPEATS // 2]


def _time(seconds: float) -> str:
    return (
        f"{seconds:.2f} s"
        if seconds >= 1
        else f"{seconds * 1e3:.3g} ms"
        if seconds >= 1e-3
        else f"{seconds * 1e6:.3g} us"
    )


def _workers(count: int) -> str:
    return f"{count} worker{'s' * (count != 1)}"
