"""Failures of fit, and the end of a trainer."""

import os
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import networks
import untorn
from untorn import SGD, ClosedError, NonFiniteLossError, WorkerError
from untorn.share import naming
from untorn.train import Callback, Trainer, weights_sha256

DATA = networks.data_of(100, 5)
ENGINES = pytest.mark.parametrize("engine", ["serial", "processes"])


def line_trainer(model=networks.line, **arguments):
    given = {"optimizer": SGD(0.05), "engine": "serial", "shards": 2} | arguments
    return Trainer(model, networks.line_params(5), **given)


# -- failures


def test_a_loss_that_is_not_finite_keeps_the_weights_and_the_trainer():
    x, y = (array.copy() for array in DATA)
    with line_trainer() as trainer:
        trainer.fit((x, y), epochs=1, batch_size=10)
        before = weights_sha256(trainer.params)
        x[:] = np.nan
        with pytest.raises(NonFiniteLossError, match=r"the loss is nan in epoch 1, step 0, shard 0 \(5 examples: "):
            trainer.fit((x, y), epochs=1, batch_size=10)
        assert weights_sha256(trainer.params) == before
        trainer.fit(DATA, epochs=1, batch_size=10)
        assert weights_sha256(trainer.params) != before


class Spoiling:
    """A model whose gradient has an infinity in the fifth call, although the loss is finite."""

    def __init__(self, dtype=None):
        self.calls, self.dtype = 0, dtype

    def loss_and_grad(self, params, batch):
        loss, grads = networks.line(params, batch)
        self.calls += 1
        if self.calls == 5:
            grads["w"][2] = np.inf
        return loss, {name: grad.astype(self.dtype or grad.dtype) for name, grad in grads.items()}


@pytest.mark.parametrize(("dtype", "accumulate", "step"), [(None, 1, 2), (np.float32, 1, 2), (None, 2, 1)])
def test_a_gradient_that_is_not_finite_keeps_the_weights(dtype, accumulate, step):
    """The gradient is copied, converted, or computed in parts."""
    with line_trainer(Spoiling(dtype), accumulate=accumulate) as trainer:
        words = (
            rf"the gradient of parameter w has a NaN or an infinity \(the loss is .* in epoch 0, step {step}, shard 0"
        )
        with pytest.raises(NonFiniteLossError, match=words):
            trainer.fit(DATA, epochs=1, batch_size=10)
        assert trainer.step == step
        assert all(np.isfinite(leaf).all() for leaf in trainer.params.values())


class Unprintable(Exception):
    def __str__(self):
        raise ZeroDivisionError


def unprintable(params, batch):
    raise Unprintable


@ENGINES
def test_an_error_that_cannot_be_shown_is_one_all_the_same(engine):
    with line_trainer(unprintable, engine=engine, workers=1) as trainer:
        with pytest.raises(WorkerError, match=r"Unprintable: \(its message cannot be shown: ZeroDivisionError"):
            trainer.fit(DATA, epochs=1, batch_size=10)
        assert trainer.restarts == 0


@pytest.mark.parametrize("metric", ["loss", "learning_rate", "val_accuracy"])
def test_a_metric_takes_no_name_of_ours(metric):
    def model(params, batch):
        return *networks.line(params, batch), {metric: 1.0}

    with (
        line_trainer(model) as trainer,
        pytest.raises(WorkerError, match=f"the metric '{metric}': the trainer uses this name itself"),
    ):
        trainer.fit(DATA, epochs=1, batch_size=10)


# -- the end


class AtEpochs(Callback):
    """Calls a function with its trainer at the end of each epoch."""

    def __init__(self, what):
        self.what = what

    def on_epoch_end(self, epoch, logs):
        self.what(self.trainer)


class AtSteps(Callback):
    """Calls a function with its trainer after each step."""

    def __init__(self, what):
        self.what = what

    def on_batch_end(self, step, logs):
        self.what(self.trainer)


@ENGINES
def test_fit_inside_a_callback_is_refused(engine):
    with line_trainer(engine=engine, workers=1) as trainer:
        nested = AtEpochs(lambda trainer: trainer.fit(DATA, epochs=1, batch_size=10))
        with pytest.raises(RuntimeError, match="fit: it runs already, and this is one of its callbacks"):
            trainer.fit(DATA, epochs=3, batch_size=10, callbacks=[nested])
        assert trainer.epoch == 1
        assert len(trainer.fit(DATA, epochs=1, batch_size=10)) == 1


@ENGINES
@pytest.mark.parametrize("when", [AtEpochs, AtSteps])
def test_closed_in_a_callback_fit_says_so(engine, when, name):
    trainer = line_trainer(engine=engine, workers=1, name=name)
    with pytest.raises(ClosedError, match="this trainer was closed while it trained"):
        trainer.fit(DATA, epochs=3, batch_size=10, callbacks=[when(Trainer.close)])
    with pytest.raises(untorn.ChannelNotFoundError):
        untorn.subscribe(name)


class AtLastStep(AtSteps):
    def on_batch_end(self, step, logs):
        if step == len(DATA[0]) // 10 - 1:
            self.what(self.trainer)


@pytest.mark.parametrize(
    ("when", "options"), [(AtLastStep, {"validation_data": DATA}), (AtEpochs, {"checkpoint_dir": "checkpoints"})]
)
def test_closed_in_the_last_epoch_nothing_more_is_evaluated_or_saved(when, options, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    trainer = line_trainer(engine="serial")
    with pytest.raises(ClosedError, match="this trainer was closed while it trained"):
        trainer.fit(DATA, epochs=1, batch_size=10, callbacks=[when(Trainer.close)], **options)
    assert not list(tmp_path.glob("checkpoints/*.safetensors"))


@ENGINES
def test_closed_by_another_thread_fit_says_so(engine):
    trainer, begun = line_trainer(engine=engine, workers=1), threading.Event()
    with ThreadPoolExecutor(1) as pool:
        fitting = pool.submit(
            trainer.fit, DATA, epochs=10**6, batch_size=10, callbacks=[AtEpochs(lambda trainer: begun.set())]
        )
        assert begun.wait(60)
        trainer.close()
        with pytest.raises(ClosedError, match="this trainer was closed while it trained"):
            fitting.result(60)
    assert trainer.pids == []


@ENGINES
def test_a_closed_trainer_says_so(engine):
    trainer = line_trainer(engine=engine, workers=1)
    trainer.fit(DATA, epochs=1, batch_size=10)
    trainer.close()
    trainer.close()
    for use in (
        lambda: trainer.params,
        trainer.snapshot,
        trainer.subscriber,
        lambda: trainer.fit(DATA, epochs=1, batch_size=10),
        lambda: trainer.evaluate(DATA),
        trainer.__enter__,
    ):
        with pytest.raises(ClosedError, match="this trainer is closed"):
            use()
    assert trainer.pids == []


def test_a_trainer_that_was_never_used_closes():
    line_trainer().close()
    line_trainer(engine="processes").close()


def test_a_forgotten_trainer_closes_itself():
    """The check after each test finds no process left."""
    trainer = line_trainer(engine="processes", workers=1)
    trainer.fit(DATA, epochs=1, batch_size=50)
    assert len(trainer.pids) == 1
    del trainer


# -- weights whose files are removed


class Remover(Callback):
    """Removes the files once, as a cleanup tool does, and may publish another value under the name."""

    def __init__(self, name, *, publishes):
        self.name, self.publishes, self.other = name, publishes, None

    def on_epoch_end(self, epoch, logs):
        if epoch == 0:
            with untorn.publish("elsewhere", name=f"{self.name}-x") as beside:
                folder = os.path.dirname(beside._files.control)
                beside.unlink()
            for part in ("data", "control"):
                os.unlink(f"{folder}/{self.name}.{part}")
            if self.publishes:
                self.other = untorn.publish("other", name=self.name)


@pytest.mark.parametrize("publishes", [False, True])
def test_training_goes_on_when_somebody_removes_the_files_of_the_weights(name, monkeypatch, publishes):
    """The files are restored; if another publisher has the name now, a warning says so, and training continues."""
    monkeypatch.setattr(naming, "LOOK_INTERVAL_S", -1.0)
    with line_trainer() as trainer:
        trainer.fit(DATA, epochs=3, batch_size=10)
        expected = weights_sha256(trainer.params)
    remover = Remover(name, publishes=publishes)
    said = "has lost its name" if publishes else "New readers find it again"
    with line_trainer(name=name) as trainer:
        with pytest.warns(RuntimeWarning, match=said):
            trainer.fit(DATA, epochs=3, batch_size=10, callbacks=[remover])
        assert weights_sha256(trainer.params) == expected
        value = untorn.subscribe(name).snapshot().value
        assert value == "other" if publishes else weights_sha256(value) == expected
    if remover.other is not None:
        remover.other.unlink()
        remover.other.close()
