"""evaluate and predict: the same bits with and without workers, and reports of their errors."""

import os
import signal
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import networks
from untorn import ClosedError, NonFiniteLossError, WorkerError
from untorn.train import SGD, Callback, Trainer
from untorn.train.run import evaluation

DATA = networks.classes_of(500, 6, 3)


@pytest.fixture(autouse=True)
def always_worth_it(monkeypatch):
    monkeypatch.setattr(evaluation, "_WORTH_S", 0.0)


class Model:
    """A network that records the process that evaluates it."""

    def loss_and_grad(self, params, batch):
        loss, grads, metrics = networks.mlp(params, batch)
        return loss, grads, metrics | {"here": float(os.getpid())}

    def predict(self, params, x):
        return networks.mlp(params, (x, np.zeros(len(x), int)))[1][0].w[0] + x.sum(1)[:, None]


class Fragile(Model):
    """Fails for an example of ones, kills its process for one of twos, and returns NaN for one of threes."""

    def loss_and_grad(self, params, batch):
        value = batch[0][(batch[0] == batch[0][:, :1]).all(1), 0]
        if 1 in value:
            raise RuntimeError("ones")
        if 2 in value:
            os.kill(os.getpid(), signal.SIGKILL)
        loss, grads, metrics = super().loss_and_grad(params, batch)
        return (float("nan") if 3 in value else loss), grads, metrics

    def predict(self, params, x):
        return super().predict(params, x)[:, : 1 + int((x == 4).all(1).any())]


def trainer_of(model, **arguments):
    given = {"optimizer": SGD(0.1), "shards": 2, "workers": 2, "max_restarts": 1} | arguments
    return Trainer(model, networks.mlp_params((6, 5, 3)), **given)


def without_here(metrics):
    return {name: value for name, value in metrics.items() if not name.endswith("here")}


def test_workers_give_the_bits_of_one_process():
    answers = []
    for engine in ({"engine": "serial"}, {"workers": 1}, {"workers": 3}):
        with trainer_of(Model(), **engine) as trainer:
            trainer.fit(DATA, epochs=1, batch_size=100)
            evaluated = trainer.evaluate(DATA, batch_size=64)
            if "workers" in engine:
                assert evaluated["here"] != os.getpid()
            answers.append((without_here(evaluated), trainer.predict(DATA[0], batch_size=33).tobytes()))
    assert answers[0] == answers[1] == answers[2]


def test_validation_interrupts_a_fit_and_gives_it_back():
    histories, digests = [], []
    for engine in ({"engine": "serial"}, {"workers": 2}):
        with trainer_of(Model(), **engine) as trainer:
            large = tuple(np.concatenate([part] * 5) for part in DATA)  # more than one batch of 1024
            history = trainer.fit(DATA, epochs=4, batch_size=50, validation_data=large).history
            assert trainer.restarts == 0
            if "workers" in engine:
                assert history["val_here"][-1] != os.getpid()
            histories.append(without_here(history))
            digests.append([layer.w.tobytes() for layer in trainer.params])
    assert histories[0] == histories[1]
    assert digests[0] == digests[1]


def test_between_two_epochs_in_async_mode_too():
    with trainer_of(Model(), mode="async", shards=None) as trainer:
        large = tuple(np.concatenate([part] * 5) for part in DATA)
        history = trainer.fit(DATA, epochs=3, batch_size=50, validation_data=large).history
        assert len(history["val_loss"]) == 3


class EvaluateInside(Callback):
    """Evaluates while the workers make steps, and from another thread."""

    def __init__(self) -> None:
        self.answers: list[tuple[int, dict]] = []

    def on_batch_end(self, batch, logs):
        self.answers.append((self.trainer.snapshot().version, self.trainer.evaluate(DATA, batch_size=50)))
        with ThreadPoolExecutor(1) as pool:
            pool.submit(self.trainer.evaluate, DATA, batch_size=50).result()


def test_an_evaluation_between_steps_is_of_one_version():
    """The workers continue meanwhile, so this process evaluates."""
    inside = EvaluateInside()
    with trainer_of(Model()) as trainer:
        trainer.fit(DATA, epochs=2, batch_size=100, callbacks=[inside])
        assert {answer["here"] for _, answer in inside.answers} == {float(os.getpid())}
        assert trainer.evaluate(DATA, batch_size=50)["here"] != os.getpid()


class Kill(Callback):
    """Kills a worker at the end of each epoch, before validation."""

    def on_epoch_begin(self, epoch, logs):
        os.kill(self.trainer.pids[epoch % 2], signal.SIGKILL)


def test_a_killed_worker_is_replaced_while_others_answer(rng):
    large = tuple(np.concatenate([part] * 20) for part in DATA)
    with trainer_of(Model(), engine="serial") as trainer:
        expected = without_here(trainer.fit(DATA, epochs=3, batch_size=50, validation_data=large).history)
    with trainer_of(Model(), max_restarts=10) as trainer:
        got = trainer.fit(DATA, epochs=3, batch_size=50, validation_data=large, callbacks=[Kill()]).history
        assert trainer.restarts >= 1
        assert without_here(got) == expected
        os.kill(trainer.pids[0], signal.SIGKILL)
        assert trainer.evaluate(DATA, batch_size=50)["loss"] > 0


class Signals(Model):
    """A worker sends a signal to the process that trains for the example that is all sixes."""

    def loss_and_grad(self, params, batch):
        if (batch[0] == 6).all(1).any():
            os.kill(os.getppid(), signal.SIGUSR1)
        return super().loss_and_grad(params, batch)


def test_a_signal_handler_may_evaluate_inside_an_evaluation():
    answers = []
    with trainer_of(Signals()) as trainer:
        trainer.fit(DATA, epochs=1, batch_size=50)
        before = signal.signal(signal.SIGUSR1, lambda *_: answers.append(trainer.evaluate(DATA, batch_size=50)))
        try:
            trainer.evaluate(with_example(300, 6.0), batch_size=50)
        finally:
            signal.signal(signal.SIGUSR1, before)
        (answer,) = answers
        assert without_here(answer) == without_here(trainer.evaluate(DATA, batch_size=50))


class KillsItsReaders:
    """A dataset that kills each worker that opens it."""

    def __len__(self):
        return len(DATA[0])

    def __getitem__(self, index):
        return DATA[0][index], DATA[1][index]

    def __reduce__(self):
        return os.kill, (_Pid(), signal.SIGKILL)


class _Pid:
    def __reduce__(self):
        return os.getpid, ()


def test_data_that_kills_every_worker_ends_the_evaluation():
    with trainer_of(Model()) as trainer:
        trainer.fit(DATA, epochs=1, batch_size=50)
        with pytest.raises(WorkerError, match=r"2 workers ended before they could take part \(the last was killed by"):
            trainer.evaluate(KillsItsReaders(), batch_size=50)
        assert trainer.evaluate(DATA, batch_size=50)["loss"] > 0


@pytest.mark.parametrize(("call", "error"), [("close", ClosedError), ("fit", RuntimeError)])
def test_a_signal_handler_that_takes_the_workers_away_ends_an_evaluation(call, error):
    data = with_example(300, 6.0)
    with trainer_of(Signals()) as trainer:
        trainer.fit(DATA, epochs=1, batch_size=100)
        calls = {"close": trainer.close, "fit": lambda: trainer.fit(DATA, epochs=1, batch_size=100)}
        before = signal.signal(signal.SIGUSR1, lambda *_: calls[call]())
        try:
            with pytest.raises(error, match=r"closed|signal handler"):
                trainer.evaluate(data, batch_size=50)
        finally:
            signal.signal(signal.SIGUSR1, before)
        if call == "fit":
            assert trainer.evaluate(DATA, batch_size=50)["loss"] > 0


def with_example(index, value):
    x = DATA[0].copy()
    x[index] = value
    return x, DATA[1]


def test_an_error_in_a_worker_is_raised_with_its_traceback():
    with trainer_of(Fragile()) as trainer:
        trainer.fit(DATA, epochs=1, batch_size=100)
        with pytest.raises(WorkerError, match=r"at examples 200 to 249: RuntimeError: ones") as caught:
            trainer.evaluate(with_example(211, 1), batch_size=50)
        assert 'raise RuntimeError("ones")' in str(caught.value)
        with pytest.raises(NonFiniteLossError, match="the loss is nan for examples 450 to 499"):
            trainer.evaluate(with_example(499, 3), batch_size=50)
        with pytest.raises(WorkerError, match=r"2 workers died one after the other at examples 50 to 99.* SIGKILL"):
            trainer.evaluate(with_example(50, 2), batch_size=50)
        with pytest.raises(WorkerError, match=r"examples 100 to 149 it is float32 of shape \(2,\)"):
            trainer.predict(with_example(101, 4)[0], batch_size=50)
        assert trainer.evaluate(DATA, batch_size=50)["loss"] > 0  # the trainer works again


def test_outputs_that_are_no_rows_are_joined_here():
    class Odd(Model):
        def predict(self, params, x):
            return np.arange(3)

    with trainer_of(Odd(), engine="serial") as trainer:
        assert trainer.predict(DATA[0], batch_size=250).tolist() == [0, 1, 2, 0, 1, 2]


def test_a_prediction_without_rows_is_named():
    class Single:
        def loss_and_grad(self, params, batch):
            return networks.line(params, batch)

        def predict(self, params, x):
            return 3.0

    with (
        Trainer(Single(), networks.line_params(5), optimizer=SGD(0.1), engine="serial") as trainer,
        pytest.raises(TypeError, match="predict: expected an array with one row per example, found a single float"),
    ):
        trainer.predict(np.zeros((4, 5)))
