"""The driver's coordinator: what it makes of the answers of nodes."""

from __future__ import annotations

import contextlib
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from untorn.engines.nodes.loopback import LoopbackCluster
from untorn.train.nodes.coordinator import Coordinator

LOG = np.dtype([("loss", np.float64)])


def rows(first: int, stop: int) -> bytearray:
    """Rows of the step log, in which the loss is the number of the step."""
    return bytearray(np.array([(step,) for step in range(first, stop)], LOG).tobytes())


class Paused:
    """A node that pauses at this step, and answers with the rows that the driver has asked for."""

    def __init__(self, step: int) -> None:
        self.step = step

    async def ask(self, message: dict[str, Any]) -> Any:
        answer = {"step": self.step, "names": [], "token": b"t", "version": 1 + self.step}
        return answer, [rows(message["rows_from"], self.step)]


@pytest.fixture
def coordinator(monkeypatch):
    cluster = LoopbackCluster()
    monkeypatch.setattr(cluster, "wanted", lambda: 0)  # it starts no node
    with contextlib.closing(cluster):
        cluster.open(1, 1)
        made = Coordinator(cluster, {}, [], workers=1, max_restarts=0)
        with contextlib.closing(made):
            yield made


@pytest.mark.parametrize("steps", [(45, 44), (44, 45), (45, 45), (43, 45), (45, 43)])
def test_rows_of_several_nodes_are_those_of_the_same_steps(coordinator, steps):
    """Nodes that pause may be a step apart, and each answers with all rows that the driver lacks."""
    log = np.full(64, -1.0).view(LOG)
    coordinator._job = SimpleNamespace(
        may_begin=False, ending=True, board=SimpleNamespace(log=log, steps=64, metric_names=["loss"])
    )
    coordinator.made = 43
    log["loss"][:43] = range(43)
    coordinator._hub.run(coordinator._pause([Paused(step) for step in steps])).result()
    assert coordinator.made == max(steps)
    assert log["loss"][: max(steps)].tolist() == list(range(max(steps)))
    assert (log["loss"][max(steps) :] == -1).all()
    coordinator._job = None
