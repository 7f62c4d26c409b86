"""untorn: a TorchModel and a Trainer; one turn is one epoch of one long fit, so that the startup is not measured."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from queue import SimpleQueue
from threading import Thread
from typing import Any

from benchmarks.peers.torch_case import Case, loss
from untorn import Callback, Trainer


def contestant(workers: int, **options: Any) -> Training:
    """Return a contestant with the given number of workers, each with one thread, and more arguments of its Trainer."""
    return Training(workers, options)


class Training:
    """A contestant that runs fit in its own thread, and waits at the end of each epoch for the next turn."""

    def __init__(self, workers: int, options: dict[str, Any]) -> None:
        self._workers = workers
        self._options = options

    def __enter__(self) -> Training:
        return self

    def __exit__(self, *_: object) -> None:
        """Do nothing: a trainer and its workers belong to a case."""

    @contextmanager
    def training(self, case: Case) -> Iterator[Callable[[], float]]:
        """Prepare to train this case. The function that it yields runs a turn, a whole epoch with its beginning and its
        end, and returns its seconds per step. Raises RuntimeError on exit if no parameter was trained."""
        pace = Pace()
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

    def _fit(self, case: Case, pace: Pace) -> None:
        from untorn.torch import TorchModel

        try:
            model = TorchModel(case.module(), loss())
            optimizer = case.untorn_optimizer()
            with Trainer(model, optimizer=optimizer, workers=self._workers, **self._options) as trainer:
                trainer.fit(case.data(), epochs=2**30, batch_size=case.batch, callbacks=[pace])
                case.check(trainer.module())
            pace.seconds.put(0.0)
        except Exception as error:
            pace.seconds.put(error)


class Pace(Callback):
    """A callback that measures each epoch, and waits before the next one until it may begin or must stop."""

    def __init__(self) -> None:
        self.go: SimpleQueue[bool] = SimpleQueue()
        self.seconds: SimpleQueue[float | Exception] = SimpleQueue()

    def on_epoch_end(self, epoch: int, logs: Any) -> None:
        self.seconds.put(logs["seconds"])
        self.trainer.stop_training = not self.go.get()

    def taken(self) -> float:
        """Wait for the end of the current epoch; return its seconds, or 0 if none runs. Raises the error of fit."""
        answer = self.seconds.get()
        if isinstance(answer, Exception):
            raise answer
        return answer
