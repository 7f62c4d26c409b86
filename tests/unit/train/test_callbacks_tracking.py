"""WandB and MLflow: their calls, on recording modules; and with the libraries themselves, where they are installed."""

from __future__ import annotations

import os
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest

import networks
from untorn.train import SGD, Callback, MLflow, Trainer, WandB

DATA = networks.data_of(64, 5)  # 4 steps of 16


def make():
    return Trainer(networks.line, networks.line_params(5), optimizer=SGD(0.05), engine="serial", shards=2, seed=7)


class Failing(Callback):
    def on_epoch_end(self, epoch, logs):
        raise OSError("no space")


class RecordedRun:
    def __init__(self) -> None:
        self.settings: dict[str, Any] = {}
        self.logged: list[tuple[int, dict[str, float]]] = []
        self.exit_code: int | None = None
        self.config = SimpleNamespace(update=self.update)

    def update(self, settings: dict[str, Any], *, allow_val_change: bool) -> None:
        assert allow_val_change
        self.settings |= settings

    def log(self, numbers: dict[str, float], *, step: int) -> None:
        self.logged.append((step, numbers))

    def finish(self, *, exit_code: int) -> None:
        self.exit_code = exit_code


@pytest.fixture
def wandb(monkeypatch):
    """The functions of wandb that WandB calls, with its signatures."""
    module: Any = SimpleNamespace(run=None, begun=[])

    def init(**arguments: Any) -> RecordedRun:
        module.begun.append(arguments)
        return RecordedRun()

    module.init = init
    monkeypatch.setitem(sys.modules, "wandb", module)
    return module


def test_wandb_gets_epochs_steps_and_settings(wandb):
    log = WandB(update_freq=2, project="p")
    runs = []
    with make() as trainer:
        for epochs in (2, 1):
            trainer.fit(
                DATA, epochs=epochs, batch_size=16, validation_data=DATA, callbacks=[log, Keep(log, runs)], verbose=0
            )
        history = trainer.evaluate(DATA)
    assert wandb.begun == [{"project": "p"}] * 2
    first, second = runs
    assert (first.exit_code, second.exit_code) == (0, 0)
    assert first.settings["seed"] == 7
    assert first.settings["optimizer"].startswith("SGD(")
    assert [step for step, _ in first.logged] == [1, 3, 4, 5, 7, 8]
    assert [step for step, _ in second.logged] == [9, 11, 12]
    assert second.settings["first_step"] == 8
    assert second.logged[-1][1]["epoch/val_loss"] == history["loss"]
    assert second.logged[-1][1]["epoch/epoch"] == 2
    assert set(first.logged[0][1]) == {"batch/loss", "batch/learning_rate", "batch/restarts"}


class Keep(Callback):
    def __init__(self, log: WandB, runs: list[Any]) -> None:
        self.log, self.runs = log, runs

    def on_train_begin(self, logs):
        self.runs.append(self.log._run)


def test_a_run_of_the_program_stays_open_and_an_error_is_told(wandb):
    wandb.run = own = RecordedRun()
    with make() as trainer:
        trainer.fit(DATA, epochs=1, batch_size=16, callbacks=[WandB()], verbose=0)
        assert (own.exit_code, len(own.logged), wandb.begun) == (None, 1, [])
        wandb.run = None
        runs: list[Any] = []
        log = WandB()
        with pytest.raises(OSError, match="no space"):
            trainer.fit(DATA, epochs=1, batch_size=16, callbacks=[log, Keep(log, runs), Failing()], verbose=0)
    assert runs[0].exit_code == 1


@pytest.fixture
def mlflow(monkeypatch):
    """The functions of mlflow that MLflow calls, with its signatures."""
    module: Any = SimpleNamespace(active=None, calls=[])

    def start_run(**arguments: Any) -> Any:
        module.active = SimpleNamespace(info=SimpleNamespace(run_id="r1"))
        module.calls.append(("start_run", arguments))
        return module.active

    def log_metrics(metrics: dict[str, float], step: int | None = None, *, run_id: str | None = None) -> None:
        module.calls.append((run_id, step, metrics))

    def end_run(status: str) -> None:
        module.active = None
        module.calls.append(("end_run", status))

    module.start_run, module.log_metrics, module.end_run = start_run, log_metrics, end_run
    module.active_run = lambda: module.active
    module.log_params = lambda params: module.calls.append(("log_params", params))
    monkeypatch.setitem(sys.modules, "mlflow", module)
    return module


def test_mlflow_gets_epochs_steps_and_settings(mlflow):
    with make() as trainer:
        trainer.fit(
            DATA, epochs=2, batch_size=16, validation_data=DATA, callbacks=[MLflow(update_freq="batch", run_name="n")],
            verbose=0,
        )  # fmt: skip
    start, (_, params), *logged, end = mlflow.calls
    assert (start, end) == (("start_run", {"run_name": "n"}), ("end_run", "FINISHED"))
    assert (params["seed"], params["shards"], params["learning_rate"]) == (7, 2, 0.05)
    assert {run_id for run_id, _, _ in logged} == {"r1"}
    assert [step for _, step, numbers in logged if "batch_loss" in numbers] == list(range(8))
    assert [step for _, step, numbers in logged if "val_loss" in numbers] == [0, 1]


def test_an_active_run_stays_active_and_an_error_is_told(mlflow):
    mlflow.active = SimpleNamespace(info=SimpleNamespace(run_id="own"))
    with make() as trainer:
        trainer.fit(DATA, epochs=1, batch_size=16, callbacks=[MLflow()], verbose=0)
        assert [call[:2] for call in mlflow.calls] == [("own", 0)]
        mlflow.active = None
        with pytest.raises(OSError, match="no space"):
            trainer.fit(DATA, epochs=1, batch_size=16, callbacks=[MLflow(), Failing()], verbose=0)
    assert mlflow.calls[-1] == ("end_run", "FAILED")


@pytest.mark.parametrize(("callback", "name"), [(WandB, "wandb"), (MLflow, "mlflow")])
def test_without_the_library_training_does_not_begin(callback, name, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)
    with make() as trainer:
        with pytest.raises(ImportError, match=rf"pip install 'untorn\[{name}\]'"):
            trainer.fit(DATA, epochs=1, batch_size=16, callbacks=[callback()], verbose=0)
        assert trainer.step == 0
    with pytest.raises((ValueError, TypeError), match=f"{callback.__name__}: update_freq="):
        callback(update_freq="step")


REAL = """
import sys, networks
from untorn.train import SGD, MLflow, Trainer, WandB
callbacks = [WandB(mode="offline", dir=".", update_freq="batch") if sys.argv[1] == "wandb" else MLflow()]
with Trainer(networks.line, networks.line_params(5), optimizer=SGD(0.05), engine="serial", shards=2) as trainer:
    data = networks.data_of(64, 5)
    history = trainer.fit(data, epochs=2, batch_size=16, callbacks=callbacks, verbose=0)
    print(repr(history.history["loss"][-1]))
"""


def run_real(name: str, folder: Any, **environment: str) -> float:
    """Train with the real library, in a process of its own: they leave threads and processes until it ends."""
    run = subprocess.run(
        [sys.executable, "-c", REAL, name],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)} | environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    return float(run.stdout.splitlines()[-1])


def test_the_real_wandb_offline(tmp_path):
    pytest.importorskip("wandb", exc_type=ImportError)
    run_real("wandb", tmp_path, WANDB_SILENT="true")
    (log,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    assert b"epoch/loss" in log.read_bytes()


def test_the_real_mlflow_in_files(tmp_path):
    pytest.importorskip("mlflow", exc_type=ImportError)
    loss = run_real("mlflow", tmp_path, MLFLOW_TRACKING_URI=f"file:{tmp_path}/runs", MLFLOW_ALLOW_FILE_STORE="true")
    (metric,) = tmp_path.glob("runs/0/*/metrics/loss")
    assert float(metric.read_text().splitlines()[-1].split()[1]) == loss
