"""What a trainer holds while it is open: the channel of the weights, the engine, and the count of dead workers; and
what it holds during one fit."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from untorn import _core
from untorn.board import Board
from untorn.control import Control
from untorn.engines import Death, Engine
from untorn.errors import CapacityError, WorkerError
from untorn.share import Publisher, lowlevel
from untorn.share.lowlevel import FREE_SLOT_TIMEOUT_S, meaning, shortage
from untorn.train.callbacks import Callback
from untorn.train.checkpoints.resuming import DataRef, Part
from untorn.train.checkpoints.saver import Saver
from untorn.train.data import SharedData, Source, Stream
from untorn.train.history import History
from untorn.train.models.base import Parts
from untorn.train.optim.base import Optimizer
from untorn.train.run.parameter_layout import ParameterPlan
from untorn.train.run.server_steps import ServerSteps
from untorn.train.run.status import JobStatus
from untorn.train.run.step_log import task_named

__all__ = ["Fit", "Running", "how_it_died"]

#: reader rows, slots and slots that keep their space, of the channel of the weights
_CHANNEL_SIZES = (1024, 64, 8)
#: of these slots, how many watchers leave to training, whatever they keep
_RESERVED_SLOTS = 24


@dataclass
class Fit:
    """One call of fit: what its epochs have in common.

    Attributes:
        data: whose examples are shuffled and cut into batches; or else
        stream: that gives the batches.
        examples: of an epoch: those of the data, or with drop_last fewer; of a stream those that came so far.
        epochs: as given.
        max_readers: of a channel that all workers read.
        history: what fit returns.
        data_ref: knows the data, or the iterable of batches, again.
        part: the first part of the epoch that runs, if this is the rest of one that was loaded or left.
        epoch: what the epoch that runs has measured, and where it stands.
        skipped: steps of the epoch that are on no board any more, or were on none.
        behind: batches of earlier epochs that an iterator has to be read past first, after resuming.
        inside_epoch: from an epoch's begin until its numbers are in the history.
        stepping: workers make steps.
        rate: of the epoch that runs, as LearningRate.override.
        status: what is told to those who ask from outside.
        held: what is let go when fit ends.
    """

    running: Running
    data: Source | None
    stream: Stream | None
    examples: int
    batch_size: int
    epochs: int
    validation_data: Any
    callbacks: list[Callback]
    saver: Saver
    max_readers: int
    data_ref: DataRef
    shuffle: bool = True
    history: History = field(default_factory=History)
    part: Part | None = None
    epoch: Any = None
    skipped: int = 0
    behind: int = 0
    inside_epoch: bool = False
    stepping: bool = False
    rate: float | None = None
    status: JobStatus = field(init=False)
    held: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)
    _shared_validation: SharedData | None = None

    @property
    def listeners(self) -> list[Callback]:
        """Who wants to hear of each step: a row for it costs this process time that the workers could use."""
        return [each for each in self.callbacks if type(each).on_batch_end is not Callback.on_batch_end]

    @property
    def cut(self) -> dict[str, Any]:
        """How the data is cut into batches."""
        if self.data is None:
            return {"batch_size": 0, "examples": 0, "shuffle": False}
        shuffle = self.data.order_by or self.shuffle
        return {"batch_size": self.batch_size, "examples": self.examples, "shuffle": shuffle}

    def order(self, seed: int, epoch: int) -> NDArray[np.int64]:
        """The examples of an epoch, in their order."""
        assert self.data is not None
        return self.data.order(seed, epoch, shuffle=self.shuffle)[: self.examples]

    def share_validation(self) -> SharedData:
        """Make the validation data readable by workers, until fit ends."""
        if self._shared_validation is None:
            shared = self.validation_data.shared(max_readers=self.max_readers, local=False)
            self._shared_validation = self.held.enter_context(shared)
        return self._shared_validation


class Running:
    """What a trainer holds while it is open: the channel of the weights, and the engine.

    Attributes:
        weights: the channel of the weights, and beside them the optimizer's state.
        target: the channel that the board writes to: the weights', or, where the server makes the steps, one of sums.
        owner: the process that trains. A forked copy of it may read the weights, and ends nothing.
    """

    def __init__(self, parts: Parts, optimizer: Optimizer, name: str | None, engine: Engine) -> None:
        self.optimizer = optimizer
        #: examples of a shard, of the job that runs
        self.least = 1
        self.owner = os.getpid()
        self._kept, self._buffers = len(parts.kept), len(parts.buffers)
        params, summed = parts.published, parts.summed
        state = optimizer.state_for(parts.trained)
        if optimizer.server_steps:
            self.plan = ParameterPlan.of(summed, None, buffers=self._buffers, sums=True)
        else:
            self.plan = ParameterPlan.of(params, state, kept=self._kept, buffers=self._buffers)
        self.weights: Publisher = lowlevel.publish_with_extra(
            params, state, name=name, tolerant=True, sizes=_CHANNEL_SIZES
        )
        lowlevel.attachment_of(self.weights).reserve_slots(_RESERVED_SLOTS)
        self.target = self.weights
        if optimizer.server_steps:
            self.target = lowlevel.publish_with_extra(summed, sizes=_CHANNEL_SIZES)
        self.reader = self.weights.subscriber()
        self.engine = engine
        #: who asks about the job from outside is answered through this
        self.control = Control(name) if name is not None else None
        self._deaths: dict[tuple[int, int], int] = {}
        self._idle_deaths = 0
        self._idle_step = 0

    def count_death(self, death: Death, max_restarts: int, board: Board, epoch: int, skipped: int) -> None:
        """Raises WorkerError when one task, or the very start, kills one worker after the other. ``skipped``: steps of
        the epoch before this board."""
        if death.shard >= 0:
            task = (death.step, death.shard)
            self._deaths[task] = self._deaths.get(task, 0) + 1
            if self._deaths[task] > max_restarts:
                where = task_named(board, epoch, *task, skipped, least=self.least)
                raise WorkerError(
                    f"{self._deaths[task]} workers died one after the other in {where}; the last {how_it_died(death)}. "
                    f"max_restarts is {max_restarts}"
                )
        elif death.exitcode is None or death.exitcode >= 0:  # it ended by itself, or may have, without a task
            if board.step != self._idle_step:
                self._idle_step, self._idle_deaths = board.step, 0
            self._idle_deaths += 1
            if self._idle_deaths > max_restarts:
                raise WorkerError(
                    f"{self._idle_deaths} workers ended before they could take part (the last {how_it_died(death)}); "
                    "what they printed says why. A script that trains needs `if __name__ == '__main__':` around its "
                    "start, because worker processes import it"
                )

    def server_steps(self, clip_norm: float | None, threads: int) -> ServerSteps | None:
        """What makes the steps of a job that begins now; None where the workers do."""
        if not self.optimizer.server_steps:
            return None
        return ServerSteps(
            self.optimizer,
            self.weights,
            self.target,
            untrained=self._kept + self._buffers,
            buffers=self._buffers,
            clip_norm=clip_norm,
            threads=threads,
        )

    def find_slot(self, board: Board) -> None:
        """The workers found every slot of their target held: make room, or say who holds them."""
        attachment = lowlevel.attachment_of(self.target)
        nbytes = lowlevel.newest_nbytes(self.target)
        deadline = time.monotonic() + FREE_SLOT_TIMEOUT_S
        while True:
            try:
                attachment.grow(nbytes)
            except (_core.StatusError, OSError) as error:
                if shortage(error):
                    raise CapacityError(
                        f"the weights: no memory for one more version of {nbytes:,} bytes ({shortage(error)}); "
                        "let old snapshots of the weights go"
                    ) from None
                if isinstance(error, OSError):
                    raise
                if error.args[0] != "no_slot":
                    raise meaning(error, "weights") from None
                if time.monotonic() > deadline:
                    raise lowlevel.no_slot_error(self.target, FREE_SLOT_TIMEOUT_S) from None
                time.sleep(0.001)
                continue
            board.slot_ready()
            return

    def no_mapping(self, board: Board) -> CapacityError:
        """Return the error for a step that every worker has refused again and again."""
        nbytes = lowlevel.newest_nbytes(self.target)
        return CapacityError(
            f"the weights: no worker of {board.active} can map a version of {nbytes:,} bytes, and each has tried again "
            f"and again ({os.strerror(board.refused)}); look at the limits of a process (ulimit -v, vm.max_map_count) "
            "and at what the model keeps in memory"
        )

    def replace(self, fill: Callable[[Any, Any], None]) -> None:
        """Publish what ``fill`` writes into a copy of the newest parameters and optimizer state. If it raises, nothing
        happened."""
        with self.reader.snapshot() as newest:
            params, state = lowlevel.copy_with_extra(newest)
        fill(params, state)
        lowlevel.update_with_extra(self.weights, params, state)

    @property
    def is_copy(self) -> bool:
        """Return whether this process was forked from the one that trains."""
        return os.getpid() != self.owner

    def close(self) -> None:
        """End the workers, and remove the weights' channel. Does nothing in a forked copy of the training process."""
        if self.is_copy:
            return
        if self.control is not None:
            self.control.close()
        self.engine.close()
        self.reader.close()
        self.weights.unlink()
        self.weights.close()
        self.target.close()


def how_it_died(death: Death) -> str:
    """In words, after "the last worker"."""
    if death.exitcode is None and not death.out_of_memory:
        return (
            "ended, and why is not known: its exit status went elsewhere, because SIGCHLD is ignored in this process, "
            "or its code waits for any child"
        )
    if death.exitcode in (None, -9) and death.out_of_memory:
        return (
            "was killed by the kernel because memory ran out; use fewer workers, smaller batches, or accumulate= to "
            "compute a shard in parts"
        )
    if death.exitcode == -9:
        return "was killed by SIGKILL, and not by the kernel for want of memory"
    if death.exitcode is not None and death.exitcode < 0:
        return f"was ended by signal {-death.exitcode}"
    return f"ended with exit code {death.exitcode}"
