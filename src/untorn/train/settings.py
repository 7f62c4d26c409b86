"""The settings of a Trainer, fixed when it is made.

checked_settings() checks the arguments and fills in the defaults. A Settings object never changes, so every part of a
training may keep it: the pool, the loop, the evaluator and the training state.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Generic, Self, get_args, overload

from untorn.engines import StartMethod
from untorn.engines.nodes import Cluster
from untorn.train.arguments import check_busy, checked_count, checked_shards, checked_staleness
from untorn.train.interfaces import Mode
from untorn.train.optim.fused import check_clip_norm
from untorn.train.run.cpus import available_cpus
from untorn.typevars import T_co

__all__ = ["Setting", "Settings", "checked_settings"]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The checked arguments of a Trainer; Trainer documents the ones that are not listed here.

    Attributes:
        shards: the number of parts of a batch; 1 in async mode.
        max_staleness: the bound on the staleness; 0 in sync mode.
        workers: the initial number of workers.
        tuned: whether the number of workers is tuned while training runs.
        places: the number of workers that the processors have room for.
        nodes: the initial number of nodes; 0 if all workers are on this machine.
    """

    engine: str
    mode: Mode
    shards: int
    max_staleness: int
    seed: int
    clip_norm: float | None
    accumulate: int
    threads_per_worker: int
    max_restarts: int
    start_method: StartMethod
    workers: int
    tuned: bool
    places: int
    nodes: int

    @property
    def is_async(self) -> bool:
        """Whether each gradient is applied when it arrives."""
        return self.mode == "async"

    @property
    def is_serial(self) -> bool:
        """Whether the only worker is this process."""
        return self.engine == "serial"

    @property
    def parts(self) -> int:
        """The number of parts that a batch is computed in."""
        return self.shards * self.accumulate

    def check_workers(self, workers: Any) -> int:
        """Return the number of workers for resize(). Raises TypeError or ValueError if it is not allowed."""
        count = checked_count("workers", workers, 1, 1000)
        if self.is_async:
            check_busy(count, self.max_staleness)
        return count

    def for_checkpoint(self) -> dict[str, Any]:
        """Return the settings that the bits of a result depend on, as a checkpoint stores them."""
        return {
            "seed": self.seed,
            "shards": self.shards,
            "mode": self.mode,
            "accumulate": self.accumulate,
            "clip_norm": self.clip_norm,
        }


class Setting(Generic[T_co]):
    """An attribute of a Trainer that reads one of its Settings, in ``_settings``, and cannot be set."""

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    @overload
    def __get__(self, trainer: None, owner: type) -> Self: ...

    @overload
    def __get__(self, trainer: object, owner: type) -> T_co: ...

    def __get__(self, trainer: Any, owner: type) -> Any:
        return self if trainer is None else getattr(vars(trainer)["_settings"], self._name)

    def __set__(self, trainer: Any, value: object) -> None:
        raise AttributeError(f"{self._name}: it is set when the Trainer is made; make another Trainer with {value!r}")


def checked_settings(
    *,
    workers: Any,
    engine: Any,
    shards: int | None,
    mode: Mode,
    max_staleness: int | None,
    seed: int,
    clip_norm: float | None,
    accumulate: int,
    threads_per_worker: int,
    max_restarts: int,
    start_method: Any,
    cluster: Cluster | None,
) -> Settings:
    """Check the arguments of a Trainer and fill in the defaults. ``cluster`` has the nodes, if there are any. Raises
    TypeError or ValueError."""
    if cluster is None and engine not in ("processes", "serial"):
        raise ValueError(f"engine: expected 'processes', 'serial', 'ray' or 'loopback', found {engine!r}")
    if start_method not in get_args(StartMethod):
        raise ValueError(f"start_method: expected 'forkserver' or 'spawn', found {start_method!r}")
    seed = checked_count("seed", seed, 0, 2**63 - 1)
    accumulate = checked_count("accumulate", accumulate, 1, 1_000_000)
    threads_per_worker = checked_count("threads_per_worker", threads_per_worker, 1, 1024)
    if isinstance(workers, str) and workers != "auto":
        raise TypeError(f"workers: expected an int or 'auto', found {workers!r}")
    cpus = available_cpus()
    fitting = max(1, cpus // threads_per_worker)
    given = workers is not None and workers != "auto"
    nodes = 0
    if cluster is not None:
        engine, nodes = cluster.name, cluster.wanted()
        workers, given = cluster.workers, True
    count = checked_count("workers", workers, 1, 1000) if given else fitting
    staleness = checked_staleness(mode, max_staleness, count, given=given)
    if mode == "async":
        count = min(count, staleness + 1)
    return Settings(
        engine=engine,
        mode=mode,
        shards=checked_shards(mode, shards, count * max(1, nodes) if given else fitting),
        max_staleness=staleness,
        seed=seed,
        clip_norm=check_clip_norm(clip_norm),
        accumulate=accumulate,
        threads_per_worker=threads_per_worker,
        max_restarts=checked_count("max_restarts", max_restarts, 0, 1_000_000),
        start_method=start_method,
        workers=1 if engine == "serial" else count,
        tuned=workers == "auto",
        places=cpus // threads_per_worker,
        nodes=nodes,
    )
