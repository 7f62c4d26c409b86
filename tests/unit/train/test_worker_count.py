"""The number of workers: the tuner of workers='auto', and the arguments that resize() refuses."""

import os
from collections.abc import Callable

import numpy as np
import pytest

import networks
from untorn.train import SGD, Callback, Trainer, weights_sha256
from untorn.train.run.tuner import Tuner
from untorn.train.run.worker_count import max_workers


def tuned(most: int, steps_per_s: dict[int, float]) -> Tuner:
    """Run a tuner on simulated machines, given their speed for each number of workers."""
    tuner, now, step = Tuner(most), 0.0, 0
    tuner.begin_epoch(now, step)
    commits = [0] * most
    for _ in range(10_000):
        if tuner.found:
            return tuner
        now += 0.02
        step += round(0.02 * steps_per_s[tuner.workers])
        commits = [count + 1 for count in commits]
        tuner.observe(now, step, commits)
    raise AssertionError("it never ends")


@pytest.mark.parametrize(
    ("most", "speeds", "best"),
    [
        (2, {2: 2000, 1: 1000}, 2),
        (2, {2: 1000, 1: 2000}, 1),
        (2, {2: 2010, 1: 2000}, 1),  # fewer workers are equally fast
        (8, {8: 1000, 4: 4000, 2: 3000, 1: 2000}, 4),
        (6, {6: 4000, 3: 3000, 1: 2000}, 6),
    ],
)
def test_the_fastest_number_is_found(most, speeds, best):
    tuner = tuned(most, speeds)
    assert tuner.workers == best
    assert tuner.steps_per_s.keys() == speeds.keys()
    assert str(tuner).startswith(f"{best} worker")


def test_time_counts_from_when_all_workers_work():
    tuner = Tuner(2)
    tuner.begin_epoch(0.0, 0)
    for now in range(1, 10):
        tuner.observe(float(now), 100 * now, [5, 0])
    assert not tuner._windows
    tuner.observe(10.0, 1000, [5, 1])
    tuner.observe(11.0, 1100, [6, 2])
    assert tuner._windows == [100.0]


def test_the_time_between_epochs_is_not_counted():
    tuner = Tuner(2)
    tuner.begin_epoch(0.0, 0)
    tuner.observe(0.0, 0, [1, 1])
    tuner.observe(0.1, 5, [2, 2])
    tuner.begin_epoch(100.0, 5)
    tuner.observe(100.1, 10, [3, 3])
    assert tuner._windows == [pytest.approx(50.0)]


def paced(most: int, seconds: Callable[[int, int], float]) -> tuple[Tuner, int]:
    """Run a tuner that is asked whenever it wants to be. ``seconds`` tells what a step takes, for a number of workers
    and the number of the step. Return the tuner and the steps that it took."""
    tuner, now, step = Tuner(most), 0.0, 0
    tuner.begin_epoch(now, step)
    while not tuner.found:
        for _ in range(tuner.pace or 10):
            now += seconds(tuner.workers, step)
            step += 1
        tuner.observe(now, step, [1] * most)
    return tuner, step


@pytest.mark.parametrize("most", [2, 3, 4, 6, 8, 16, 32])
@pytest.mark.parametrize("one_is_best", [True, False])
def test_a_clear_choice_takes_fewer_than_fifty_steps(most, one_is_best):
    tuner, steps = paced(most, lambda workers, _: 1e-4 * (workers if one_is_best else 1 / workers))
    assert tuner.workers == (1 if one_is_best else most)
    assert steps < 50


def test_numbers_that_are_close_are_measured_again():
    """One of the short windows with two workers is disturbed."""
    tuner, steps = paced(2, lambda workers, step: 1e-2 if step == 4 else 1e-4 * (2 if workers == 1 else 1.5))
    assert tuner.workers == 2
    assert steps > 50
    assert tuner.steps_per_s[2] == pytest.approx(1e4 / 1.5)


def test_one_processor_needs_no_measuring():
    assert Tuner(1).found


class Resize(Callback):
    """Resizes to these numbers of workers, one after each epoch."""

    def __init__(self, *numbers: int) -> None:
        self.numbers = list(numbers)
        self.seen: list[int] = []

    def on_epoch_end(self, epoch, logs):
        self.seen.append(len(self.trainer.pids))
        if self.numbers:
            self.trainer.resize(self.numbers.pop(0))


def trainer_of(**arguments):
    return Trainer(networks.line, networks.line_params(3), optimizer=SGD(0.05), **arguments)


DATA = networks.data_of(64, 3)


def test_workers_come_and_go_during_fit_and_between():
    with trainer_of(engine="serial", shards=4) as trainer:
        trainer.fit(DATA, epochs=6, batch_size=8)
        expected = weights_sha256(trainer.params)
    resize = Resize(3, 1, 2)
    with trainer_of(workers=2, shards=4) as trainer:
        trainer.fit(DATA, epochs=4, batch_size=8, callbacks=[resize])
        assert trainer.workers == 2
        trainer.resize(1)
        trainer.fit(DATA, epochs=1, batch_size=8)
        assert len(trainer.pids) == 1
        trainer.resize(3)
        trainer.fit(DATA, epochs=1, batch_size=8)
        assert len(trainer.pids) == 3
        assert weights_sha256(trainer.params) == expected
        assert trainer.restarts == 0


@pytest.mark.parametrize(
    ("workers", "error", "message"),
    [
        (0, ValueError, "workers: expected 1 to 1000, found 0"),
        (65, ValueError, "workers: expected 1 to 64, found 65; a trainer that is made with more workers"),
        (2.0, TypeError, "workers: expected an int, found float"),
    ],
)
def test_a_number_that_cannot_be(workers, error, message):
    with trainer_of(workers=2, shards=2) as trainer:
        with pytest.raises(error) as caught:
            trainer.resize(workers)
        assert message in str(caught.value)
        assert trainer.workers == 2


class Pickled:
    """A dataset that calls a function when it is pickled, to be sent to the workers."""

    def __init__(self, when_pickled):
        self.when_pickled = when_pickled

    def __len__(self):
        return len(DATA[0])

    def __getitem__(self, index):
        return DATA[0][index], DATA[1][index]

    def __getstate__(self):
        self.when_pickled()
        return {"when_pickled": None}


class BoardMemory(Callback):
    """Measures the memory of the board."""

    def on_epoch_begin(self, epoch, logs):
        files = [entry.path for entry in os.scandir("/proc/self/fd") if "untorn-board" in os.readlink(entry.path)]
        (self.nbytes,) = {os.stat(file).st_blocks * 512 for file in files}


def test_a_number_that_is_set_while_the_data_is_sent_gets_its_memory():
    memory = BoardMemory()
    found = []
    for workers, later in ((3, 3), (1, 3), (1, 1)):
        with trainer_of(workers=workers, shards=2) as trainer:
            data = Pickled(lambda trainer=trainer, later=later: trainer.resize(later))
            trainer.fit(data, epochs=1, batch_size=8, callbacks=[memory])
            assert len(trainer.pids) == later
            found.append(memory.nbytes)
    assert found[0] == found[1] > found[2]


def test_the_serial_engine_has_one():
    with trainer_of(engine="serial") as trainer, pytest.raises(ValueError, match="engine='serial' has one worker"):
        trainer.resize(2)


def test_in_async_mode_no_more_than_can_be_busy():
    with trainer_of(mode="async", max_staleness=2, workers=3) as trainer:
        trainer.resize(1)
        with pytest.raises(ValueError, match="with max_staleness=2 at most 3 gradients are in flight, so 1 of 4"):
            trainer.resize(4)


def test_a_trainer_that_begins_with_many_may_have_more():
    assert [max_workers(n) for n in (1, 32, 33, 700)] == [64, 64, 66, 1000]


def test_auto_finds_a_number_and_says_so():
    x, y = networks.data_of(512, 3)
    with trainer_of(workers="auto", shards=2) as trainer:
        assert trainer.tuner is not None
        while not trainer.tuner.found:
            trainer.fit((x, y), epochs=20, batch_size=8)
        assert trainer.workers == trainer.tuner.workers
        assert trainer.workers in trainer.tuner.steps_per_s or trainer.workers == 1
        print(trainer.tuner)
        epochs, got = trainer.epoch, weights_sha256(trainer.params)
    with trainer_of(engine="serial", shards=2) as trainer:
        trainer.fit((x, y), epochs=epochs, batch_size=8)
        assert weights_sha256(trainer.params) == got


def test_as_many_workers_as_there_are_processors_for(monkeypatch):
    monkeypatch.setattr("untorn.train.settings.available_cpus", lambda: 8)
    numbers = [trainer_of(threads_per_worker=threads).workers for threads in (1, 2, 3, 8, 16)]
    assert numbers == [8, 4, 2, 1, 1]
    assert trainer_of(workers=5, threads_per_worker=4).workers == 5
    assert trainer_of(threads_per_worker=2).shards == 4
    assert trainer_of(workers="auto", threads_per_worker=2).shards == 4
    assert np.all([trainer_of(workers=n).shards == n for n in (1, 3)])
