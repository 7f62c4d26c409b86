"""The board's protocol as the code has it, in every state that any order of steps and kills can reach.

Every run is also checked to end with the last version published, if nobody is killed any more: no deadlock, no going
round for ever. A stopped worker is one that nobody schedules: it is waited for, and whatever it finds when it goes on
is among the orders.
"""

from __future__ import annotations

from typing import Any

import pytest
from board_model import CLEAR, FREE_CLAIMS, INTENT, SCRATCH, SETTLE, SWAP, Board
from explorer import Result, explore


def check(board: Board) -> Result:
    # looking around in vain is a way to go round for ever, so ask for the end in reach
    result = explore(board, goal=board.finished) if board.looks_around else explore(board, ends=True)
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
        pytest.param({"kills": 0}, id="no kill"),
        pytest.param({"kills": 1}, id="a kill"),
        pytest.param({"ranges": 1, "rounds": 1, "kills": 2}, id="two kills in one step"),
        pytest.param({"ranges": 1, "rounds": 1, "looks_around": True}, id="a kill, idle workers look at any time"),
        pytest.param({"clips": True, "rounds": 1}, id="clipping, a kill"),
        pytest.param({"clips": True, "shards": 1, "kills": 0}, id="clipping, two steps"),
        pytest.param({"clips": True, "shards": 1, "ranges": 1}, id="clipping, two steps, a kill"),
    ],
)
def test_every_version_is_the_one_right_result(options: dict[str, Any]) -> None:
    assert_safe(Board(**options))


# --- mutants: settling a dead worker's commit ---------------------------------------------------------------


@pytest.mark.parametrize(
    "mutant",
    [
        pytest.param({"recover": (FREE_CLAIMS, SETTLE)}, id="claims freed before the intent is settled"),
        pytest.param({"recover": (FREE_CLAIMS,)}, id="the intent is not settled"),
        pytest.param({"commit": (SWAP, INTENT, SCRATCH, CLEAR)}, id="intent stored after the swap"),
        pytest.param({"commit": (SWAP, SCRATCH)}, id="no intent"),
        pytest.param({"commit": (INTENT, SWAP, CLEAR, SCRATCH)}, id="scratch stored after the intent is cleared"),
        pytest.param({"commit": (INTENT, SCRATCH, CLEAR, SWAP)}, id="swap after the intent is cleared"),
        pytest.param({"stands": "any claim"}, id="another's claim of a later step is taken for the dead worker's"),
        pytest.param({"stands": "never"}, id="every swap is taken to have happened"),
    ],
)
def test_mutant_gives_one_buffer_two_owners(mutant: dict[str, Any]) -> None:
    assert_broken(Board(ranges=1, **mutant), "belongs to shard")


def test_mutant_claims_taken_from_a_live_worker() -> None:
    """Why only dead workers lose claims: the intent cannot say any more whether the swap happened."""
    assert_broken(Board(ranges=1, stops=1), "belongs to shard")


# --- other mutants ------------------------------------------------------------------------------------------


def test_mutant_update_in_place() -> None:
    assert_broken(Board(in_place=True), "is not right")


def test_mutant_claiming_words_of_a_later_step() -> None:
    """'Not (my step, claimed or done)' is too much: a late worker would take back what a later step did."""
    assert_broken(Board(kills=0, later_is_free=True), "has pinned")


def test_mutant_dead_workers_claims_are_not_freed() -> None:
    assert_broken(Board(rounds=1, recover=(SETTLE,)), "deadlock")


def test_mutant_dead_workers_norms_are_not_freed() -> None:
    assert_broken(Board(rounds=1, clips=True, norms_recovered=False), "deadlock")


def test_mutant_norms_and_updates_share_their_words() -> None:
    """Done for the norm would be done for the update."""
    assert_broken(Board(rounds=1, kills=0, clips=True, shared_words=True), "is not right")


# --- soak ---------------------------------------------------------------------------------------------------


@pytest.mark.soak
@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"ranges": 1, "kills": 2}, id="two kills"),
        pytest.param({"shards": 1, "ranges": 1, "kills": 2, "rounds": 3}, id="two kills, three steps"),
        pytest.param({"ranges": 1, "looks_around": True}, id="a kill, idle workers look at any time"),
        pytest.param({"shards": 3, "ranges": 1}, id="three shards"),
        pytest.param({"clips": True}, id="clipping, two steps, two ranges, a kill"),
        pytest.param({"clips": True, "ranges": 1, "rounds": 1, "kills": 2}, id="clipping, two kills"),
        pytest.param({"workers": 3, "ranges": 1, "rounds": 1, "slots": 5}, id="three workers, a kill"),
    ],
)
def test_bigger(options: dict[str, Any]) -> None:
    assert_safe(Board(**options))
