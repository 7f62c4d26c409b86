"""The status of a running job: the curve of its losses, and its numbers."""

import math
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

import networks
from untorn.control import ask
from untorn.train import SGD, Callback, Trainer, weights_sha256
from untorn.train.run import evaluation
from untorn.train.run.status import LossCurve

DATA = networks.classes_of(64, 4, 3)


@pytest.mark.parametrize("steps", [0, 1, 3, 4, 5, 8, 17, 100, 1000])
@pytest.mark.parametrize("at_once", [1, 3, 1000])
def test_a_curve_is_short_and_every_step_counts_once(steps, at_once):
    curve = LossCurve(max_points=8)
    losses = [float(step) for step in range(steps)]
    for start in range(0, steps, at_once):
        curve.extend(50 + start, losses[start : start + at_once])
    points = curve.points()
    assert len(points) <= 9
    ends = [step - 50 for step, _ in points]
    assert ends == sorted(set(ends))
    assert (ends[-1] if points else -1) == steps - 1
    for first, (end, (_, mean)) in zip([-1, *ends], zip(ends, points, strict=True), strict=False):
        assert math.isclose(mean, (first + 1 + end) / 2)  # the mean of the steps since the point before


class Ask(Callback):
    """Requests the status from another thread of the same process, while training continues."""

    def __init__(self) -> None:
        self.answer = None

    def on_epoch_begin(self, epoch, logs):
        if epoch == 2:
            self.pool = ThreadPoolExecutor(1)
            self.future = self.pool.submit(ask, self.trainer._name, {"do": "status"}, timeout_s=60)

    def on_epoch_end(self, epoch, logs):
        if epoch >= 2 and self.answer is None and self.future.done():
            self.answer = self.future.result()
            self.pool.shutdown()
            self.trainer.stop_training = True


class AskBeforeTheFirstStep(Callback):
    """Requests the status, and has the workers evaluate meanwhile."""

    def __init__(self, pool):
        self.pool = pool
        self.future = None

    def on_epoch_begin(self, epoch, logs):
        if self.future is None:
            self.future = self.pool.submit(ask, self.trainer._name, {"do": "status"}, timeout_s=60)
            while not self.trainer._resources.control._poller.poll(0):  # until the request has come
                time.sleep(0.001)
            self.trainer.evaluate(DATA, batch_size=16)


def test_a_request_before_the_first_step_is_answered_after_it(name, monkeypatch):
    monkeypatch.setattr(evaluation, "_WORTH_S", 0.0)
    arguments = {"optimizer": SGD(0.1), "name": name, "workers": 1}
    with ThreadPoolExecutor(1) as pool, Trainer(networks.mlp, networks.mlp_params((4, 8, 3)), **arguments) as trainer:
        trainer.fit(DATA, epochs=1, batch_size=8)
        asked = AskBeforeTheFirstStep(pool)
        while asked.future is None or not asked.future.done():
            trainer.fit(DATA, epochs=1, batch_size=8, callbacks=[asked])
        assert asked.future.result()["name"] == name


@pytest.mark.parametrize("arguments", [{"mode": "sync", "shards": 2}, {"mode": "async", "max_staleness": 3}])
def test_a_job_answers(name, arguments):
    questioner = Ask()
    with Trainer(
        networks.mlp, networks.mlp_params((4, 8, 3)), optimizer=SGD(0.1), name=name, workers=2, **arguments
    ) as trainer:
        data = networks.classes_of(64, 4, 3)
        trainer.fit(data, epochs=100_000, batch_size=8, callbacks=[questioner], validation_data=data)
        answer = questioner.answer
        assert answer is not None
        pids = trainer.pids
    assert (answer["name"], answer["mode"], answer["engine"]) == (name, arguments["mode"], "processes")
    assert answer["epochs"] == 100_000
    assert answer["steps_per_epoch"] == 8
    assert answer["step"] == 8 * answer["epoch"] + answer["step_in_epoch"]
    assert answer["version"] >= 1 + answer["step"]
    assert [worker["pid"] for worker in answer["workers"]] == pids
    assert {worker["state"] for worker in answer["workers"]} <= {"starting", "running"}
    assert sum(worker["gradients"] for worker in answer["workers"]) >= answer["step"]
    assert answer["losses"][-1][0] <= answer["step"] + 1
    assert len(answer["losses"]) <= 201
    assert {"val_loss", "val_accuracy"} <= answer["metrics"].keys()
    assert answer["learning_rate"] == 0.1
    assert answer["restarts"] == 0
    if arguments["mode"] == "async":
        assert answer["max_staleness"] == 3
        assert answer["staleness"] is None or answer["staleness"][1] <= 3


class Watch(Callback):
    """Asks from another thread until a job on nodes answers that a third one, which it asked for, has taken part."""

    def on_train_begin(self, logs):
        self.asking = ThreadPoolExecutor(1)
        self.found = self.asking.submit(self.watch, self.trainer._name)

    def watch(self, name):
        seen = ask(name, {"do": "status"}, timeout_s=60)
        while not all_run(seen, 2):
            seen = ask(name, {"do": "status"}, timeout_s=60)
        resized = ask(name, {"do": "resize", "nodes_by": 1}, timeout_s=60)
        while not all_run(seen, 3):
            seen = ask(name, {"do": "status"}, timeout_s=60)
        return resized, seen

    def on_epoch_end(self, epoch, logs):
        self.trainer.stop_training = self.found.done()

    def on_train_end(self, logs):
        self.asking.shutdown()


def all_run(status, nodes):
    return [node["state"] for node in status["nodes"] if node["sent"] and node["step"]] == ["running"] * nodes


def test_nodes_answer_and_another_one_joins(name):
    watch, made = Watch(), (networks.mlp, networks.mlp_params((4, 8, 3)))
    given = {"optimizer": SGD(0.1), "shards": 4}
    with Trainer(*made, name=name, engine="loopback", nodes=2, workers=1, **given) as trainer:
        epochs = len(trainer.fit(DATA, epochs=100_000, batch_size=8, callbacks=[watch]).history["loss"])
        resized, answer = watch.found.result()
        digest = weights_sha256(trainer.params)
    assert resized == {"nodes": 3, "was": 2}
    assert (answer["engine"], answer["wanted_nodes"]) == ("loopback", 3)
    assert [node["number"] for node in answer["nodes"]] == [0, 1, 2]
    assert len({node["pid"] for node in answer["nodes"]}) == 3
    assert [worker["node"] for worker in answer["workers"]] == [0, 1, 2]
    for node in answer["nodes"]:
        assert 0 < node["step"] <= answer["step"] + 8 * epochs
        assert node["received"] > 0 and node["waited_s"] >= 0 and node["at"] > 0
    with Trainer(*made, engine="serial", **given) as trainer:
        trainer.fit(DATA, epochs=epochs, batch_size=8)
        assert weights_sha256(trainer.params) == digest


def test_single_steps_answer_too(name):
    with (
        ThreadPoolExecutor(1) as pool,
        Trainer(networks.mlp, networks.mlp_params((4, 8, 3)), optimizer=SGD(0.1), name=name, workers=1) as trainer,
    ):
        trainer.step(DATA)
        asked = pool.submit(ask, name, {"do": "status"}, timeout_s=60)
        while not asked.done():
            trainer.step(DATA)
        answer = asked.result()
        assert (answer["epochs"], answer["steps_per_epoch"], answer["epoch"]) == (None, None, 0)
        assert 1 <= answer["step"] <= trainer.step
        assert [step for step, _ in answer["losses"]][-1] == answer["step"] - 1
        resized = pool.submit(ask, name, {"do": "resize", "workers": 2}, timeout_s=60)
        while not resized.done():
            trainer.step(DATA)
        assert trainer.workers == 2
