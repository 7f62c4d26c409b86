"""How far a stream is read ahead, and that its speed decides nothing."""

from __future__ import annotations

import threading
from typing import Any

import pytest

import networks
from untorn.train import SGD, Callback, Trainer, weights_sha256
from untorn.train.run.training_job import TrainingJobs

X, Y = networks.data_of(80, 5)
TIMEOUT_S = 60


def trainer(**arguments: Any) -> Any:
    given = {"shards": 2} | arguments
    return Trainer(networks.line, networks.line_params(5), optimizer=SGD(0.05), **given)


def batches(sizes: Any = (16, 16, 16, 16, 8, 8)) -> Any:
    start = 0
    for size in sizes:
        yield X[start : start + size], Y[start : start + size]
        start += size


@pytest.mark.parametrize("engine", [{"engine": "serial"}, {"workers": 2}], ids=str)
def test_without_any_a_batch_is_asked_for_when_the_weights_of_the_step_before_are_there(engine):
    asked = []
    with trainer(**engine) as made:

        def on_policy():
            for batch in batches():
                asked.append((made.snapshot().version, made.step, threading.current_thread()))
                yield batch

        made.fit(on_policy(), epochs=1, prefetch=0)
    assert asked == [(step + 1, step, threading.main_thread()) for step in range(6)]


@pytest.mark.parametrize("prefetch", [1, 3])
def test_a_number_bounds_what_is_read_ahead_of_the_step(prefetch):
    class Reader(Callback):
        """Reads as far ahead as it may, and no further."""

        def __init__(self) -> None:
            self.read = 0
            self.ahead: list[int] = []
            self.changed = threading.Condition()

        def batches(self):
            for batch in batches((8,) * 10):
                with self.changed:
                    self.read += 1
                    self.changed.notify_all()
                yield batch

        def on_batch_end(self, batch, logs):
            with self.changed:
                assert self.changed.wait_for(lambda: self.read == min(10, batch + 1 + prefetch), TIMEOUT_S)
            self.ahead.append(self.read - batch - 1)

    reader = Reader()
    with trainer(engine="serial") as made:
        made.fit(reader.batches(), epochs=1, prefetch=prefetch, callbacks=[reader])
    assert reader.ahead == [min(prefetch, 9 - batch) for batch in range(10)]
    assert reader.read == 10


@pytest.mark.parametrize("engine", [{"engine": "serial"}, {"workers": 2}], ids=str)
def test_the_speed_of_the_stream_decides_nothing(engine, monkeypatch):
    """Batch by batch, as slow as can be, and all at once: the same jobs, steps, logs and bits."""
    jobs = []
    run = TrainingJobs.run_batches
    monkeypatch.setattr(TrainingJobs, "run_batches", lambda *a, **more: jobs.append(a[2]) or run(*a, **more))

    class Logs(Callback):
        def __init__(self) -> None:
            self.logs: list[Any] = []

        def on_batch_end(self, batch, logs):
            self.logs.append((batch, logs["loss"], logs["version"]))

    found = []
    for prefetch in (0, 1, None):
        logs, jobs[:] = Logs(), []
        with trainer(**engine) as made:
            history = made.fit(batches((8, 8, 16, 16, 16, 8)), epochs=1, prefetch=prefetch, callbacks=[logs])
            found.append((weights_sha256(made.params), logs.logs, history.history, list(jobs)))
    assert found[0] == found[1] == found[2]
    assert found[0][3] == [8, 16]  # another job only for a batch that is larger


def test_in_async_mode_too():
    asked = []
    with trainer(workers=2, mode="async", shards=None) as made:

        def on_policy():
            for batch in batches():
                asked.append(made.step)
                yield batch

        made.fit(on_policy(), epochs=1, prefetch=0)
    assert asked == list(range(6))


def test_what_the_workers_read_themselves_has_none():
    with trainer(engine="serial") as made:
        with pytest.raises(ValueError, match="prefetch: the workers read this data themselves; it is for iterables"):
            made.fit((X, Y), epochs=1, batch_size=16, prefetch=1)
        with pytest.raises(ValueError, match="prefetch: expected"):
            made.fit(batches(), epochs=1, prefetch=-1)
