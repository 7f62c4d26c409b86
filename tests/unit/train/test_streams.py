"""Iterables of batches: each batch is used once, in order, with any read-ahead; errors name the batch."""

import itertools
import threading

import numpy as np
import pytest

import networks
from untorn.train import SGD, Callback, Trainer, weights_sha256
from untorn.train.data import stream as streams

X, Y = networks.data_of(200, 5)


class Batches:
    """An iterable that restarts with each iter(): batches of 16, the last one of 8."""

    def __init__(self, size: int = 16) -> None:
        self.size = size
        self.begun = 0

    def __iter__(self):
        self.begun += 1
        for start in range(0, len(X), self.size):
            yield X[start : start + self.size], Y[start : start + self.size]


def trained(data, *, batch_size=None, epochs=3, trainer=None, **arguments):
    fit = {key: arguments.pop(key) for key in ("steps_per_epoch", "shuffle", "callbacks") if key in arguments}
    with Trainer(networks.line, networks.line_params(5), optimizer=SGD(0.05), shards=2, **arguments) as trainer:
        history = trainer.fit(data, epochs=epochs, batch_size=batch_size, **fit)
        return weights_sha256(trainer.params), history.history, trainer.step


@pytest.fixture(scope="module")
def expected():
    return trained((X, Y), batch_size=16, shuffle=False, engine="serial")


@pytest.mark.parametrize("engine", [{"engine": "serial"}, {"workers": 2}], ids=str)
@pytest.mark.parametrize("ahead", [1, 3, 256])
def test_batches_give_what_the_same_examples_in_order_give(engine, ahead, expected, monkeypatch):
    monkeypatch.setattr(streams, "_AHEAD_BATCHES", ahead)
    batches = Batches()
    assert trained(batches, **engine) == expected
    assert batches.begun == 3


def test_tensors_from_a_loader_of_an_iterable_dataset(expected):
    torch = pytest.importorskip("torch")

    class Examples(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter(zip(X, Y, strict=True))

    loader = torch.utils.data.DataLoader(Examples(), batch_size=16)
    assert trained(loader, engine="serial") == expected
    with pytest.raises(TypeError, match=r"data: a .*Examples yields single examples; expected batches"):
        trained(Examples(), batch_size=16, engine="serial")


def test_batches_of_any_size():
    sizes = [16, 16, 5, 16, 40, 3, 40, 40, 24]
    ends = list(itertools.accumulate(sizes))

    class Uneven:
        def __iter__(self):
            for size, end in zip(sizes, ends, strict=True):
                yield {"x": X[end - size : end], "y": Y[end - size : end]}

    def one_by_one(trainer):
        for size, end in zip(sizes, ends, strict=True):
            trainer.fit((X[end - size : end], Y[end - size : end]), epochs=1, batch_size=size, shuffle=False)

    def line(params, batch):
        return networks.line(params, (batch["x"], batch["y"]))

    with Trainer(line, networks.line_params(5), optimizer=SGD(0.05), shards=3, engine="serial") as trainer:
        trainer.fit(Uneven(), epochs=1)
        got = weights_sha256(trainer.params)
        assert trainer.step == len(sizes)
    with Trainer(networks.line, networks.line_params(5), optimizer=SGD(0.05), shards=3, engine="serial") as trainer:
        one_by_one(trainer)
        assert weights_sha256(trainer.params) == got


def test_an_iterator_goes_on_where_the_last_epoch_left_it(expected):
    endless = itertools.cycle(Batches())
    assert trained(endless, steps_per_epoch=13, engine="serial") == expected
    first = next(endless)[0]
    assert (first == X[:16]).all()  # no further batch was read


class Steps(Callback):
    def __init__(self, stop_at: int = 0) -> None:
        self.stop_at = stop_at
        self.steps: list[float] = []
        self.batches: list[int] = []

    def on_batch_end(self, batch, logs):
        self.steps.append(logs["loss"])
        self.batches.append(batch)
        if len(self.steps) == self.stop_at:
            raise KeyboardInterrupt

    def state_dict(self):
        return {"steps": self.steps, "batches": self.batches}

    def load_state_dict(self, state):
        self.steps, self.batches = state["steps"], state["batches"]


@pytest.mark.parametrize("make", [Batches, lambda: itertools.cycle(Batches())], ids=["anew", "endless"])
def test_resuming_inside_an_epoch_skips_what_was_done(make, tmp_path, expected, monkeypatch):
    pytest.importorskip("safetensors")
    monkeypatch.setattr(streams, "_AHEAD_BATCHES", 4)
    given = {"steps_per_epoch": 13, "checkpoint_dir": tmp_path, "checkpoint_every_s": 0.0, "epochs": 3}
    arguments = {"optimizer": SGD(0.05), "shards": 2, "engine": "serial"}
    with Trainer(networks.line, networks.line_params(5), **arguments) as trainer, pytest.raises(KeyboardInterrupt):
        trainer.fit(make(), callbacks=[Steps(stop_at=22)], **given)
    steps = Steps()
    with Trainer(networks.line, networks.line_params(5), **arguments) as trainer:
        history = trainer.fit(make(), callbacks=[steps], resume=True, **given)
        assert (weights_sha256(trainer.params), history.history, trainer.step) == expected
    assert steps.batches == [*range(13)] * 3


def test_reading_stops_with_training():
    threads = threading.active_count()

    class Endless:
        def __iter__(self):
            while True:
                yield X[:8], Y[:8]

    with pytest.raises(KeyboardInterrupt):
        trained(Endless(), callbacks=[Steps(stop_at=3)], engine="serial")
    assert threading.active_count() == threads


def test_an_error_of_the_iterable_comes_after_what_was_read():
    def batches():
        yield X[:8], Y[:8]
        yield X[:8], Y[:8]
        raise RuntimeError("the disk is gone")

    steps = Steps()
    with pytest.raises(RuntimeError, match="the disk is gone"):
        trained(batches(), callbacks=[steps], engine="serial")
    assert len(steps.steps) == 2


@pytest.mark.parametrize(
    ("data", "arguments", "error", "message"),
    [
        (Batches(), {"batch_size": 16}, ValueError, "batch_size: the data is an iterable of batches"),
        (Batches(), {"steps_per_epoch": 14}, ValueError, "it ended after 13 batches; steps_per_epoch is 14"),
        (iter(()), {}, ValueError, "without batches; an iterator can be read once"),
        (iter([(X, Y[:3])]), {}, ValueError, "data: batch 0: expected arrays with one example per row, found [3, 200]"),
        (iter([3]), {}, TypeError, "data: batch 0: expected arrays with one example per row, or a tree of them"),
        ((X, Y), {}, TypeError, "fit() needs batch_size="),
        ((X, Y), {"batch_size": 8, "steps_per_epoch": 3}, ValueError, "steps_per_epoch: an epoch of this data is all"),
    ],
)
def test_what_does_not_fit_is_named(data, arguments, error, message):
    with pytest.raises(error) as caught:
        trained(data, engine="serial", **arguments)
    assert message in str(caught.value)


def test_it_is_for_training_alone():
    with (
        Trainer(networks.line, networks.line_params(5), optimizer=SGD(0.05), engine="serial") as trainer,
        pytest.raises(TypeError, match=r"data: a .*Batches can only be read from its beginning"),
    ):
        trainer.evaluate(Batches())


def test_plain_batches_are_found_fast_and_alike(monkeypatch):
    """What most batches are takes another way through the checks, with the same result."""
    torch = pytest.importorskip("torch")
    rows = np.arange(6.0).reshape(3, 2)
    batches = [
        (rows, rows[:, 0]),
        [rows],
        {"b": rows, "a": torch.ones(3, 1)},
        (rows, torch.zeros(3, requires_grad=True)),
    ]
    plain = [streams.checked_batch("batch", batch) for batch in batches]
    assert all(streams._plain_batch(batch) is not None for batch in batches)
    others = [
        rows,
        (),
        (rows, 1.0),
        (rows, rows[:2]),
        (rows[:0],),
        (np.array(1.0),),
        ((rows, rows),),
        (np.array([None]),),
    ]
    assert all(streams._plain_batch(batch) is None for batch in others)
    monkeypatch.setattr(streams, "_plain_batch", lambda tree: None)
    for batch, found in zip(batches, plain, strict=True):
        expected = streams.checked_batch("batch", batch)
        assert (found.spec, found.examples, len(found.leaves)) == (
            expected.spec,
            expected.examples,
            len(expected.leaves),
        )
        for one, other in zip(found.leaves, expected.leaves, strict=True):
            assert (one == other).all()
