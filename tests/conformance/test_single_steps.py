"""Single steps, trainer.step(batch), have the bits of fit over the same batches, on every engine, also after kills."""

from __future__ import annotations

import functools
import json
import os
import pickle
import signal
from typing import Any

import numpy as np
import pytest

import networks
from untorn.errors import ClosedError, NonFiniteLossError, WorkerError
from untorn.train import SGD, AdamW, Callback, Trainer, weights_sha256

DATA = networks.classes_of(150, 8, 3)


def batches(size: int = 16) -> list[Any]:
    """10 batches, the last of 6 examples."""
    return [tuple(part[first : first + size] for part in DATA) for first in range(0, 150, size)]


def trainer(optimizer: Any = None, **arguments: Any) -> Any:
    given = {"shards": 2, "seed": 3, "clip_norm": 1.0} | arguments
    params = networks.mlp_params((8, 16, 3))
    return Trainer(networks.mlp_with_dropout, params, optimizer=optimizer or AdamW(0.01), **given)


@functools.cache
def fitted(**arguments: Any) -> Any:
    """Return the weights, and the logs of each step, of fit with the serial engine."""
    logs = Logs()
    with trainer(engine="serial", **arguments) as made:
        made.fit(iter(batches()), epochs=1, callbacks=[logs])
        return weights_sha256(made.params), logs.logs


class Logs(Callback):
    def __init__(self) -> None:
        self.logs: list[Any] = []

    def on_batch_end(self, batch, logs):
        self.logs.append({name: logs[name] for name in ("loss", "accuracy", "grad_norm")})


def nag(step: int) -> float:
    return 0.1 / (step + 1)


OPTIMIZERS = {"schedule": SGD(nag, momentum=0.9), "adamw": AdamW(0.01)}


@pytest.mark.parametrize(
    ("engine", "optimizer"),
    [({"engine": "serial"}, "schedule"), ({"workers": 3}, "adamw")],
    ids=["serial", "3 workers"],
)
def test_steps_have_the_bits_of_fit(engine, optimizer):
    optimizer = OPTIMIZERS[optimizer]
    with trainer(optimizer, **engine) as made:
        measured = [made.step(batch) for batch in batches()]
        found = weights_sha256(made.params), measured
        assert (made.step, made.epoch, made.snapshot().version) == (10, 0, 11)
    assert found == fitted(optimizer=optimizer)


def test_steps_and_streams_on_nodes_one_of_which_is_lost():
    found = []
    for engine in ({"engine": "serial"}, {"engine": "loopback", "nodes": 2, "workers": 1}):
        with trainer(**engine) as made:
            measured: list[Any] = [made.fit(iter(batches()), epochs=1, prefetch=0).history]
            for number, batch in enumerate(batches()):
                measured.append(made.step(batch))
                if number == 3 and made.engine == "loopback":
                    os.kill(next(node["pid"] for node in made._pool.nodes()), signal.SIGKILL)
            found.append((weights_sha256(made.params), measured))
            assert made.restarts >= (made.engine == "loopback")
    assert found[0] == found[1]


def test_async_steps_wait_for_their_own_gradient():
    digests = []
    for arguments in ({"engine": "serial", "shards": 1}, {"mode": "async", "workers": 2, "shards": None}):
        with trainer(**arguments) as made:
            staleness = [made.step(batch).get("staleness") for batch in batches()]
            digests.append(weights_sha256(made.params))
    assert digests[0] == digests[1]
    assert staleness == [0.0] * 10


def test_torch_and_accumulation():
    torch = pytest.importorskip("torch")
    make = functools.partial(torch.optim.NAdam, lr=0.01)
    digests = []
    for engine in ({"engine": "serial"}, {"engine": "serial"}, {"workers": 2}):
        with trainer(make, accumulate=2, **engine) as made:
            if digests:
                for batch in batches():
                    made.step(batch)
            else:
                made.fit(iter(batches()), epochs=1)
            digests.append(weights_sha256(made.params))
    assert digests[0] == digests[1] == digests[2]


def test_workers_may_die_and_their_number_may_change():
    with trainer(workers=2) as made:
        for number, batch in enumerate(batches()):
            made.step(batch)
            if number in (2, 5):
                os.kill(made.pids[0], signal.SIGKILL)
            if number in (3, 7):
                made.resize(1 if number == 7 else 3)
        assert weights_sha256(made.params) == fitted(optimizer=OPTIMIZERS["adamw"])[0]
        assert made.restarts >= 1
        assert made.workers == 1


def test_batches_of_any_size_and_kind():
    """A larger batch, and one of other arrays, than the first."""
    wide = [{"x": np.ones((size, size)), "y": np.full(size, 0.5)} for size in (4, 2, 9, 9, 1)]
    digests = []
    for engine in ("serial", "processes", None):
        with Trainer(
            total, {"w": np.zeros(2)}, optimizer=SGD(0.1), shards=2, engine=engine or "serial", workers=2
        ) as made:
            if engine is None:
                made.fit(iter(wide), epochs=1)
            else:
                for batch in wide:
                    made.step(batch)
            digests.append(made.params["w"].tolist())
    assert digests[0] == digests[1] == digests[2]


def total(params: Any, batch: Any) -> Any:
    error = batch["x"].sum(1) * params["w"][0] + params["w"][1] - batch["y"]
    return (error**2).mean(), {"w": 2 * np.array([(error * batch["x"].sum(1)).mean(), error.mean()])}


def test_objects_that_only_the_model_knows():
    for engine in ("serial", "processes"):
        with Trainer(of_text, {"w": np.zeros(1)}, optimizer=SGD(1.0), engine=engine, workers=2) as made:
            assert [made.step(Text(text))["loss"] for text in ("a", "abc")] == [1.0, 3.0]
            assert made.step({"x": np.ones((5, 1))})["loss"] == 5.0
            assert made.params["w"] == -9.0


class Text:
    def __init__(self, text: str) -> None:
        self.text = text


def of_text(params: Any, batch: Any) -> Any:
    length = float(len(batch.text if isinstance(batch, Text) else batch["x"]))
    if not isinstance(batch, Text):
        length = 5.0
    return length, {"w": np.array([length])}


@pytest.mark.parametrize("engine", [{"engine": "serial"}, {"workers": 1}], ids=str)
def test_among_fits_and_other_calls(engine, tmp_path):
    """Steps, epochs, evaluations, new weights and a new rate in one training, which a checkpoint continues."""
    pytest.importorskip("safetensors")

    def first_half(made: Any) -> None:
        for batch in batches()[:3]:
            made.step(batch)
        made.fit(DATA, epochs=1, batch_size=50)
        made.step(batches()[3])
        made.evaluate(DATA, batch_size=10)

    def second_half(made: Any) -> Any:
        made.step(batches()[4])
        made.learning_rate = 0.5
        made.step(batches()[5])
        made.params = networks.mlp_params((8, 16, 3), seed=9)
        made.step(batches()[6])
        made.fit(DATA, epochs=1, batch_size=50)
        return weights_sha256(made.params), int(made.step), made.epoch

    optimizer = SGD(0.1, momentum=0.9)
    with trainer(optimizer, **engine) as whole:
        first_half(whole)
        whole.save(tmp_path / "saved")
        assert whole.step == 7
        found = second_half(whole)
    with trainer(optimizer, **engine) as resumed:
        resumed.step(batches()[8])
        resumed.load(tmp_path / "saved")
        assert resumed.step == 7
        assert second_half(resumed) == found
    assert found[1:] == (13, 2)


def test_a_stream_resumes_where_it_was_after_single_steps(tmp_path):
    pytest.importorskip("safetensors")

    def endless():
        for number in range(100):
            yield batches()[number % 10]

    def train(folder: Any, epochs: int, *, resume: bool) -> str:
        with trainer(engine="serial") as made:
            if not resume:
                made.step(batches()[9])
            made.fit(endless(), epochs=epochs, steps_per_epoch=3, checkpoint_dir=folder, resume=resume)
            assert made.step == 1 + 3 * epochs
            return weights_sha256(made.params)

    train(tmp_path / "in two", 1, resume=False)
    assert train(tmp_path / "in two", 2, resume=True) == train(tmp_path / "in one", 2, resume=False)


def test_errors_leave_the_weights_of_the_step_before():
    with trainer(workers=2) as made:
        made.step(batches()[0])
        before = weights_sha256(made.params)
        x, y = batches()[1]
        with pytest.raises(WorkerError, match=r"step 1, shard [01] \(8 examples"):
            made.step((x[:, :5], y))
        with pytest.raises(NonFiniteLossError, match="in step 1"):
            made.step((np.full_like(x, np.nan), y))
        with pytest.raises(ValueError, match=r"batch: expected arrays with one example per row, found \[3, 4\] rows"):
            made.step((x[:3], y[:4]))
        assert (weights_sha256(made.params), made.step) == (before, 1)
        for batch in batches()[1:]:
            made.step(batch)
        assert weights_sha256(made.params) == fitted(optimizer=OPTIMIZERS["adamw"])[0]
    with pytest.raises(ClosedError, match="this trainer is closed"):
        made.step(batches()[0])


def test_not_inside_fit():
    class Steps(Callback):
        def on_epoch_end(self, epoch, logs):
            self.trainer.step(batches()[0])

    with trainer(engine="serial") as made, pytest.raises(RuntimeError, match="step: fit runs already"):
        made.fit(DATA, epochs=1, batch_size=50, callbacks=[Steps()])


def test_the_count_is_an_int():
    with trainer(engine="serial") as made:
        made.step(batches()[0])
        count = made.step
        made.step(batches()[1])
        assert (count, f"{count:03}", count + 1, json.dumps({"step": count})) == (1, "001", 2, '{"step": 1}')
        assert type(pickle.loads(pickle.dumps(count))) is int
    del made
    with pytest.raises(ReferenceError, match="its trainer does not exist any more"):
        count(batches()[0])
