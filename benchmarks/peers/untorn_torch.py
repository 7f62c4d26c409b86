"""untorn: a TorchModel and a Trainer; one turn is one epoch of one long fit, so that starting up counts for nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from queue import SimpleQueue
from threading import Thread
from typing import Any

from benchmarks.peers.torch_case import Case, loss
from untorn import Callback, Trainer


def contestant(workers: int) -> Training:
    """So many workers with one thread each."""
    return Training(workers)


class Training:
    """A contestant: fit in a thread of its own, which waits at the end of each epoch for the next turn."""

    def __init__(self, workers: int) -> None:
        self._workers = workers

    def __enter__(self) -> Training:
        return self

    def __exit__(self, *_: object) -> None:
        """There is nothing between cases: workers belong to a trainer, and a trainer to a case."""

    @contextmanager
    def training(self, case: Case) -> Iterator[Callable[[], float]]:
        """Be ready to train this case. What is given makes a turn, and returns its seconds per step: those of a whole
        epoch, with its beginning and its end. Raises RuntimeError in the end if nothing was trained."""
        pace = _Pace()
        thread = Thread(target=self._fit, args=(case, pace))
        thread.start()

        def turn() -> float:
            pace.go.put(True)
            return pace.taken() / case.steps

        try:
            pace.taken()  # the first epoch starts the workers
            yield turn
        finally:
            pace.go.put(False)
            thread.join()
        pace.taken()

    def _fit(self, case: Case, pace: _Pace) -> None:
        from untorn.torch import TorchModel

        try:
            model = TorchModel(case.module(), loss())
            with Trainer(model, optimizer=case.untorn_optimizer(), workers=self._workers) as trainer:
                trainer.fit(case.data(), epochs=2**30, batch_size=case.batch, callbacks=[pace])
                case.check(trainer.module())
            pace.seconds.put(0.0)
        except Exception as error:
            pace.seconds.put(error)


class _Pace(Callback):
    """Tells how long an epoch took, and lets the next one begin, or stops."""

    def __init__(self) -> None:
        self.go: SimpleQueue[bool] = SimpleQueue()
        self.seconds: SimpleQueue[float | Exception] = SimpleQueue()

    def on_epoch_end(self, epoch: int, logs: Any) -> None:
        self.seconds.put(logs["seconds"])
        self.trainer.stop_training = not self.go.get()

    def taken(self) -> float:
        """Seconds of the epoch that runs now, 0 of none; blocks until it is over. Raises what ended fit."""
        answer = self.seconds.get()
        if isinstance(answer, Exception):
            raise answer
        return answer
