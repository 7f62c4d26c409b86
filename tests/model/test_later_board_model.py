"""Not the code's protocol but a later version's, which takes gradient tasks from stopped workers: in every state that
any order of steps, kills and stops can reach. The code's is in `test_board_model.py`.

Every run is also checked to end with the last version published, if nobody is killed any more: no deadlock,
no going round for ever, and a stopped worker that was given up on is not needed.
"""

from __future__ import annotations

from typing import Any

import pytest
from explorer import Result, explore
from later_board_model import Board


def check(board: Board) -> Result:
    result = explore(board, ends=True)
    print(f"\n{board}\n{result}")
    if result.counterexample is not None:
        print(result.counterexample)
    return result


def assert_safe(board: Board) -> None:
    result = check(board)
    assert result.counterexample is None, f"\n{result.counterexample}"


def assert_broken(board: Board, reason: str) -> None:
    result = check(board)
    assert result.counterexample is not None, f"the model did not find the harm in {board}"
    assert reason in result.counterexample.reason


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"kills": 1, "stops": 0}, id="a kill"),
        pytest.param({"kills": 0, "stops": 1}, id="a worker given up that comes back, or never"),
        pytest.param({"kills": 1, "stops": 1, "rounds": 1}, id="both, in one step"),
    ],
)
def test_every_version_is_the_one_right_result(options: dict[str, Any]) -> None:
    assert_safe(Board(**options))


# --- the record's intent: what the first plan had, and what it needs ----------------------------------------

KILL: dict[str, Any] = {"kills": 1, "stops": 0}
TWO_OWNERS = "belongs to worker 0 and to worker 1"


@pytest.mark.parametrize("settle", ["never", "self"])
@pytest.mark.parametrize("neither", ["scratch", "other"])
def test_an_intent_that_claims_do_not_resolve_gives_one_buffer_to_two_workers(settle: Any, neither: Any) -> None:
    """Killed after its commit (even before it could record it), and the shard's word names a newer commit.

    Then it names neither buffer of the intent, and neither guess is always right.
    """
    assert_broken(Board(**KILL, settle=settle, neither=neither), "belongs to")


def test_mutant_server_does_not_look_again_after_a_claim_resolved_the_record() -> None:
    assert_broken(Board(**KILL, server_settles=False), TWO_OWNERS)


def test_mutant_record_only_after_the_commit() -> None:
    assert_broken(Board(**KILL, intent=False), "belongs to shard 0 and to worker 0")


# --- other mutants ------------------------------------------------------------------------------------------


def test_mutant_update_in_place() -> None:
    assert_broken(Board(**KILL, in_place=True), "is not right")


def test_mutant_update_task_of_a_stopped_worker_given_to_another() -> None:
    assert_broken(Board(kills=0, stops=1, gives_up_updates=True), "is not right")


def test_mutant_claiming_words_of_a_later_step() -> None:
    """'Not (my step, claimed or done)' is too much: a late worker would take back what a later step did."""
    assert_broken(Board(kills=0, stops=0, later_is_free=True), "is not right")


def test_mutant_dead_workers_claims_are_not_freed() -> None:
    assert_broken(Board(**KILL, server_frees=False), "deadlock")


# --- soak ---------------------------------------------------------------------------------------------------


@pytest.mark.soak
@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, id="a kill and a stop"),
        pytest.param({"ranges": 1, "kills": 2, "stops": 0}, id="two kills"),
        pytest.param({"shards": 1, "ranges": 1, "kills": 2, "rounds": 3}, id="two kills and a stop, three steps"),
        pytest.param({"workers": 3, "ranges": 1, "kills": 0, "stops": 0, "slots": 5}, id="three workers"),
    ],
)
def test_bigger(options: dict[str, Any]) -> None:
    assert_safe(Board(**options))
