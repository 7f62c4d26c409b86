"""Training that calls in the same thread interrupt: from signal handlers, from finalizers, and by Ctrl-C.

The serial engine runs every step in this process. The weights are those of an uninterrupted training.
test_reentrance.py tests share.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading

import numpy as np
import pytest
from interruptions import at_each_line, at_every_line, in_a_child, in_finalizers, public_calls, raised_everywhere

import untorn
from helpers import WATCHDOG_S
from untorn import SGD, ClosedError, Trainer
from untorn.train.data.sampled import choice_of
from untorn.train.settings import Setting

X = np.random.default_rng(0).normal(size=(12, 3))
Y = X @ [1.0, -2.0, 3.0]


class Model:
    """A linear model."""

    def __call__(self, params, batch):
        x, y = batch
        error = x @ params["w"] - y
        return (error**2).mean(), {"w": 2 * x.T @ error / len(x)}

    def predict(self, params, x):
        return x @ params["w"]


def make_trainer(optimizer=None, **options):
    options = {"engine": "serial", "shards": 2, "workers": 1} | options
    return Trainer(Model(), {"w": np.zeros(3)}, optimizer=optimizer or SGD(0.1), **options)


def fit(trainer, **options):
    return trainer.fit((X, Y), epochs=2, batch_size=6, **options)


class World:
    """A trainer that has begun, another channel, and the actions of handlers."""

    def __init__(self, folder):
        self.folder = folder
        self.trainer = make_trainer()
        fit(self.trainer)
        self.trainer.save(folder / "start")
        self.saved = folder / "start"

    def end(self):
        self.trainer.close()

    def looks(self):
        """Read the attributes of the trainer, as a status page does."""
        trainer = self.trainer
        with trainer.snapshot() as snapshot:
            assert snapshot.value["w"].shape == (3,)
        assert trainer.subscriber().snapshot().version <= trainer.snapshot().version
        assert (trainer.workers, trainer.restarts) == (1, 0)
        assert len(trainer.pids) <= 1
        assert trainer.params["w"].shape == (3,)
        trainer.resize(1)
        _ = trainer.learning_rate

    def publishes(self):
        with untorn.publish({"a": np.zeros(3)}, name="other", directory=self.folder) as other:
            assert other.update(2) == untorn.subscribe(self.folder / "other").snapshot().version == 2
            other.unlink()

    def forks(self):
        pid = os.fork()
        if pid == 0:
            try:
                signal.alarm(int(WATCHDOG_S / 2))  # a hang ends here
                self.publishes()
                self.trainer.close()
                os._exit(0)
            except BaseException:
                sys.excepthook(*sys.exc_info())
            finally:
                os._exit(1)
        assert os.waitpid(pid, 0)[1] == 0


def _fit_everything(world):
    """Train with all callbacks, checkpoints and validation."""
    callbacks = [
        untorn.CSVLogger(world.folder / "log.csv"),
        untorn.EarlyStopping(patience=5),
        untorn.LearningRateScheduler(lambda epoch, rate: rate),
        untorn.ModelCheckpoint(world.folder / "best-{epoch}.safetensors"),
        untorn.ProgressBar(file=open(os.devnull, "w")),  # noqa: SIM115 (closed with the process)
        untorn.ReduceLROnPlateau(patience=5),
        untorn.TerminateOnNaN(),
    ]
    options = {"validation_data": (X, Y), "callbacks": callbacks, "checkpoint_dir": world.folder / "checkpoints"}
    with make_trainer() as trainer:
        world.trainer, before = trainer, world.trainer
        try:
            fit(trainer, **options, resume=True)
        finally:
            world.trainer = before


def _with_optimizer(optimizer):
    def case(world):
        with make_trainer(optimizer) as trainer:
            fit(trainer)

    return case


def _set_params(world):
    world.trainer.params = world.trainer.params


def _set_rate(world):
    world.trainer.learning_rate = world.trainer.learning_rate


def _history(world):
    history = fit(world.trainer)
    assert len(untorn.History.from_dict(history.to_dict())) == len(history) == 2
    assert repr(history)


def _module(world):
    with pytest.raises(TypeError):
        world.trainer.module()


TRAIN = {
    "SGD": _with_optimizer(SGD(0.1, momentum=0.9)),
    "Adagrad": _with_optimizer(untorn.Adagrad(0.1)),
    "Adam": _with_optimizer(untorn.Adam(0.1)),
    "AdamW": _with_optimizer(untorn.AdamW(0.1)),
    "RMSprop": _with_optimizer(untorn.RMSprop(0.1)),
    **dict.fromkeys(
        (
            *("Callback", "CSVLogger", "EarlyStopping", "LearningRateScheduler", "ModelCheckpoint", "ProgressBar"),
            *("ReduceLROnPlateau", "TerminateOnNaN"),
        ),
        _fit_everything,
    ),
    "History": _history,
    "Trainer": lambda world: make_trainer().close(),
    "Trainer.check": lambda world: world.trainer.check((X, Y), batch_size=4),
    "Trainer.close": lambda world: make_trainer().close(),
    "Trainer.epoch": lambda world: world.trainer.epoch,
    "Trainer.evaluate": lambda world: world.trainer.evaluate((X, Y)),
    "Trainer.fit": lambda world: fit(world.trainer),
    "Trainer.learning_rate": _set_rate,
    "Trainer.load": lambda world: world.trainer.load(world.saved),
    "Trainer.module": _module,
    "Trainer.nodes": lambda world: world.trainer.nodes,
    "Trainer.params": _set_params,
    "Trainer.pids": lambda world: world.trainer.pids,
    "Trainer.predict": lambda world: world.trainer.predict(X),
    "Trainer.resize": lambda world: world.trainer.resize(1),
    "Trainer.restarts": lambda world: world.trainer.restarts,
    "Trainer.save": lambda world: world.trainer.save(world.folder / "saved"),
    "Trainer.snapshot": lambda world: world.trainer.snapshot().value,
    "Trainer.step": lambda world: world.trainer.step,
    "Trainer.stop_training": lambda world: world.trainer.stop_training,
    "Trainer.subscriber": lambda world: world.trainer.subscriber().snapshot().value,
    "Trainer.workers": lambda world: world.trainer.workers,
}


def _reads(name):
    return lambda world: getattr(world.trainer, name)


TRAIN |= {f"Trainer.{name}": _reads(name) for name, found in vars(Trainer).items() if isinstance(found, Setting)}
#: names that need a library that another test covers, or that do nothing by themselves
ELSEWHERE = {"TensorBoard", "WandB", "MLflow", "TorchSchedule", "Examples", "LocalSteps", "Turns"}
#: one name of each group with the same code, such as the optimizers; the soak tests the others too
FAST = {case.__code__: name for name, case in TRAIN.items()}.values()


def test_every_public_call_of_train_has_a_case():
    names = {name for name in public_calls("train") if "." not in name or name.startswith("Trainer.")}
    assert names - ELSEWHERE == set(TRAIN)


@pytest.mark.parametrize(
    "name", [name if name in FAST else pytest.param(name, marks=pytest.mark.soak) for name in TRAIN]
)
def test_calls_in_a_signal_handler(tmp_path, name):
    """The action comes before every line of untorn's code that the call reaches; the weights are right afterwards."""
    print(f"{name}: {in_a_child(_every_line, name, tmp_path)}")


def _every_line(name, folder):
    (folder / "alone").mkdir()
    alone = World(folder / "alone")
    TRAIN[name](alone)
    wanted = alone.trainer.params["w"]
    alone.end()
    counts = {}
    for action in ("looks", "publishes"):
        (folder / action).mkdir()
        world = World(folder / action)
        counts[action] = at_every_line(lambda world=world: TRAIN[name](world), getattr(world, action))
        assert np.array_equal(world.trainer.params["w"], wanted)
        world.end()
    return counts


@pytest.mark.parametrize("action", ["looks", pytest.param("publishes", marks=pytest.mark.soak)])
def test_calls_in_finalizers(tmp_path, action):
    count = in_a_child(_finalizers, tmp_path, action)
    print(f"{action} in {count} finalizers")
    assert count > 50


def _finalizers(folder, action):
    world, alone = World(folder), make_trainer()
    count = in_finalizers(lambda: fit(world.trainer), getattr(world, action))
    for _ in range(2):
        fit(alone)
    assert np.array_equal(world.trainer.params["w"], alone.params["w"])
    world.end()
    alone.close()
    return count


@pytest.mark.parametrize("most", [25, pytest.param(300, marks=pytest.mark.soak)])
@pytest.mark.parametrize("action", ["closes", "stops", "forks", "fits", "evaluates"])
def test_a_fit_meets(tmp_path, action, most, rng):
    """A handler in the middle of the call closes the trainer, stops the training, forks, or makes the same call."""
    print(f"{action} at {in_a_child(_meets, tmp_path, action, most, rng)} lines of fit")


def _meets(folder, action, most, rng):
    alone = make_trainer()
    fit(alone)
    wanted = alone.params["w"]
    alone.close()

    def make():
        trainer = make_trainer()

        def call():
            try:
                with trainer:
                    fit(trainer)
                    if action in ("forks", "evaluates"):
                        assert np.array_equal(trainer.params["w"], wanted)
            except ClosedError:
                assert action == "closes"
            with pytest.raises(ClosedError):
                fit(trainer)

        def act():
            if action == "closes":
                trainer.close()
            elif action == "stops":
                trainer.stop_training = True
            elif action == "fits":
                with contextlib.suppress(RuntimeError, ClosedError):  # training runs already, or is over
                    fit(trainer)
            elif action == "evaluates":
                with contextlib.suppress(ClosedError):  # it is over
                    assert trainer.evaluate((X, Y))["loss"] >= 0
            else:
                world.trainer = trainer
                world.forks()

        return call, act

    world = World(folder)
    before = world.trainer
    count = at_each_line(make, most=most, rng=rng)
    before.close()
    return count


@pytest.mark.parametrize("most", [40, pytest.param(400, marks=pytest.mark.soak)])
def test_ctrl_c_leaves_a_trainer_that_others_can_use(tmp_path, most, rng):
    """This holds also while the exception is kept alive: another thread continues to train, and closes the trainer."""
    count = in_a_child(_interrupts, most, rng)
    print(f"interrupted at {count} places")
    assert count > 10


def _interrupts(most, rng):
    trainers = []

    def make():
        while trainers:
            trainers.pop().close()
        trainers.append(make_trainer())
        return lambda: fit(trainers[0])

    def check(_):
        results = []

        def go_on():
            trainer = trainers[0]
            trainer.evaluate((X, Y))
            results.append(trainer.params["w"].shape)
            trainer.close()

        thread = threading.Thread(target=go_on, daemon=True)
        thread.start()
        thread.join(WATCHDOG_S / 2)
        assert results == [(3,)], "a lock was left"

    count = raised_everywhere(make, check, most=most, rng=rng)
    trainers.pop().close()
    return count


@pytest.mark.parametrize("action", ["looks", "forks", pytest.param("publishes", marks=pytest.mark.soak)])
def test_worker_processes_meet(tmp_path, action):
    """The same holds for the code that starts, supervises and ends worker processes, with a fork every 40 lines."""
    print(f"{action} at {in_a_child(_with_workers, tmp_path, action)} lines")


def _with_workers(folder, action):
    with make_trainer() as alone:
        fit(alone)
        wanted = alone.params["w"]
    world = World(folder)
    world.trainer.close()
    lines = []

    def act():
        lines.append(None)
        if action != "forks" or len(lines) % 40 == 0:
            getattr(world, action)()

    with make_trainer(workers=1, engine="processes") as world.trainer:
        count = at_every_line(lambda: fit(world.trainer), act)
        assert np.array_equal(world.trainer.params["w"], wanted)
        at_every_line(world.trainer.close, world.publishes)
    return count


def test_a_sampler_that_samples():
    """One thread at a time holds the random numbers of the process, and may take them again."""

    class Sampler:
        def __len__(self):
            return 3

        def __iter__(self):
            assert choice_of("inner", [2, 1, 0], False, 3) == [2, 1, 0]
            return iter([0, 1, 2])

    assert in_a_child(choice_of, "outer", Sampler(), False, 3) == [0, 1, 2]


def test_a_fork_while_another_thread_samples():
    assert in_a_child(_fork_while_sampling) == 0


def _fork_while_sampling():
    inside, go_on = threading.Event(), threading.Event()

    class Sampler:
        def __len__(self):
            return 1

        def __iter__(self):
            inside.set()
            go_on.wait()
            return iter([0])

    thread = threading.Thread(target=choice_of, args=("slow", Sampler(), False, 1))
    thread.start()
    inside.wait()
    pid = os.fork()
    if pid == 0:
        signal.alarm(int(WATCHDOG_S / 2))  # a hang ends here
        os._exit(choice_of("child", [0], False, 1)[0])
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    go_on.set()
    thread.join()
    return status
