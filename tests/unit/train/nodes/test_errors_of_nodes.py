"""What goes wrong on a node is an error that names the node, as on one machine; and nothing waits for ever."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import networks
from untorn import CapacityError, NonFiniteLossError, WorkerError
from untorn.engines.nodes.loopback import LoopbackCluster
from untorn.train import SGD, Callback, Trainer, weights_sha256
from untorn.train.nodes import roster

DATA = networks.classes_of(64, 6, 3, seed=2)
BATCH = 16


def trainer_of(model: Any, engine: Any = "loopback", nodes: int = 2, **more: Any) -> Trainer:
    params = networks.mlp_params((6, 8, 3))
    return Trainer(model, params, optimizer=SGD(0.05), shards=4, engine=engine, nodes=nodes, workers=1, **more)


def fails_at_a_mark(params, batch):
    x, _ = batch
    if (x == 1000).any():
        raise ArithmeticError("the mark is here")
    return networks.mlp(params, batch)


def marked(value: float) -> Any:
    """Data whose example 50 has this value; it is none of the examples by which nodes are compared."""
    x, y = (array.copy() for array in DATA)
    x[50] = value
    return x, y


def test_a_model_that_fails():
    with (
        trainer_of(fails_at_a_mark) as trainer,
        pytest.raises(WorkerError, match=r"(?s)node \d.*epoch 0, step \d.*shard \d.*the mark is here"),
    ):
        trainer.fit(marked(1000), epochs=1, batch_size=BATCH, shuffle=False)


def test_a_loss_that_is_nan_and_a_fit_after_it():
    with trainer_of(networks.mlp) as trainer:
        with pytest.raises(NonFiniteLossError, match=r"node \d.*epoch 0, step 3"):
            trainer.fit(marked(np.nan), epochs=1, batch_size=BATCH, shuffle=False)
        assert trainer.step == 3
        before = weights_sha256(trainer.params)
        trainer.fit(DATA, epochs=1, batch_size=BATCH, shuffle=False)
    with trainer_of(networks.mlp, engine="serial", nodes=None) as trainer:
        with pytest.raises(NonFiniteLossError):
            trainer.fit(marked(np.nan), epochs=1, batch_size=BATCH, shuffle=False)
        assert weights_sha256(trainer.params) == before


def machine_dependent(params, batch):
    loss, grads, metrics = networks.mlp(params, batch)
    scale = np.float32(1 + 1e-3 * int(os.environ.get("UNTORN_TEST_PROCESSOR", "0")))
    return loss, [networks.Layer(layer.w * scale, layer.b) for layer in grads], metrics


class Different(LoopbackCluster):
    """The nodes from the second one on have another processor, or another version of NumPy."""

    def __init__(self, variable: str, *, same_bits: bool = True) -> None:
        super().__init__()
        self.same_bits = same_bits
        self._variable = variable

    def start(self, invitation):
        os.environ[self._variable] = str(min(1, invitation.number))
        try:
            return super().start(invitation)
        finally:
            del os.environ[self._variable]


def test_a_node_with_other_bits_is_refused():
    with (
        trainer_of(machine_dependent, Different("UNTORN_TEST_PROCESSOR")) as trainer,
        pytest.raises(WorkerError, match=r"node \d .*other bits than that of node \d .*same_bits=False"),
    ):
        trainer.fit(DATA, epochs=1, batch_size=BATCH)


def test_a_node_with_other_bits_is_taken():
    with trainer_of(machine_dependent, Different("UNTORN_TEST_PROCESSOR", same_bits=False)) as trainer:
        history = trainer.fit(DATA, epochs=1, batch_size=BATCH)
        assert np.isfinite(history.history["loss"]).all()


def test_a_node_with_another_version(monkeypatch):
    versions = roster.versions_here() | {"NumPy": "0.1"}
    monkeypatch.setattr(roster, "versions_here", lambda: versions)
    with (
        trainer_of(networks.mlp) as trainer,
        pytest.raises(WorkerError, match=rf"node \d .*has NumPy {np.__version__}, and the driver has 0.1; install"),
    ):
        trainer.fit(DATA, epochs=1, batch_size=BATCH)


class MovesFile(LoopbackCluster):
    """The nodes do not have the file of the driver."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path

    def start(self, invitation):
        self._path.unlink(missing_ok=True)
        return super().start(invitation)


def test_a_file_that_nodes_do_not_have(tmp_path):
    path = tmp_path / "x.npy"
    np.save(path, DATA[0])
    with (
        trainer_of(networks.mlp, MovesFile(path)) as trainer,
        pytest.raises(WorkerError, match=r"node \d .*cannot read the data: .*x\.npy"),
    ):
        trainer.fit((np.load(path, mmap_mode="r"), DATA[1]), epochs=1, batch_size=BATCH)


def test_more_nodes_than_shards():
    results = []
    for engine, nodes in (("serial", None), ("loopback", 3)):
        params = networks.mlp_params((6, 8, 3))
        options = {"engine": engine, "nodes": nodes, "workers": 1, "shards": 2}
        with Trainer(networks.mlp, params, optimizer=SGD(0.05), **options) as trainer:
            trainer.fit(DATA, epochs=2, batch_size=BATCH)
            results.append(weights_sha256(trainer.params))
    assert results[0] == results[1]


class NoMemory(LoopbackCluster):
    def start(self, invitation):
        raise CapacityError("there is no room for this node")


def test_a_cluster_that_cannot_start_nodes():
    with trainer_of(networks.mlp, NoMemory()) as trainer, pytest.raises(CapacityError, match="no room"):
        trainer.fit(DATA, epochs=1, batch_size=BATCH)


def test_a_refused_node_does_not_end_a_training(caplog):
    """A node that joins and is refused is none of the others' business."""
    refused = threading.Event()

    class Stop(Callback):
        def on_batch_end(self, step, logs):
            if self.trainer.nodes == 1 and self.trainer.step > 2:
                self.trainer.resize(nodes=2)

        def on_epoch_end(self, epoch, logs):
            if any("other bits" in record.getMessage() for record in caplog.records):
                refused.set()
                self.trainer.stop_training = True

    with trainer_of(naps_on_a_machine, Different("UNTORN_TEST_PROCESSOR"), nodes=1) as trainer:
        trainer.fit(DATA, epochs=10_000, batch_size=BATCH, callbacks=[Stop()])
        found, epochs = weights_sha256(trainer.params), trainer.epoch
    assert refused.is_set()
    with trainer_of(machine_dependent, engine="serial", nodes=None) as trainer:
        trainer.fit(DATA, epochs=epochs, batch_size=BATCH)
        assert weights_sha256(trainer.params) == found


def naps_on_a_machine(params, batch):
    time.sleep(0.05)
    return machine_dependent(params, batch)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"engine": "loopback", "mode": "async"}, "mode: async training runs on one machine"),
        ({"engine": "loopback", "workers": "auto"}, "workers: 'auto' works on one machine"),
        ({"engine": "processes", "nodes": 2}, "nodes: engine='processes' runs on this machine alone"),
        ({"engine": "loopback", "ray_options": {"num_cpus": 1}}, "ray_options: they are for engine='ray'"),
        ({"engine": "loopback", "nodes": 0}, "nodes"),
        ({"engine": "loopback", "nodes": 65}, "nodes: expected 1 to 64"),
    ],
)
def test_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        Trainer(networks.mlp, networks.mlp_params((6, 8, 3)), optimizer=SGD(0.05), **options)
