"""What people write first about a training: it works, or the error says the right word. See also test_verbose.py."""

import copy
import inspect
import logging
import os
import pickle
import signal
from functools import partial

import numpy as np
import pytest

from untorn import SGD, Adagrad, Adam, AdamW, Callback, History, RMSprop, Trainer


def linear(params, batch):
    x, y = batch
    error = x @ params["w"] - y
    return (error**2).mean(), {"w": 2 * x.T @ error / len(x)}


WRONG = [
    (lambda: SGD(lr=0.1), r"SGD\(\) has no argument 'lr': write learning_rate="),
    (lambda: AdamW(1e-3, beta1=0.9), r"AdamW\(\) has no argument 'beta1': write betas="),
    (lambda: Adam(epsilon=1e-7), "write eps="),
    (lambda: RMSprop(rho=0.9), "write alpha="),
    (lambda: SGD(0.1, decay=1e-4), "write weight_decay="),
    (lambda: Adagrad(0.1, clipnorm=1.0), r"Trainer\(clip_norm=\)"),
    (lambda: Adam(0.1, momentum=0.9), "this optimizer has none"),
    (lambda: SGD(0.1, foreach=True), "functools.partial"),
    (lambda: SGD(0.1, momentun=0.9), r"SGD\(\) has no argument 'momentun': write momentum=$"),
    (lambda: SGD(0.1, colour=1), r"SGD\(\) has no argument 'colour'$"),
    (lambda: SGD([np.zeros(3)], 0.1), "the Trainer has them: SGD"),
    (lambda: SGD(iter([np.zeros(3)])), "leave the parameters out"),
]


@pytest.mark.parametrize(("use", "text"), WRONG)
def test_optimizers(use, text):
    with pytest.raises(TypeError, match=text):
        use()


def test_optimizers_stay_what_they_are():
    names = ["learning_rate", "momentum", "nesterov", "weight_decay", "groups"]
    assert list(inspect.signature(SGD).parameters) == names
    assert pickle.loads(pickle.dumps(AdamW(0.1, eps=1e-6))) == AdamW(0.1, eps=1e-6)
    assert repr(SGD(0.1)) == "SGD(learning_rate=0.1, momentum=0.0, nesterov=False, weight_decay=0.0)"


def test_a_scheduler_of_torch_names_TorchSchedule():
    torch = pytest.importorskip("torch")
    scheduler = torch.optim.lr_scheduler.StepLR(torch.optim.SGD([torch.zeros(1)], 0.1), 2)
    with pytest.raises(TypeError, match=r"untorn\.TorchSchedule\(scheduler\)"):
        SGD(scheduler)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("on_epoch_start", "write on_epoch_begin"),
        ("on_train_batch_end", "write on_batch_end"),
        ("on_batch_begin", "on_batch_end follows each step"),
        ("on_epoch_ends", "write on_epoch_end"),
        ("on_validation_end", "write on_epoch_end, whose logs"),
        ("on_my_own", "a method of your own has another name"),
    ],
)
def test_misspelled_methods_of_callbacks(name, text):
    with pytest.raises(TypeError, match=f"Mine.{name} is never called: .*{text}"):
        type("Mine", (Callback,), {name: lambda self, *_: None})


def test_other_methods_of_callbacks():
    class Mine(Callback):
        on_hold = 3

        def on_epoch_end(self, epoch, logs):
            self._on_change()

        def _on_change(self):
            pass

    assert Mine().on_hold == 3


def test_a_trainer_says_what_it_is():
    trainer = Trainer(linear, {"w": np.zeros(2)}, optimizer=SGD(0.1), engine="serial", shards=2)
    assert repr(trainer) == "<untorn.Trainer of linear, SGD, sync, serial, 2 shards, step 0>"
    with trainer:
        trainer.fit((np.ones((4, 2)), np.ones(4)), epochs=1, batch_size=2)
    assert repr(trainer) == "<untorn.Trainer of linear, SGD, sync, serial, 2 shards, step 2, closed>"
    torch = pytest.importorskip("torch")
    trainer = Trainer(linear, {"w": np.zeros(2)}, optimizer=partial(torch.optim.NAdam, lr=0.1), workers=3, mode="async")
    assert repr(trainer) == "<untorn.Trainer of linear, NAdam, async, 3 workers, step 0>"


def fitted(*data, **settings):
    with Trainer(linear, {"w": np.zeros(2)}, optimizer=SGD(0.1), engine="serial", shards=2) as trainer:
        return trainer.fit(*data, **({"epochs": 1, "batch_size": 2} | settings))


X, Y = np.ones((4, 2)), np.ones(4)
FIT = [
    (
        lambda: fitted(X, Y),
        r"fit\(\) got more arguments by position than it takes \(ndarray\): .*fit\(\(x, y\), epochs",
    ),
    (lambda: fitted((X, Y), validation_split=0.2), r"choose .*validation_data=\(x\[n:\], y\[n:\]\)"),
    (lambda: fitted((X, Y), lr=0.1), "belongs to the optimizer"),
    (lambda: fitted((X, Y), num_epochs=3), "write epochs="),
    (lambda: fitted((X, Y), val_data=(X, Y)), "write validation_data="),
    (lambda: fitted((X, Y), num_workers=3), r"write Trainer\(workers=\)"),
    (lambda: fitted((X, Y), sample_weight=Y), "one more part of the data"),
    (lambda: fitted((X, Y), batchsize=8), r"fit\(\) has no argument 'batchsize': write batch_size="),
    (lambda: fitted((X, Y), epoch=1), r"fit\(\) has no argument 'epoch': write epochs="),
    (lambda: fitted((X, Y), validation_dat=(X, Y)), r"write validation_data="),
    (lambda: fitted((X, Y), colour=1), r"fit\(\) has no argument 'colour'$"),
    (lambda: Trainer(linear, {"w": X}, optimizer=SGD(0.1), epochs=3), r"write fit\(epochs=\)"),
    (lambda: Trainer(linear, {"w": X}, optimizer=SGD(0.1), num_workers=3), "write workers="),
    (lambda: Trainer(linear, {"w": X}, optimizer=SGD(0.1), lr=0.1), r"optimizer=SGD\(0.1\)"),
    (lambda: Trainer(linear, {"w": X}, optim=SGD(0.1)), "write optimizer="),
    (lambda: trainer().fit(X=X, y=Y, epochs=1), r"give all parts as one: fit\(\(x, y\)"),
    (lambda: trainer().fit((X, Y), max_epochs=1), "write epochs="),
    (lambda: trainer().fit(train_dataloaders=X), r"write fit\(data"),
    (lambda: trainer().fit((X, Y), batch_size=2), "missing 1 required keyword-only argument: 'epochs'"),
    (lambda: trainer().evaluate(X, Y), r"evaluate\(\) got more .*evaluate\(\(x, y\)\)"),
    (lambda: trainer().predict(X, verbose=0), "it prints nothing"),
]


def trainer():
    return Trainer(linear, {"w": np.zeros(2)}, optimizer=SGD(0.1), engine="serial", shards=2)


@pytest.mark.parametrize(("use", "text"), FIT)
def test_trainers(use, text):
    with pytest.raises(TypeError, match=text):
        use()


def test_signatures_of_trainers_have_what_they_take():
    for function in (Trainer, Trainer.fit, Trainer.evaluate, Trainer.predict):
        assert not {"more", "unknown"} & inspect.signature(function).parameters.keys()


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("train", r"write fit\("),
        ("state_dict", "write params"),
        ("history", "fit.. returns the History"),
        ("train_on_batch", r"write step\(batch"),
        ("predict_proba", r"write predict\("),
        ("cuda", "workers train on the CPU"),
        ("should_stop", "write stop_training = True"),
        ("colour", ""),
    ],
)
def test_attributes_of_trainers(name, text):
    with pytest.raises(AttributeError, match=f"'Trainer' object has no attribute '{name}'.*{text}"):
        getattr(trainer(), name)
    assert not hasattr(trainer(), name)


def test_metrics_of_a_history_have_a_place():
    history = fitted((X, Y))
    with pytest.raises(AttributeError, match=r"write history\['loss'\]"):
        history.loss  # noqa: B018
    assert not hasattr(history, "colour") and not hasattr(History.__new__(History), "history")
    assert copy.deepcopy(history).history == history.history


def examples(*, form):
    """Four examples in a list, in this form."""
    rows = [(np.full(2, float(i)), float(i)) for i in range(4)]
    return [form(x, y) for x, y in rows]


@pytest.mark.parametrize("form", [lambda x, y: (x, y), lambda x, y: (x, np.array(y)), lambda x, y: (list(x), int(y))])
def test_a_list_of_examples(form):
    arrays = np.stack([np.full(2, float(i)) for i in range(4)]), np.arange(4.0)
    assert fitted(examples(form=form)).history == fitted(arrays).history


def test_a_list_of_examples_in_dicts_and_of_rows():
    with Trainer(in_dicts, {"w": np.zeros(2)}, optimizer=SGD(0.1), engine="serial", shards=2) as trainer:
        history = trainer.fit(examples(form=lambda x, y: {"x": x, "y": [y]}), epochs=1, batch_size=2)
    assert history.history == fitted((np.stack([np.full(2, float(i)) for i in range(4)]), np.arange(4.0))).history


def in_dicts(params, batch):
    assert batch["y"].shape[1:] == (1,)
    return linear(params, (batch["x"], batch["y"][:, 0]))


def test_lists_of_arrays_stay_arrays_with_a_row_per_example():
    assert fitted([X, Y]).history == fitted((X, Y)).history
    from untorn.train.data import source_of

    assert source_of("data", [(X, X), (X, X)]).examples == 4
    assert source_of("data", [(X, Y), Y]).examples == 4
    assert source_of("data", [(X, X[:, 0])]).examples == 4
    assert source_of("data", [(np.ones(3), np.ones(2))] * 7).examples == 7
    with pytest.raises(ValueError, match=r"2 examples and .* 3"):
        source_of("data", [(np.ones(3), np.ones(2))])


class Epochs(Callback):
    """Notes how the epochs are counted."""

    def __init__(self):
        self.counted = []

    def on_epoch_begin(self, epoch, logs):
        self.counted.append((epoch + 1, logs["epochs"]))


def test_a_further_fit_goes_on_counting(tmp_path):
    epochs = Epochs()
    with trainer() as training:
        for count in (2, 1):
            training.fit(
                (X, Y), epochs=count, batch_size=2, callbacks=[epochs], checkpoint_dir=tmp_path, resume=count == 2
            )
    assert epochs.counted == [(1, 2), (2, 2), (3, 3)]
    with trainer() as training:
        training.fit((X, Y), epochs=5, batch_size=2, callbacks=[epochs], checkpoint_dir=tmp_path, resume=True)
    assert epochs.counted[3:] == [(4, 5), (5, 5)]


def test_plots_and_tables_count_epochs_as_the_progress_bar():
    pytest.importorskip("matplotlib")
    history = History()
    for epoch in range(3):
        history.append(epoch, {"loss": 1.0}, seconds=1.0, examples_per_s=1.0)
    assert [line.split()[0] for line in str(history).splitlines()] == ["epoch", "1", "2", "3"]
    (axes,) = history.plot().axes
    assert list(axes.lines[0].get_xdata()) == [1, 2, 3]


class Kill(Callback):
    """Kills the worker once."""

    def __init__(self):
        self.killed = None

    def on_batch_end(self, batch, logs):
        if self.killed is None:
            self.killed = self.trainer.pids[0]
            os.kill(self.killed, signal.SIGKILL)


def test_the_death_of_a_worker_is_said_at_info(caplog):
    kill = Kill()
    with (
        caplog.at_level(logging.INFO, "untorn"),
        Trainer(linear, {"w": np.zeros(2)}, optimizer=SGD(0.1), workers=1, shards=1) as trainer,
    ):
        while not trainer.restarts:  # the death may be noticed in a later epoch
            trainer.fit((np.ones((64, 2)), np.ones(64)), epochs=1, batch_size=1, callbacks=[kill])
    said = [record.getMessage() for record in caplog.records if "takes its place" in record.getMessage()]
    assert len(said) == 1 and said[0].startswith("worker 0") and "SIGKILL" in said[0]
