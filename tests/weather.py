"""What may happen to the workers of a trainer while it trains: they are killed, stopped, woken, and there are more or
fewer of them. All of it at random moments, from the test's own generator."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading

from untorn.train import Trainer


class Weather(threading.Thread):
    """Does something random to the workers of a trainer, until it has done each of ``what`` so often.

    Between two blows training moves on, unless everybody is stopped: so a kill hits a worker that works, and not one
    that starts, whatever the machine is busy with. At the end, whoever is stopped is woken.

    Args:
        most_workers: resizes to 1 to so many.
    """

    def __init__(
        self, trainer: Trainer, rng: random.Random, each: int, what: tuple[str, ...], most_workers: int = 4
    ) -> None:
        super().__init__()
        self._trainer, self._rng, self._most_workers = trainer, rng, most_workers
        self.left = dict.fromkeys(what, each)
        self._stopped: list[int] = []
        self._killed: set[int] = set()
        self._over = threading.Event()

    def run(self) -> None:
        with self._trainer.subscriber() as weights:
            version = weights.version
            while any(self.left.values()) and not self._over.is_set():
                try:
                    version = weights.wait(version, timeout_s=0.1)
                except TimeoutError:
                    if not self._stopped:
                        continue
                self._over.wait(self._rng.random() * 0.02)  # not to be in step with anything
                what = self._rng.choice([what for what, left in self.left.items() if left > 0])
                with contextlib.suppress(ProcessLookupError):  # it was killed meanwhile
                    getattr(self, what)()
                    self.left[what] -= 1
        while self._stopped:
            with contextlib.suppress(ProcessLookupError):
                self.wake()

    def kill(self) -> None:
        """Nobody twice: dying takes a moment, and the kernel says nothing of a second blow."""
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
        self._trainer.resize(self._rng.randint(1, self._most_workers))

    def __enter__(self) -> Weather:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self.join()
