"""Trainings that note when each step was made, for the benchmark of failures (benchmarks/nodes_failures.py).

A driver on node 0 runs the training; asked through its connection, it sends the times and numbers of the steps so far.
All times are those of CLOCK_MONOTONIC, which all nodes share.
"""

from __future__ import annotations

import itertools
import json
import logging
import os
import re
import tempfile
import threading
import time
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.peers.torch_case import Case, loss
from benchmarks.peers.torch_crew import updates

_CHECKPOINT_EVERY = 50
_SHARDS = 4
_JOIN_S = 60.0


class Step(NamedTuple):
    """A step that was made: when, and its number from the beginning of the training."""

    time_s: float
    number: int


class Steps:
    """Where steps are noted: an actor of Ray, or an object of the driver."""

    def __init__(self) -> None:
        self._steps: list[Step] = []

    def note(self, number: int) -> None:
        """Note that a step was made just now."""
        self._steps.append(Step(time.monotonic(), number))

    def since(self, count: int) -> list[Step]:
        """Return the steps after the first ``count``."""
        return self._steps[count:]


def drive_untorn(connection: Connection, case: Case) -> None:
    """Train with untorn on all nodes of the Ray cluster that have a processor, whichever these are at a time."""
    import ray

    from untorn import Callback, Trainer
    from untorn.torch import TorchModel

    ray.init(log_to_driver=False, logging_level="error")
    steps, sessions = Steps(), Sessions()
    logging.getLogger("untorn").addHandler(sessions)
    logging.getLogger("untorn").setLevel(logging.INFO)
    count = itertools.count(1)

    class Notes(Callback):
        def on_batch_end(self, batch: int, logs: Any) -> None:
            steps.note(next(count))

    model = TorchModel(case.module(), loss())
    optimizer = case.untorn_optimizer()
    trainer = Trainer(model, optimizer=optimizer, engine="ray", workers=1, shards=_SHARDS)
    fit = partial(trainer.fit, case.data(), epochs=2**30, batch_size=case.batch, callbacks=[Notes()])
    answer(connection, fit, steps.since, sessions.wait_for)


class Sessions(logging.Handler):
    """Reads in the log how many nodes take part in a training."""

    def __init__(self) -> None:
        super().__init__()
        self._changed = threading.Condition()
        self._nodes = 0

    def emit(self, record: logging.LogRecord) -> None:
        """Look at a record of the log."""
        if found := re.match(r"session \d+ begins at step \d+ on (.*)", record.getMessage()):
            with self._changed:
                self._nodes = len(found[1].split(", "))
                self._changed.notify_all()

    def wait_for(self, nodes: int) -> None:
        """Wait until this number of nodes take part. Raises RuntimeError if they do not within _JOIN_S."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._nodes >= nodes, _JOIN_S):
                raise RuntimeError(f"{nodes} nodes did not take part within {_JOIN_S} s")


def drive_ray_train(connection: Connection, case: Case, workers: int) -> None:
    """Train with Ray Train, with a checkpoint every _CHECKPOINT_EVERY steps, and any number of failures."""
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    ray.init(log_to_driver=False, logging_level="error")
    steps = ray.remote(Steps).options(num_cpus=0, resources={"node0": 1}).remote()
    trainer = TorchTrainer(
        train_with_ray,
        train_loop_config={"case": case, "steps": steps},
        scaling_config=ScalingConfig(num_workers=workers, placement_strategy="STRICT_SPREAD"),
        run_config=RunConfig(
            storage_path=os.environ["UNTORN_BENCH_STORAGE"], failure_config=FailureConfig(max_failures=-1)
        ),
    )
    answer(connection, trainer.fit, lambda count: ray.get(steps.since.remote(count)))


def train_with_ray(config: dict[str, Any]) -> None:
    """Train for ever, from the last checkpoint: the function of each worker."""
    import torch
    from ray import train as ray_train
    from ray.train.torch import prepare_model

    torch.set_num_threads(1)
    case, steps = config["case"], config["steps"]
    context = ray_train.get_context()
    rank, share = context.get_world_rank(), case.batch // context.get_world_size()
    module = case.module()
    number = 0
    if checkpoint := ray_train.get_checkpoint():
        with checkpoint.as_directory() as folder:
            number = json.loads((Path(folder) / "step.json").read_text())
            module.load_state_dict(torch.load(Path(folder) / "module.pt", weights_only=True))
    work = updates(prepare_model(module), case)
    x, y = (torch.from_numpy(part) for part in case.data())
    while True:
        first = (number * case.batch + rank * share) % case.examples
        work.step(x[first : first + share], y[first : first + share])
        number += 1
        if rank == 0:
            steps.note.remote(number)
        if number % _CHECKPOINT_EVERY == 0:
            report(number, module if rank == 0 else None)


def report(number: int, module: Any) -> None:
    """Report a step to Ray Train, with a checkpoint of the module if there is one."""
    import torch
    from ray import train as ray_train

    if module is None:
        ray_train.report({"step": number})
        return
    with tempfile.TemporaryDirectory() as folder:
        torch.save(module.state_dict(), Path(folder) / "module.pt")
        (Path(folder) / "step.json").write_text(json.dumps(number))
        ray_train.report({"step": number}, checkpoint=ray_train.Checkpoint.from_directory(folder))


def answer(
    connection: Connection,
    fit: Callable[[], Any],
    since: Callable[[int], list[Step]],
    wait_for_nodes: Callable[[int], None] | None = None,
) -> None:
    """Run ``fit`` in a thread. Answer ("steps", count) by the steps after the first ``count``, and
    ("nodes", number) when this number of nodes take part. Raises the error of fit."""
    errors: list[BaseException] = []
    thread = threading.Thread(target=partial(catch, fit, errors), daemon=True)
    thread.start()
    while True:
        what, number = connection.recv()
        if errors:
            raise errors[0]
        if what == "nodes" and wait_for_nodes is not None:
            connection.send(wait_for_nodes(number))
        else:
            connection.send(since(number))


def catch(call: Callable[[], Any], errors: list[BaseException]) -> None:
    try:
        call()
    except BaseException as error:
        errors.append(error)
