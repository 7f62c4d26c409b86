"""Trainer: its arguments, the guarantees of fit, its attributes during training, and its end."""

import math
import pickle
import subprocess
import sys

import numpy as np
import pytest

import networks
import untorn
from untorn import SGD, EarlyStopping, UnsupportedTypeError, WorkerError
from untorn.train import Callback, History, LocalSteps, Trainer, weights_sha256

DATA = networks.data_of(100, 5)
CLASSES = networks.classes_of(200, 8, 3)
ENGINES = pytest.mark.parametrize("engine", ["serial", "processes"])


def line_trainer(**arguments):
    given = {"optimizer": SGD(0.05), "engine": "serial", "shards": 2} | arguments
    return Trainer(networks.line, networks.line_params(5), **given)


def mlp_trainer(model=networks.mlp, **arguments):
    given = {"optimizer": SGD(0.1, momentum=0.9), "engine": "serial", "shards": 4} | arguments
    return Trainer(model, networks.mlp_params((8, 16, 3)), **given)


def line_with_a_metric_of_the_batch(params, batch):
    loss, grads = networks.line(params, batch)
    return loss, grads, {"even" if batch[0][0, 0] % 2 == 0 else "odd": 1.0}


# -- arguments


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"workers": 0}, ValueError, "workers: expected 1 to 1000, found 0"),
        ({"workers": -1}, ValueError, "workers: expected 1 to 1000, found -1"),
        ({"workers": 2.0}, TypeError, "workers: expected an int, found float"),
        ({"workers": True}, TypeError, "workers: expected an int, found bool"),
        ({"shards": 0}, ValueError, "shards: expected 1 to 1024, found 0"),
        ({"shards": 1025}, ValueError, "shards: expected 1 to 1024, found 1025"),
        ({"seed": -1}, ValueError, "seed: expected 0 to"),
        ({"seed": None}, TypeError, "seed: expected an int, found NoneType"),
        ({"threads_per_worker": 0}, ValueError, "threads_per_worker: expected 1 to"),
        ({"max_restarts": -1}, ValueError, "max_restarts: expected 0 to"),
        (
            {"engine": "threads"},
            ValueError,
            "engine: expected 'processes', 'serial', 'ray' or 'loopback', found 'threads'",
        ),
        ({"optimizer": 0.1}, TypeError, "optimizer: expected untorn.SGD(...), found float"),
        ({"mode": "hogwild"}, ValueError, "mode: expected 'sync' or 'async', found 'hogwild'"),
        ({"max_staleness": 2}, ValueError, "max_staleness: sync mode has no stale gradients"),
        ({"mode": "async", "max_staleness": -1}, ValueError, "max_staleness: expected 0 to 1023, found -1"),
        ({"mode": "async", "max_staleness": 1, "workers": 4}, ValueError, "2 of 4 workers would have nothing to do"),
        ({"mode": "async", "shards": 4}, ValueError, "shards: async mode computes each batch's gradient in one piece"),
        ({"workers": "many"}, TypeError, "workers: expected an int or 'auto', found 'many'"),
        ({"accumulate": 0}, ValueError, "accumulate: expected 1"),
        ({"clip_norm": 0}, ValueError, "clip_norm: expected a finite number greater than 0"),
    ],
)
def test_a_wrong_argument_is_named(arguments, error, message):
    with pytest.raises(error) as caught:
        line_trainer(**arguments)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("params", "error", "message"),
    [
        (None, TypeError, "params: (the value itself): expected an array of float32 or float64"),
        ({}, ValueError, "params: there is nothing to train"),
        ({"w": np.zeros(5, int)}, TypeError, "params: w: expected an array of float32 or float64"),
        ({"w": np.zeros(5), "b": 0.0}, TypeError, "params: b: expected an array"),
        ({"w": np.array([None])}, TypeError, "w"),
    ],
)  # fmt: skip
def test_wrong_parameters_are_named(params, error, message):
    with pytest.raises(error) as caught:
        Trainer(networks.line, params, optimizer=SGD(0.1))
    assert message in str(caught.value)


def test_workers_may_be_a_number_of_numpy():
    assert line_trainer(workers=np.int64(3), engine="processes", shards=None).shards == 3


def test_a_wrong_model_is_named():
    with pytest.raises(TypeError, match=r"model: expected a function .* found str"):
        Trainer("mlp", networks.line_params(5), optimizer=SGD(0.1))


@ENGINES
@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"batch_size": 0}, ValueError, "batch_size: expected 1 to 2147483648, found 0"),
        ({"batch_size": -4}, ValueError, "batch_size: expected 1 to 2147483648, found -4"),
        ({"batch_size": 2.5}, TypeError, "batch_size: expected an int, found float"),
        ({"epochs": -1}, ValueError, "epochs: expected 0 to 2147483648, found -1"),
        ({"epochs": "3"}, TypeError, "epochs: expected an int, found str"),
        ({"data": (DATA[0], DATA[1][:50])}, ValueError, "data[1] has 50 examples and data[0] has 100"),
        ({"data": (DATA[0], list(DATA[1]))}, TypeError, "data[1][0]: expected a NumPy array"),
        ({"data": None}, TypeError, "data: expected a NumPy array"),
        ({"data": (DATA[0][:0], DATA[1][:0])}, ValueError, "data: expected at least one example"),
        ({"data": (DATA[0].astype(object), DATA[1])}, UnsupportedTypeError, "object"),
        ({"validation_data": (DATA[0], DATA[1][:5])}, ValueError, "validation_data[1] has 5 examples"),
        ({"resume": True}, ValueError, "resume=True needs checkpoint_dir="),
        ({"checkpoint_dir": 3}, TypeError, "checkpoint_dir: expected a path, found int"),
        ({"checkpoint_dir": ""}, ValueError, "checkpoint_dir: expected a path, found an empty one"),
        ({"callbacks": EarlyStopping()}, TypeError, "callbacks: expected a list of Callback objects, found Early"),
        ({"callbacks": [EarlyStopping]}, TypeError, "callbacks[0]: expected a Callback object, found the class Early"),
        ({"callbacks": [3]}, TypeError, "callbacks[0]: expected a Callback object, found int"),
    ],
)
def test_a_wrong_argument_of_fit_is_named_and_the_trainer_goes_on(engine, arguments, error, message):
    with line_trainer(engine=engine, workers=1) as trainer:
        with pytest.raises(error) as caught:
            trainer.fit(**({"data": DATA, "epochs": 1, "batch_size": 10} | arguments))
        assert message in str(caught.value)
        assert trainer.step == 0
        assert trainer.pids == []
        if engine == "serial":
            assert len(trainer.fit(DATA, epochs=1, batch_size=10)) == 1


def test_data_must_be_given_in_full():
    with line_trainer() as trainer, pytest.raises(TypeError):
        trainer.fit(DATA, epochs=1)


# -- guarantees of fit


@ENGINES
def test_it_learns(engine):
    with mlp_trainer(engine=engine, workers=2) as trainer:
        history = trainer.fit(CLASSES, epochs=30, batch_size=32)
    assert history.history["loss"][-1] < 0.3 * history.history["loss"][0]
    assert history.history["accuracy"][-1] > 0.95


@ENGINES
@pytest.mark.parametrize("parts", [(1, 4), (2, 2, 1), (1, 1, 1, 1, 1)])
def test_repeated_fits_are_one_long_fit(engine, parts):
    """Momentum, the order of the examples and the random numbers continue where they were."""
    with mlp_trainer(networks.mlp_with_dropout) as trainer:
        whole = trainer.fit(CLASSES, epochs=5, batch_size=30)
        expected = weights_sha256(trainer.params)
    with mlp_trainer(networks.mlp_with_dropout, engine=engine, workers=2) as trainer:
        histories = [trainer.fit(CLASSES, epochs=epochs, batch_size=30) for epochs in parts]
        assert weights_sha256(trainer.params) == expected
        assert (trainer.epoch, trainer.step) == (5, 5 * 7)
    assert [loss for history in histories for loss in history.history["loss"]] == whole.history["loss"]
    assert [epoch for history in histories for epoch in history.epoch] == whole.epoch


def test_no_epochs_change_nothing():
    with line_trainer() as trainer:
        history = trainer.fit(DATA, epochs=0, batch_size=10)
        assert len(history) == 0
        assert trainer.snapshot().version == 1
        assert weights_sha256(trainer.params) == weights_sha256(networks.line_params(5))


def test_the_last_smaller_batch_counts_by_its_examples():
    """With 7 examples in batches of 5 and 2, a gradient is a mean over its batch, and a metric a mean over all 7."""
    steps = Recorder()
    with line_trainer(optimizer=SGD(1e-12)) as trainer:  # the weights hardly change
        history = trainer.fit((DATA[0][:7], DATA[1][:7]), epochs=1, batch_size=5, callbacks=[steps])
        full = networks.line(networks.line_params(5), (DATA[0][:7], DATA[1][:7]))[0]
    assert [logs["examples"] for name, _, logs in steps.calls if name == "batch_end"] == [5, 2]
    assert history.history["loss"][0] == pytest.approx(full, rel=1e-9)


@pytest.mark.parametrize(("examples", "batch_size"), [(3, 3), (9, 4), (1, 64)])
def test_more_shards_than_examples_in_a_batch(examples, batch_size):
    """Empty shards have no weight: the result is the unsharded one to rounding."""
    data = (DATA[0][:examples], DATA[1][:examples])
    results = []
    for shards in (1, 8):
        with line_trainer(shards=shards) as trainer:
            history = trainer.fit(data, epochs=3, batch_size=batch_size)
            results.append((trainer.params, history.history["loss"]))
    np.testing.assert_allclose(results[0][0]["w"], results[1][0]["w"], rtol=1e-12)
    np.testing.assert_allclose(results[0][1], results[1][1], rtol=1e-12)


def test_a_batch_larger_than_the_data_is_the_data():
    results = []
    for batch_size in (100, 1000, 2**31):
        with line_trainer() as trainer:
            trainer.fit(DATA, epochs=3, batch_size=batch_size)
            results.append(weights_sha256(trainer.params))
    assert len(set(results)) == 1


def test_neither_the_data_nor_the_initial_parameters_change():
    params, data = networks.line_params(5), tuple(array.copy() for array in DATA)
    with Trainer(networks.line, params, optimizer=SGD(0.1), engine="serial") as trainer:
        trainer.fit(data, epochs=1, batch_size=10)
    assert weights_sha256(params) == weights_sha256(networks.line_params(5))
    assert weights_sha256(data) == weights_sha256(DATA)


def test_data_and_batch_size_may_change_between_fits():
    with line_trainer(engine="processes", workers=2) as trainer:
        trainer.fit(DATA, epochs=1, batch_size=10)
        pids = trainer.pids
        trainer.fit((DATA[0][:30], DATA[1][:30]), epochs=2, batch_size=7)
        assert trainer.pids == pids  # the workers are kept
        assert trainer.step == 10 + 2 * 5
        assert trainer.restarts == 0


@pytest.mark.parametrize("workers", [1, 3])
def test_a_users_random_numbers_do_not_depend_on_the_workers(workers):
    results = []
    for arguments in ({"engine": "serial"}, {"engine": "processes", "workers": workers}):
        with mlp_trainer(networks.mlp_with_dropout, seed=9, **arguments) as trainer:
            trainer.fit(CLASSES, epochs=2, batch_size=33)
            results.append(weights_sha256(trainer.params))
    assert results[0] == results[1]


def test_a_script_from_stdin_trains():
    """Its file is called <stdin>, which a worker process cannot run."""
    script = """
import numpy as np
from untorn import SGD, Trainer

def line(params, batch):
    x, y = batch
    error = x @ params["w"] - y
    return (error**2).mean(), {"w": 2 * x.T @ error / len(x)}

if __name__ == "__main__":
    x = np.eye(4)
    with Trainer(line, {"w": np.zeros(4)}, optimizer=SGD(1.0), workers=2) as trainer:
        trainer.fit((x, x @ np.ones(4)), epochs=20, batch_size=4)
        print(trainer.params["w"].round(2))
"""
    ended = subprocess.run(
        [sys.executable, "-"], input=script, capture_output=True, text=True, timeout=120, check=False
    )
    assert (ended.stdout, ended.stderr) == ("[1. 1. 1. 1.]\n", "")


def test_a_lambda_reaches_the_workers():
    with line_trainer(engine="processes", workers=2) as trainer:
        trainer.fit(DATA, epochs=2, batch_size=10)
        expected = weights_sha256(trainer.params)
    factor = 1.0
    model = lambda params, batch: networks.line(params, (batch[0] * factor, batch[1]))  # noqa: E731
    with Trainer(
        model, networks.line_params(5), optimizer=SGD(0.05), engine="processes", workers=2, shards=2
    ) as trainer:
        trainer.fit(DATA, epochs=2, batch_size=10)
        assert weights_sha256(trainer.params) == expected


class Line:
    """A model as an object."""

    def loss_and_grad(self, params, batch):
        return networks.line(params, batch)

    def predict(self, params, x):
        return x @ params["w"] + params["b"]


@ENGINES
def test_a_model_may_be_an_object(engine):
    with Trainer(Line(), networks.line_params(5), optimizer=SGD(0.05), engine=engine, workers=1) as trainer:
        trainer.fit(DATA, epochs=20, batch_size=10)
        predicted = trainer.predict(DATA[0], batch_size=7)
        params = trainer.params
    assert predicted.shape == (100,)
    np.testing.assert_allclose(predicted, DATA[0] @ params["w"] + params["b"], rtol=1e-12)
    assert abs(predicted - DATA[1]).mean() < 0.2


def test_a_function_cannot_predict():
    with line_trainer() as trainer, pytest.raises(TypeError, match="predict: the model is a plain function"):
        trainer.predict(DATA[0])


@pytest.mark.parametrize("batch_size", [1, 7, 100, 1024])
def test_evaluate_is_the_mean_over_all_examples(batch_size):
    with mlp_trainer() as trainer:
        trainer.fit(CLASSES, epochs=1, batch_size=20)
        loss, _, metrics = networks.mlp(trainer.params, CLASSES)
        measured = trainer.evaluate(CLASSES, batch_size=batch_size)
    assert measured == pytest.approx({"loss": loss, "accuracy": metrics["accuracy"]}, rel=1e-5)


def test_evaluate_with_an_rng_gives_the_same_each_time():
    with mlp_trainer(networks.mlp_with_dropout) as trainer:
        assert trainer.evaluate(CLASSES) == trainer.evaluate(CLASSES)


@pytest.mark.parametrize("batch_size", [0, -1, 1.5])
def test_evaluate_checks_its_batch_size(batch_size):
    with line_trainer() as trainer, pytest.raises((ValueError, TypeError), match="batch_size: expected"):
        trainer.evaluate(DATA, batch_size=batch_size)


# -- History and callbacks


class Recorder(Callback):
    def __init__(self, stop_after=None):
        self.calls = []
        self.stop_after = stop_after

    def on_train_begin(self, logs):
        self.calls.append(("train_begin", None, dict(logs)))

    def on_epoch_begin(self, epoch, logs):
        self.calls.append(("epoch_begin", epoch, dict(logs)))

    def on_batch_end(self, batch, logs):
        self.calls.append(("batch_end", batch, dict(logs)))

    def on_epoch_end(self, epoch, logs):
        self.calls.append(("epoch_end", epoch, dict(logs)))
        if epoch == self.stop_after:
            self.trainer.stop_training = True

    def on_train_end(self, logs):
        self.calls.append(("train_end", None, dict(logs)))


def test_a_history_has_a_number_per_epoch():
    with mlp_trainer() as trainer:
        history = trainer.fit(CLASSES, epochs=3, batch_size=50, validation_data=CLASSES)
    assert isinstance(history, History)
    assert history.epoch == [0, 1, 2]
    assert set(history.history) == {"loss", "accuracy", "val_loss", "val_accuracy"}
    assert all(len(values) == 3 and all(map(math.isfinite, values)) for values in history.history.values())
    assert len(history.seconds) == len(history.examples_per_s) == 3
    assert history.examples_per_s[0] == pytest.approx(200 / history.seconds[0])


@ENGINES
def test_callbacks_come_in_order(engine):
    recorder = Recorder()
    with mlp_trainer(engine=engine, workers=2) as trainer:
        trainer.fit(CLASSES, epochs=2, batch_size=80, validation_data=CLASSES, callbacks=[recorder])
        assert recorder.trainer is trainer
    epoch = [("batch_end", 0), ("batch_end", 1), ("batch_end", 2)]
    assert [(name, number) for name, number, _ in recorder.calls] == [
        ("train_begin", None),
        *[("epoch_begin", 0), *epoch, ("epoch_end", 0)],
        *[("epoch_begin", 1), *epoch, ("epoch_end", 1)],
        ("train_end", None),
    ]
    logs = {name: logs for name, _, logs in recorder.calls}
    assert logs["epoch_begin"] == {"steps": 3, "examples": 200, "epochs": 2}
    assert set(logs["batch_end"]) == {"loss", "accuracy", "examples", "version", "restarts", "learning_rate"}
    assert logs["batch_end"]["examples"] == 40
    assert logs["batch_end"]["version"] == 7
    assert set(logs["epoch_end"]) == {
        "loss", "accuracy", "val_loss", "val_accuracy", "learning_rate", "examples_per_s", "seconds"
    }  # fmt: skip


def test_a_callback_stops_training_and_the_next_fit_runs_again():
    recorder = Recorder(stop_after=1)
    with line_trainer() as trainer:
        assert trainer.fit(DATA, epochs=50, batch_size=50, callbacks=[recorder]).epoch == [0, 1]
        assert recorder.calls[-1][0] == "train_end"
        assert trainer.fit(DATA, epochs=2, batch_size=50).epoch == [2, 3]


def test_early_stopping_stops():
    with line_trainer(optimizer=SGD(1e-9)) as trainer:
        stop = EarlyStopping("loss", min_delta=1.0, patience=2)
        assert len(trainer.fit(DATA, epochs=50, batch_size=50, callbacks=[stop])) == 3
        assert stop.stopped_epoch == 2


@ENGINES
def test_an_error_in_a_callback_ends_the_fit_and_not_the_trainer(engine):
    class Failing(Callback):
        def on_epoch_end(self, epoch, logs):
            raise KeyError("mine")

    with line_trainer(engine=engine, workers=1) as trainer:
        with pytest.raises(KeyError, match="mine"):
            trainer.fit(DATA, epochs=5, batch_size=10, callbacks=[Failing()])
        version = trainer.snapshot().version
        trainer.fit(DATA, epochs=1, batch_size=10)
        assert trainer.snapshot().version == version + 10


# -- snapshots and subscribers


@ENGINES
def test_params_is_a_copy_that_may_be_written(engine):
    with line_trainer(engine=engine, workers=1) as trainer:
        mine = trainer.params
        mine["w"][:] = 99
        assert (trainer.params["w"] == 0).all()
        trainer.fit(DATA, epochs=1, batch_size=10)
        kept = trainer.params
        copied = weights_sha256(kept)
        trainer.fit(DATA, epochs=1, batch_size=10)
        assert weights_sha256(kept) == copied != weights_sha256(trainer.params)
    assert weights_sha256(kept) == copied  # the snapshot outlives the trainer


def test_a_snapshot_is_read_only_and_its_version_counts_steps():
    with line_trainer() as trainer:
        trainer.fit(DATA, epochs=2, batch_size=10)
        with trainer.snapshot() as snapshot:
            assert snapshot.version == 1 + trainer.step == 21
            with pytest.raises(ValueError, match="read-only"):
                snapshot.value["w"][0] = 1


def test_the_model_sees_read_only_weights():
    def writer(params, batch):
        params["w"][0] = 1

    with (
        Trainer(writer, networks.line_params(5), optimizer=SGD(0.1), engine="serial") as trainer,
        pytest.raises(WorkerError, match="read-only"),
    ):
        trainer.fit(DATA, epochs=1, batch_size=10)


class Watcher(Callback):
    """Follows the weights through another channel object while they change."""

    def __init__(self, subscribe):
        self.subscribe = subscribe
        self.versions = []

    def on_batch_end(self, batch, logs):
        with self.subscribe() as subscriber, subscriber.snapshot() as snapshot:
            assert set(snapshot.value) == {"w", "b"}
            self.versions.append(snapshot.version)


@ENGINES
def test_a_name_can_be_subscribed_while_training_and_is_gone_afterwards(engine, name):
    with line_trainer(name=name, engine=engine, workers=1) as trainer:
        watcher = Watcher(lambda: untorn.subscribe(name))
        trainer.fit(DATA, epochs=3, batch_size=10, callbacks=[watcher])
        assert len(watcher.versions) == 30
        assert watcher.versions == sorted(watcher.versions)
        assert watcher.versions[-1] == 31
        with untorn.subscribe(name) as subscriber:
            kept = subscriber.snapshot()
    with pytest.raises(untorn.ChannelNotFoundError):
        untorn.subscribe(name)
    assert kept.version == 31
    assert np.isfinite(kept.value["w"]).all()  # a view outlives the channel


def test_a_name_that_is_taken_is_busy(name):
    with line_trainer(name=name), pytest.raises(untorn.BusyError, match=name):
        line_trainer(name=name).__enter__()


def test_a_subscriber_may_be_handed_over():
    with line_trainer() as trainer:
        trainer.fit(DATA, epochs=1, batch_size=10)
        with pickle.loads(pickle.dumps(trainer.subscriber())) as other, other.snapshot() as snapshot:
            assert snapshot.version == 11
            assert weights_sha256(snapshot.value) == weights_sha256(trainer.params)


def test_settings_are_read_and_not_set():
    trainer = line_trainer(seed=3, shards=2, engine="serial")
    assert (trainer.seed, trainer.shards, trainer.engine, trainer.max_staleness) == (3, 2, "serial", 0)
    with pytest.raises(AttributeError, match="seed: it is set when the Trainer is made; make another Trainer with 4"):
        trainer.seed = 4
    assert trainer.seed == 3


def test_metrics_of_other_names_for_another_batch_are_an_error():
    x, y = np.zeros((8, 5)), np.zeros(8)
    x[:, 0] = [0, 0, 1, 1, 0, 0, 1, 1]  # shards, parts of a shard, and steps of a group differ

    def train(**arguments):
        with Trainer(line_with_a_metric_of_the_batch, networks.line_params(5), **arguments) as trainer:
            with pytest.raises(WorkerError, match=r"metrics: expected those of another batch, \w+; found \w+; return"):
                trainer.fit((x, y), epochs=1, batch_size=8, shuffle=False)
            assert trainer.evaluate((x[:2], y[:2]))["even"] == 1
            with pytest.raises(ValueError, match="metrics: expected those of another batch, even; found odd; return"):
                trainer.evaluate((x, y), batch_size=2)

    train(optimizer=SGD(0.05), engine="serial", shards=4)
    train(optimizer=SGD(0.05), engine="serial", shards=1, accumulate=4)
    train(optimizer=LocalSteps(SGD(0.05), steps=4), engine="serial", shards=1)
    train(optimizer=SGD(0.05), workers=2, shards=4)
