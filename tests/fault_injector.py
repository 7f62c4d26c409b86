"""Kill, stop, wake and resize the workers of a trainer while it trains, at random moments that the test's own generator
draws."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading

from untorn.train import Trainer


class FaultInjector(threading.Thread):
    """Inject each of the given kinds of faults into a running trainer, a given number of times.

    Training makes at least one step between two faults, unless all workers are stopped. So a kill hits a worker that
    computes, and not one that is starting, however busy the machine is. At the end all stopped workers are woken.

    Args:
        kinds: names of the methods to call: ``kill``, ``stop``, ``wake``, ``resize``.
        each: how many times to call each of them.
        max_workers: the largest number of workers to resize to.
    """

    def __init__(
        self, trainer: Trainer, rng: random.Random, each: int, kinds: tuple[str, ...], max_workers: int = 4
    ) -> None:
        super().__init__()
        self._trainer, self._rng, self._max_workers = trainer, rng, max_workers
        self.left = dict.fromkeys(kinds, each)
        self._stopped: list[int] = []
        self._killed: set[int] = set()
        self._ended = threading.Event()

    def run(self) -> None:
        with self._trainer.subscriber() as weights:
            version = weights.version
            while any(self.left.values()) and not self._ended.is_set():
                try:
                    version = weights.wait(version, timeout_s=0.1)
                except TimeoutError:
                    if not self._stopped:
                        continue
                self._ended.wait(self._rng.random() * 0.02)  # so that faults are in step with nothing
                kind = self._rng.choice([kind for kind, left in self.left.items() if left > 0])
                with contextlib.suppress(ProcessLookupError):  # it was killed meanwhile
                    getattr(self, kind)()
                    self.left[kind] -= 1
        while self._stopped:
            with contextlib.suppress(ProcessLookupError):
                self.wake()

    def kill(self) -> None:
        """Kill a worker that was not killed before: dying takes a moment, and a second SIGKILL raises nothing."""
        pid = self._rng.choice(self._trainer.pids)
        if pid in self._killed:
            raise ProcessLookupError
        os.kill(pid, signal.SIGKILL)
        self._killed.add(pid)

    def stop(self) -> None:
        self._stopped.append(self._rng.choice(self._trainer.pids))
        os.kill(self._stopped[-1], signal.SIGSTOP)

    def wake(self) -> None:
        if self._stopped:
            os.kill(self._stopped.pop(self._rng.randrange(len(self._stopped))), signal.SIGCONT)

    def resize(self) -> None:
        self._trainer.resize(self._rng.randint(1, self._max_workers))

    def __enter__(self) -> FaultInjector:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self.join()
