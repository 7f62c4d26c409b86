"""Pytest's side of a sweep: the process that does it, and the line of figures for each operation.

``fixture`` makes the fixture ``sweeper`` of a test module: ``sweeper(how, name, limit=...)`` returns a Sweep.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from helpers import Failure, start
from sweep import tracer

__all__ = ["Runner", "fixture"]


class Runner:
    """Runs sweeps in a spawned process, and starts another if a sweep takes that down."""

    def __init__(self, serve: Callable[..., None], base: Path) -> None:
        self._serve, self._base = serve, base
        self._child: Any = start(serve, method="spawn")

    def __call__(self, how: str, name: str, *, seed: int, limit: int = 0) -> Any:
        """One sweep. Fails the test if its process dies or falls silent, and says where that was."""
        if self._child is None:
            self._child = start(self._serve, method="spawn")
        self._child.put((how, name, str(self._base), seed, limit))
        message: Any = "at its beginning"
        try:
            while isinstance(message, str):
                doing, message = message, self._child.get()
        except Failure as failure:
            self.close()
            pytest.fail(f"the sweep ended at {doing}: {failure}")
        return message

    def close(self) -> None:
        """End the process, and remove what it worked in."""
        if self._child is not None:
            self._child.kill()
        self._child = None
        shutil.rmtree(self._base, ignore_errors=True)
        self._base.mkdir(mode=0o700)


def fixture(serve: Callable[..., None]) -> Any:
    """The fixture ``sweeper`` over a function that serves sweeps; skips where no process may be traced."""

    @pytest.fixture(scope="module")
    def sweeper() -> Iterator[Runner]:
        if obstacle := tracer.obstacle():
            pytest.skip(obstacle)
        base = Path(tempfile.mkdtemp(prefix="sweep-", dir="/dev/shm"))
        runner = Runner(serve, base)
        try:
            yield runner
        finally:
            runner.close()
            base.rmdir()

    return sweeper
