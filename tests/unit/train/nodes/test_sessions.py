"""The driver's sessions and roster: what they make of the answers and of the losses of nodes."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from untorn.errors import WorkerError
from untorn.train.nodes.driver_copy import DriverCopy
from untorn.train.nodes.members import Member
from untorn.train.nodes.progress import Progress
from untorn.train.nodes.roster import Roster
from untorn.train.nodes.sending import Sending
from untorn.train.nodes.sessions import Sessions

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


class Board:
    """The step log of a job, and the names of its metrics."""

    steps = 64

    def __init__(self) -> None:
        self.log = np.full(self.steps, -1.0).view(LOG)
        self.metric_names: list[str] = []

    def write_metric_names(self, names: list[str]) -> bool:
        self.metric_names = self.metric_names or names
        return self.metric_names == names


class Recruiter:
    """Notes which nodes it was told to stop."""

    def __init__(self) -> None:
        self.stopped: list[int] = []

    def stop(self, number: int, *, lost: bool) -> None:
        self.stopped.append(number)

    def failed(self, reason: str) -> None:
        pass


@pytest.fixture
def progress():
    made = Progress()
    made.begin(SimpleNamespace(may_begin=False, ending=True, board=Board()))
    return made


@pytest.fixture
def recruiter():
    return Recruiter()


@pytest.fixture
def roster(progress, recruiter):
    return Roster(progress, recruiter, max_restarts=1, on_change=lambda: None)


def member(roster: Roster, number: int) -> Member:
    """A node that is ready and takes part."""
    wire = SimpleNamespace(hello={"number": number}, close=lambda: None)
    made = Member(number, wire)
    made.ready = True
    roster.members[number] = made
    roster.inside.append(made)
    return made


@pytest.mark.parametrize("steps", [(45, 44), (44, 45), (45, 45), (43, 45), (45, 43)])
def test_rows_of_several_nodes_are_those_of_the_same_steps(progress, roster, recruiter, steps):
    """Nodes that pause may be a step apart, and each answers with all rows that the driver lacks."""
    sessions = Sessions(
        roster, progress, DriverCopy(roster, progress), recruiter, wanted=lambda: 0, address=("127.0.0.1", 1)
    )
    log = progress.job.board.log
    log["loss"][:43] = range(43)
    progress.made = 43
    asyncio.run(sessions._pause([Paused(step) for step in steps]))
    assert progress.error is None
    assert progress.made == max(steps)
    assert log["loss"][: max(steps)].tolist() == list(range(max(steps)))
    assert (log["loss"][max(steps) :] == -1).all()


def test_rows_that_are_missing_are_an_error(progress):
    progress.made = 3
    with pytest.raises(RuntimeError, match="rows of the step log are missing: steps 3 to 5"):
        progress.take_rows(5, [], rows(5, 7))


def test_nodes_whose_metrics_have_other_names_end_the_job(progress):
    assert progress.take_rows(0, ["accuracy"], rows(0, 2)) == 2
    assert progress.take_rows(2, [], rows(2, 3)) == 1
    with pytest.raises(WorkerError, match="the nodes compute different metrics: accuracy; recall; return the same"):
        progress.take_rows(3, ["recall"], rows(3, 4))
    assert progress.made == 3


def test_a_node_that_others_cannot_reach_is_given_up_after_three_times(roster, recruiter):
    one, other = member(roster, 1), member(roster, 2)
    for _ in range(2):
        roster.accuse(one, other, "timed out")
    roster.note_step()
    for _ in range(2):
        roster.accuse(one, other, "timed out")
    assert other.lost is None
    roster.accuse(one, other, "timed out")
    assert other.lost == "node 1 cannot reach it: timed out"
    assert recruiter.stopped == [2]
    assert list(roster.members) == [1]


def test_nodes_that_are_lost_without_a_step_in_between_end_the_job(progress, roster):
    """Each member of the session may be lost once, and max_restarts more."""
    nodes = [member(roster, number) for number in range(2)]
    for each in nodes:
        roster.lose(each, "killed")
    assert progress.error is None
    roster.note_step()
    for number in (2, 3, 4):
        roster.inside = []
        nodes = [member(roster, number)]
        roster.lose(nodes[0], "killed")
    assert isinstance(progress.error, WorkerError)
    assert "3 nodes were lost one after the other" in str(progress.error)
    assert roster.restarts == 5


def test_a_node_that_leaves_is_not_lost(progress, roster, recruiter):
    leaves = member(roster, 7)
    roster.dismiss(leaves)
    assert (roster.restarts, recruiter.stopped, roster.members) == (0, [7], {})
    assert progress.error is None


@pytest.mark.parametrize(
    ("token", "version", "sent"), [(b"t", 5, False), (b"t", 4, True), (b"t", 6, True), (b"u", 5, True)]
)
def test_a_node_with_other_weights_gets_those_of_the_job(token, version, sent):
    """Also one that is behind: its first gradient is compared with that of the others."""
    asked = []

    class Kept:
        def __init__(self) -> None:
            self.has = {"setup", 1}
            self.preparing = asyncio.Lock()

        async def ask(self, message: dict[str, Any], blobs: Any = ()) -> Any:
            asked.append(message["do"])
            return {"token": token, "version": version, "digest": "d"}, []

    job = SimpleNamespace(token=b"t", first_version=5, first=b"w", key=1, read=None, raw=b"", plan=None, examples=1)
    sending = Sending({"form": None, "target": None}, [])
    assert asyncio.run(sending.prepare(Kept(), job, 1)) == "d"
    assert asked == ["position", *["weights"] * sent, "prepare"]
