"""``untorn export`` and untorn.prometheus: the numbers of channels, queues and jobs, as Prometheus reads them."""

from __future__ import annotations

import signal
import subprocess
import sys
import urllib.request
import uuid

import numpy as np
import pytest

pytest.importorskip("click")
pytest.importorskip("rich")
pytest.importorskip("prometheus_client")
from click.testing import CliRunner
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

import untorn
from untorn.cli.group import group
from untorn.prometheus import Collector
from untorn.train import SGD, Callback, Trainer


def sampled(text: str) -> dict[tuple[str, ...], float]:
    """Return the samples of a text by their names and the values of their labels."""
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def exported(*arguments: str) -> dict[tuple[str, ...], float]:
    result = CliRunner().invoke(group, ["export", "--once", *arguments])
    assert result.exit_code == 0, result.output
    return sampled(result.output)


@pytest.fixture
def name() -> str:
    return f"export-{uuid.uuid4().hex[:8]}"


def test_a_channel_and_its_readers(name):
    with (
        untorn.publish(np.zeros(100), name=name, keep=False) as publisher,
        publisher.subscriber() as subscriber,
        subscriber.snapshot(),
    ):
        for _ in range(3):
            publisher.update(np.zeros(100))
        found = exported()
        expected = {
            "versions_total": 4, "reserved_bytes": publisher.nbytes, "publisher_alive": 1, "readers": 1,
            "readers_max": 256, "slots_held": 1, "slots_max": 64, "behind_versions": 3, "dead_readers": 0,
        }  # fmt: skip
        assert {key: found[f"untorn_channel_{key}", name] for key in expected} == expected
        assert 800 <= found["untorn_channel_bytes", name] < publisher.nbytes
        assert 0 < found["untorn_channel_age_seconds", name] < found["untorn_channel_held_seconds", name]
    assert ("untorn_channel_versions_total", name) not in exported()


def test_a_channel_that_cannot_be_read(tmp_path):
    (tmp_path / "bad.control").write_bytes(b"not a channel")
    path = f"{tmp_path}/bad"
    with untorn.publish(np.zeros(3), name="good", directory=tmp_path):
        found = exported(path, f"{tmp_path}/good", f"{tmp_path}/absent")
    assert found["untorn_unreadable", "channel", path] == 1
    assert found["untorn_channel_versions_total", f"{tmp_path}/good"] == 1
    assert not any("absent" in labels for labels in map(str, found))


def test_a_queue(name):
    with untorn.queue(4, name=name) as queue:
        try:
            for item in range(3):
                queue.put(item)
            with queue.take():
                found = exported(name)
        finally:
            queue.unlink()
    expected = {
        "put_total": 3, "taken_total": 1, "items": 2, "capacity": 4, "processes": 1, "waiting_producers": 0,
        "waiting_consumers": 0, "items_taken_unfinished": 1, "closed": 0,
    }  # fmt: skip
    assert {key: found[f"untorn_queue_{key}", name] for key in expected} == expected


def loss_and_grad(params, batch):
    return float(params["w"] @ params["w"]), {"w": 2 * params["w"]}, {"norm": 2.0}


class Scrape(Callback):
    """Look at the job from another process; the job answers between its steps."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[str] | None = None

    def on_epoch_begin(self, epoch, logs):
        if epoch == 1:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "untorn.cli", "export", "--once", "--timeout", "60", "none"],
                stdout=subprocess.PIPE,
                text=True,
            )

    def on_epoch_end(self, epoch, logs):
        self.trainer.stop_training = self.process is not None and self.process.poll() is not None


def test_a_job_that_trains(name):
    scrape = Scrape()
    with Trainer(loss_and_grad, {"w": np.ones(2)}, optimizer=SGD(1e-5), engine="serial", name=name) as trainer:
        trainer.fit(np.zeros((400, 1)), epochs=10**6, batch_size=1, callbacks=[scrape], verbose=0)
        found = sampled(scrape.process.communicate()[0])
        assert 400 <= found["untorn_job_steps_total", name] <= trainer.step
    assert found["untorn_job_answered", name] == 1
    assert found["untorn_job_workers", name] == 1
    assert found["untorn_job_restarts_total", name] == 0
    assert 0 < found["untorn_job_loss", name] < 2
    assert found["untorn_job_learning_rate", name] == 1e-5
    assert found["untorn_job_metric", name, "norm"] == 2


def test_registering_does_not_look_and_wrong_names_are_refused(name):
    registry = CollectorRegistry()
    registry.register(Collector([name], jobs=False))
    assert registry.get_sample_value("untorn_channel_versions_total", {"channel": name}) is None
    with pytest.raises(TypeError, match=r"names: expected a list of names, found the string 'x'; write \['x'\]"):
        Collector("x")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_command_serves_until_a_signal(name, number):
    with untorn.publish(np.zeros(3), name=name, keep=False):
        command = [sys.executable, "-m", "untorn.cli", "export", "--port", "0", name]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            try:
                url = process.stdout.readline().strip()
                with urllib.request.urlopen(url, timeout=60) as answer:
                    assert sampled(answer.read().decode())["untorn_channel_versions_total", name] == 1
            finally:
                process.send_signal(number)
            out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == {
        signal.SIGINT: (130, "", "interrupted\n"), signal.SIGTERM: (143, "", ""),
    }[number]  # fmt: skip
