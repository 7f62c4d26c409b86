"""A fit that ends in the middle of an epoch: the next fit(), or save() and load(), continues there, or the log says why
it cannot.

It ends because of Ctrl-C, a signal handler that raises, an error of a callback or of the model, a loss that is not
finite, or workers that die repeatedly. At the end every example of the epoch has counted once, and sync training has
the same bits.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import select
import signal
from pathlib import Path

import numpy as np
import pytest

import networks
from untorn import SGD, NonFiniteLossError, Trainer, WorkerError
from untorn.engines import SerialEngine
from untorn.share.lowlevel import extra
from untorn.train import Callback, EarlyStopping, weights_sha256
from untorn.train.data.epochs import DataRef
from untorn.train.run.evaluation import Evaluator

pytest.importorskip("safetensors")

DATA = networks.classes_of(70, 6, 3, seed=4)  # 5 batches of 16, of which the last has 6
HELD_OUT = networks.classes_of(30, 6, 3, seed=5)
STEPS = 5
ENGINES = [{"engine": "serial"}, {"workers": 2}]
ENGINE_IDS = ["serial", "processes"]


def make(model=networks.mlp_with_dropout, **arguments) -> Trainer:
    arguments = {"optimizer": SGD(0.1, momentum=0.9), "shards": 3, "seed": 8, "engine": "serial"} | arguments
    return Trainer(model, networks.mlp_params((6, 8, 3)), **arguments)


def fit(trainer, epochs, **arguments):
    arguments = {"batch_size": 16, "validation_data": HELD_OUT} | arguments
    return trainer.fit(DATA, epochs=epochs, **arguments)


@pytest.fixture(scope="module")
def whole():
    """Return the digests of the weights and of the optimizer's state, and the history, after an uninterrupted fit."""
    with make() as trainer:
        history = fit(trainer, 3)
        return *digests(trainer), history.history


def digests(trainer) -> tuple[str, str]:
    with trainer.snapshot() as snapshot:
        return weights_sha256(snapshot.value), weights_sha256(extra(snapshot))


@pytest.fixture
def one_step_at_a_time(monkeypatch):
    """Let the serial engine report each step to callbacks before it makes the next one."""
    advance = SerialEngine.advance
    monkeypatch.setattr(SerialEngine, "advance", lambda self, until: advance(self, min(until, self._board.step + 1)))


class Term(BaseException):
    """Raised by a handler of SIGTERM."""


class At(Callback):
    """Runs an action once, after a step or at another place."""

    def __init__(self, what, *, batch: int | None = None, epoch_begin: int | None = None) -> None:
        self.what, self.batch, self.epoch_begin = what, batch, epoch_begin
        self.batches: list[int] = []

    def _come(self) -> None:
        self.batch = self.epoch_begin = None
        self.what()

    def on_epoch_begin(self, epoch, logs):
        if epoch == self.epoch_begin:
            self._come()

    def on_batch_end(self, batch, logs):
        self.batches.append(batch)
        if batch == self.batch:
            self._come()


def press_ctrl_c() -> None:
    signal.raise_signal(signal.SIGINT)


def terminate() -> None:
    def handler(*_: object) -> None:
        raise Term

    before = signal.signal(signal.SIGTERM, handler)
    try:
        signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)


def fail() -> None:
    raise ValueError("mine")


INTERRUPTIONS = [(press_ctrl_c, KeyboardInterrupt), (terminate, Term), (fail, ValueError)]


def go_on(trainer, how: str, folder: Path, **arguments) -> contextlib.AbstractContextManager[Trainer]:
    """Return the trainer that continues: the same one, or a new one that has loaded its checkpoint."""
    if how == "fit again":
        return contextlib.nullcontext(trainer)
    trainer.save(folder / "left.safetensors")
    other = make(**arguments)
    other.load(folder / "left.safetensors")
    assert (other.step, other.epoch) == (trainer.step, trainer.epoch)
    return other


@pytest.mark.parametrize("how", ["fit again", "save and load"])
@pytest.mark.parametrize(("what", "error"), INTERRUPTIONS)
@pytest.mark.parametrize("batch", [0, 2, STEPS - 1])
@pytest.mark.usefixtures("one_step_at_a_time")
def test_it_goes_on_where_it_was_left(batch, what, error, how, whole, tmp_path):
    with make() as trainer:
        callback = At(what, batch=batch)
        fit(trainer, 1)
        with pytest.raises(error):
            fit(trainer, 2, callbacks=[callback])
        assert (trainer.step, trainer.epoch) == (STEPS + batch + 1, 1)
        with go_on(trainer, how, tmp_path) as other:
            rest = At(None)
            history = fit(other, 2, callbacks=[rest])
            assert (*digests(other), (other.step, other.epoch)) == (*whole[:2], (3 * STEPS, 3))
    assert callback.batches + rest.batches == [*range(STEPS)] * 2
    assert history.history == {name: values[1:] for name, values in whole[2].items()}  # every bit


@pytest.mark.parametrize("how", ["fit again", "save and load"])
def test_workers_had_gone_ahead(how, whole, tmp_path):
    """Weights, position and step log are of the same step, even if callbacks were called for fewer steps."""
    with make(workers=2, engine="processes") as trainer:
        with pytest.raises(KeyboardInterrupt):
            fit(trainer, 3, callbacks=[At(press_ctrl_c, batch=1)])
        with go_on(trainer, how, tmp_path, workers=1, engine="processes") as other:
            history = fit(other, 3)
            assert (*digests(other), history.history) == whole


def test_what_workers_were_at_is_never_published(tmp_path):
    """A worker that is inside a step when fit ends cannot finish it during the next job."""
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    workers = []

    def leave() -> None:
        os.close(os.open(gate, os.O_WRONLY))  # the worker is at its next gradient, and reads to the end
        workers.extend(os.pidfd_open(pid) for pid in trainer.pids)
        raise Term

    hold = os.open(gate, os.O_RDWR)
    with make(Wait(gate), engine="processes", workers=1) as trainer:
        with pytest.raises(Term):
            fit(trainer, 1, callbacks=[At(leave, batch=0)], validation_data=None)
        assert all(select.select([worker], [], [], 0)[0] for worker in workers)  # the workers have ended
        assert (trainer.step, trainer.snapshot().version) == (1, 2)
    for fd in (hold, *workers):
        os.close(fd)


class Wait:
    """The network, except that the second gradient of a process waits for its gate."""

    def __init__(self, gate: Path) -> None:
        self.gate, self.calls = gate, 0

    def loss_and_grad(self, params, batch, rng):
        self.calls += 1
        if self.calls == 4:  # the first step has three shards
            with open(self.gate) as gate:
                gate.read()
        return networks.mlp_with_dropout(params, batch, rng)


class Once:
    """The network, except that it calls a function once, for the first batch of at most six examples."""

    def __init__(self, folder: Path, what: str) -> None:
        self.folder, self.what = folder, what

    def loss_and_grad(self, params, batch, rng):
        loss, grads = networks.mlp_with_dropout(params, batch, rng)[:2]
        if len(batch[0]) <= 2:  # a third of the last batch
            with contextlib.suppress(FileExistsError):
                (self.folder / self.what).touch(exist_ok=False)
                if self.what == "kill":
                    os.kill(os.getpid(), signal.SIGKILL)
                if self.what == "fail":
                    raise ValueError("mine")
                loss = np.nan
        return loss, grads


@pytest.mark.parametrize("arguments", ENGINES, ids=ENGINE_IDS)
@pytest.mark.parametrize(("what", "error"), [("fail", WorkerError), ("nan", NonFiniteLossError), ("kill", WorkerError)])
def test_the_model_fails(what, error, arguments, whole, tmp_path):
    if what == "kill" and "workers" not in arguments:
        pytest.skip("the serial engine's worker is this process")
    with make(Once(tmp_path, what), max_restarts=0, **({"engine": "processes"} | arguments)) as trainer:
        with pytest.raises(error):
            fit(trainer, 3, validation_data=None)
        # before the server gives up, another worker may have made the step of one that was killed
        assert trainer.step in ((STEPS - 1, STEPS) if what == "kill" else (STEPS - 1,))
        assert trainer.epoch == 0
        fit(trainer, 3, validation_data=None)
        assert (*digests(trainer), trainer.step) == (*whole[:2], 3 * STEPS)


def test_only_the_end_of_the_epoch_is_left(whole, tmp_path, monkeypatch):
    """Validation fails after all steps were made."""
    for how in ("fit again", "save and load"):
        with make() as trainer:
            with monkeypatch.context() as patch:
                patch.setattr(Evaluator, "evaluate", lambda *_, **__: press_ctrl_c())
                with pytest.raises(KeyboardInterrupt):
                    fit(trainer, 3)
            assert (trainer.step, trainer.epoch) == (STEPS, 0)
            with go_on(trainer, how, tmp_path) as other:
                rest = At(None)
                history = fit(other, 3, callbacks=[rest])
                assert (*digests(other), history.history) == whole
                assert rest.batches == [*range(STEPS)] * 2


@pytest.mark.usefixtures("one_step_at_a_time")
def test_it_is_left_again_and_again(whole, tmp_path):
    with make() as trainer:
        for turn in range(3 * STEPS):
            with pytest.raises(Term):
                fit(trainer, 1, callbacks=[At(terminate, batch=turn % STEPS)])
            if turn % 4 == 0:  # before the first step
                with pytest.raises(Term):
                    fit(trainer, 1, callbacks=[At(terminate, epoch_begin=trainer.epoch)])
            if (turn + 1) % STEPS == 0:
                fit(trainer, 1)  # the end of the epoch
        assert (*digests(trainer), trainer.step) == (*whole[:2], 3 * STEPS)


def test_a_checkpoint_in_on_train_end_after_an_error(whole, tmp_path):
    class Save(Callback):
        def on_train_end(self, logs):
            self.trainer.save(tmp_path / f"step-{self.trainer.step:012}.safetensors")

    with make() as trainer, pytest.raises(KeyboardInterrupt):
        fit(trainer, 3, callbacks=[At(press_ctrl_c, batch=1), Save()])
    with make() as trainer:
        history = fit(trainer, 3, checkpoint_dir=tmp_path, resume=True)
        assert (*digests(trainer), history.history) == whole


# -- a learning rate, and weights, that are set before it continues


@pytest.mark.parametrize("how", ["fit again", "save and load"])
@pytest.mark.usefixtures("one_step_at_a_time")
def test_a_learning_rate_that_is_set_counts_for_the_rest(how, tmp_path):
    rates: list[float] = []

    class See(Callback):
        def on_batch_end(self, batch, logs):
            rates.append(logs["learning_rate"])

    with make() as trainer:
        with pytest.raises(Term):
            fit(trainer, 1, callbacks=[See(), At(terminate, batch=1)])
        trainer.learning_rate = 0.05
        with go_on(trainer, how, tmp_path) as other:
            fit(other, 1, callbacks=[See()])
    assert rates == [0.1, 0.1, 0.05, 0.05, 0.05]


@pytest.mark.usefixtures("one_step_at_a_time")
def test_with_other_weights_the_epoch_begins_anew(caplog):
    with make() as trainer:
        with pytest.raises(Term):
            fit(trainer, 1, callbacks=[At(terminate, batch=1)])
        with caplog.at_level(logging.INFO, "untorn"):
            trainer.params = networks.mlp_params((6, 8, 3))
        assert "epoch 0, which was partly done, starts over with the new weights" in caplog.text
        rest = At(None)
        fit(trainer, 1, callbacks=[rest])
        assert rest.batches == [*range(STEPS)]


# -- other data, other batches


class Iterable:
    """Batches that can be read more than once."""

    def __init__(self, data=DATA, size: int = 16) -> None:
        starts = range(0, len(data[0]), size)
        self.batches = [tuple(part[start : start + size] for part in data) for start in starts]

    def __iter__(self):
        return iter(self.batches)


OTHER = tuple(part.copy() for part in DATA)
SAME = Iterable()
ITERATOR = iter(SAME.batches * 4)


@pytest.mark.parametrize(
    ("first", "then", "why_not"),
    [
        ((DATA, {"batch_size": 16}), (DATA, {"batch_size": 16}), None),
        ((DATA, {"batch_size": 16}), (list(DATA), {"batch_size": 16}), None),
        ((DATA, {"batch_size": 16}), (OTHER, {"batch_size": 16}), "it was begun with other data"),
        ((DATA, {"batch_size": 16}), (DATA, {"batch_size": 8}), "it was begun with batch_size=16, examples=70"),
        ((DATA, {"batch_size": 16}), (DATA, {"batch_size": 16, "shuffle": False}), "this fit has .*shuffle=False"),
        ((DATA, {"batch_size": 16}), (SAME, {}), "it was begun with batch_size=16, examples=70"),
        ((SAME, {}), (SAME, {}), None),
        ((SAME, {}), (Iterable(), {}), "it was begun with other data"),
        ((ITERATOR, {"steps_per_epoch": 4}), (ITERATOR, {"steps_per_epoch": 4}), "cannot be read again"),
    ],
)
@pytest.mark.usefixtures("one_step_at_a_time")
def test_it_says_whether_it_goes_on(first, then, why_not, caplog):
    with make() as trainer, caplog.at_level(logging.INFO, "untorn"):
        with pytest.raises(Term):
            trainer.fit(first[0], epochs=1, callbacks=[At(terminate, batch=1)], **first[1])
        rest = At(None)
        trainer.fit(then[0], epochs=1, callbacks=[rest], **then[1])
    said = [record for record in caplog.records if "left after 2 steps" in record.message]
    assert len(said) == 1
    if why_not is None:
        assert (said[0].levelno, rest.batches) == (logging.INFO, [2, 3, 4])
    else:
        assert (said[0].levelno, rest.batches[0]) == (logging.WARNING, 0)
        assert said[0].message.startswith("epoch 0, which was left after 2 steps, starts over")
        assert re.search(why_not, said[0].message)


@pytest.mark.parametrize("how", ["fit again", "save and load"])
def test_a_stream_goes_on(how, tmp_path):
    with make() as trainer:
        trainer.fit(SAME, epochs=2)
        expected = digests(trainer)
    with make(engine="processes", workers=2) as trainer:
        with pytest.raises(KeyboardInterrupt):
            trainer.fit(SAME, epochs=2, callbacks=[At(press_ctrl_c, batch=1)])
        with go_on(trainer, how, tmp_path) as other:
            other.fit(SAME, epochs=2)
            assert (*digests(other), other.step) == (*expected, 2 * STEPS)


def test_a_finished_fit_leaves_nothing_half_done(caplog):
    with make() as trainer, caplog.at_level(logging.INFO, "untorn"):
        fit(trainer, 1, callbacks=[EarlyStopping(patience=1, restore_best_weights=True)])
        with pytest.raises(ValueError, match="mine"):
            fit(trainer, 1, callbacks=[At(fail, epoch_begin=1)])
        rest = At(None)
        fit(trainer, 1, callbacks=[rest])
    assert rest.batches == [*range(STEPS)]
    assert "left after" not in caplog.text


# -- async: later batches overtake a slow one


EXAMPLES = 48
COUNTING = (np.eye(EXAMPLES), np.zeros(EXAMPLES))


def count(params, batch):
    """With a learning rate of 1, the weights count how often each example was used."""
    x, _ = batch
    return 0.0, {"w": -x.sum(axis=0)}


@pytest.mark.parametrize("how", ["fit again", "save and load"])
@pytest.mark.parametrize("data", ["arrays", "stream"])
@pytest.mark.parametrize("engine", ["serial", "processes"])
def test_async_every_example_counts_once(engine, data, how, tmp_path):
    given, arguments = COUNTING, {"batch_size": 2}
    if data == "stream":
        given, arguments = Iterable(COUNTING, 2), {}
    made = {"optimizer": SGD(1.0), "mode": "async", "max_staleness": 3, "engine": engine}
    made |= {"workers": 2} if engine == "processes" else {}
    params = {"w": np.zeros(EXAMPLES)}
    trainer = Trainer(count, params, **made)
    for batch in (3, 12):
        with pytest.raises(KeyboardInterrupt), trainer if how != "fit again" else contextlib.nullcontext():
            try:
                trainer.fit(given, epochs=1, callbacks=[At(press_ctrl_c, batch=batch)], **arguments)
            finally:
                assert trainer.params["w"].sum() == 2 * trainer.step
                trainer.save(tmp_path / "left.safetensors")
        if how != "fit again":
            trainer = Trainer(count, params, **made)
            trainer.load(tmp_path / "left.safetensors")
        if trainer.step > 12:
            break
    with trainer:
        trainer.fit(given, epochs=1, **arguments)
        assert (trainer.params["w"] == 1).all()
        assert (trainer.step, trainer.epoch) == (EXAMPLES // 2, 1)


def test_what_others_overtook(tmp_path):
    """A batch that is still computed when fit ends is the first one of the rest of the epoch, and is applied once."""
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    made = {"optimizer": SGD(1.0), "mode": "async", "max_staleness": 3, "workers": 2}
    with Trainer(Slow(gate), {"w": np.zeros(EXAMPLES)}, **made) as trainer:
        hold = os.open(gate, os.O_RDWR)
        with pytest.raises(KeyboardInterrupt):
            trainer.fit(COUNTING, epochs=1, batch_size=2, shuffle=False, callbacks=[At(press_ctrl_c, batch=1)])
        os.close(hold)
        missing = np.flatnonzero(trainer.params["w"] == 0)
        assert list(missing[:2]) == [0, 1]  # the first batch, and then those that were not begun
        trainer.save(tmp_path / "left.safetensors")
    with Trainer(count, {"w": np.zeros(EXAMPLES)}, **made) as trainer:
        trainer.load(tmp_path / "left.safetensors")
        trainer.fit(COUNTING, epochs=1, batch_size=2, shuffle=False)
        assert (trainer.params["w"] == 1).all()


class Slow:
    """Counts; the first example waits for its gate."""

    def __init__(self, gate: Path) -> None:
        self.gate = gate

    def loss_and_grad(self, params, batch):
        if batch[0][0, 0] == 1:
            with open(self.gate) as gate:
                gate.read()
        return count(params, batch)


def test_the_arrays_of_nested_data_are_known_again():
    x, y = np.zeros(3), np.ones(3)
    data = DataRef({"inputs": (x, [y]), "target": x})
    assert data.is_of({"inputs": (x, [y]), "target": x})
    assert not data.is_of({"inputs": (x, [y.copy()]), "target": x})
    assert not data.is_of({"inputs": (x,), "target": x})
