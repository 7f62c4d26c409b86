"""The board's protocol in every state that any order of steps, kills and stops can reach.

Every run is also checked to end with the last version published, if nobody is killed or stopped any more: no deadlock,
no endless loop, and workers that are stopped for good are not needed.
"""

from __future__ import annotations

from typing import Any

import pytest
from board_model import GRADIENT, NORM, RECORD, SCRATCH, SWAP, UPDATE, Board
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


#: one shard, one range
SMALL: dict[str, Any] = {"shards": 1, "ranges": 1}


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, id="no fault"),
        pytest.param({"ranges": 1, "kills": 1}, id="a kill"),
        pytest.param({"rounds": 1, "kills": 1}, id="a kill, two ranges"),
        pytest.param({"ranges": 1, "rounds": 1, "kills": 2}, id="two kills in one step"),
        pytest.param({"ranges": 1, "stops": 1}, id="a stop"),
        pytest.param({**SMALL, "stops": 1, "stops_anywhere": True}, id="a stop anywhere"),
        pytest.param({**SMALL, "kills": 1, "stops": 1}, id="a kill and a stop", marks=pytest.mark.soak),
        pytest.param({"ranges": 1, "rounds": 1, "kills": 1, "looks_around": True}, id="idle workers look at any time"),
        pytest.param({"shards": 1, "clips": True, "rounds": 1, "kills": 1}, id="clipping, a kill"),
        pytest.param({**SMALL, "clips": True, "rounds": 1, "stops": 1}, id="clipping, a stop"),
        pytest.param({"shards": 1, "clips": True}, id="clipping, two steps"),
    ],
)
def test_every_version_is_the_one_right_result(options: dict[str, Any]) -> None:
    assert_safe(Board(**options))


# --- mutants: whose buffer is what ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "mutant",
    [
        pytest.param({"commit": (SWAP, RECORD, SCRATCH)}, id="recorded after the swap"),
        pytest.param({"commit": (SWAP, SCRATCH)}, id="not recorded"),
        pytest.param({"commit": (RECORD, SCRATCH, SWAP)}, id="scratch stored before the swap"),
        pytest.param({"commit": (RECORD, SWAP)}, id="scratch not stored"),
        pytest.param({"reaps": "never"}, id="claims settle no record"),
        pytest.param({"reaps": "never", "neither": "other"}, id="nor does it help to guess the other buffer"),
        pytest.param({"reaps": "after"}, id="settled after the claim"),
        pytest.param({"reaps": "anything"}, id="settled, whatever commit the record is of"),
        pytest.param({"reap_swaps": False}, id="settled by a store, whatever the record is by then"),
        pytest.param({"looks_again": False}, id="the server settles what a claim has settled meanwhile"),
        pytest.param({"stops": 1, "neither": "other"}, id="a commit that failed is taken for one that was overwritten"),
    ],
)
def test_mutant_gives_one_buffer_two_owners(mutant: dict[str, Any]) -> None:
    assert_broken(Board(**SMALL, kills=1, **mutant), "belongs to")


# --- mutants: stopped workers ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "mutant",
    [
        pytest.param({"gives_up": (GRADIENT, UPDATE)}, id="an update"),
        pytest.param({"gives_up": (GRADIENT, NORM), "clips": True, "ranges": 1}, id="a norm"),
    ],
)
def test_mutant_ranges_of_stopped_workers_are_given_to_others(mutant: dict[str, Any]) -> None:
    """The worker that continues with it overwrites data that others read by then."""
    assert_broken(Board(shards=1, stops=1, **mutant), "is not right")


@pytest.mark.parametrize(
    "mutant",
    [
        pytest.param({"gives_up": ()}, id="gradients are left to them"),
        pytest.param({"kills_stopped": False}, id="ranges are left to them"),
    ],
)
def test_mutant_stopped_workers_are_waited_for(mutant: dict[str, Any]) -> None:
    assert_broken(Board(rounds=1, stops=1, **mutant), "deadlock")


# --- other mutants ------------------------------------------------------------------------------------------


def test_mutant_update_in_place() -> None:
    assert_broken(Board(kills=1, in_place=True), "is not right")


def test_mutant_claiming_words_of_a_later_step() -> None:
    """'Not (my step, claimed or done)' is too much: a late worker would take back what a later step did."""
    assert_broken(Board(later_is_free=True), "has pinned")


@pytest.mark.parametrize("kind", [GRADIENT, NORM, UPDATE])
def test_mutant_dead_workers_claims_are_not_freed(kind: str) -> None:
    kinds = tuple(other for other in (GRADIENT, NORM, UPDATE) if other != kind)
    assert_broken(Board(rounds=1, kills=1, clips=kind == NORM, recovers=kinds), "deadlock")


def test_mutant_norms_and_updates_share_their_words() -> None:
    """Done for the norm would be done for the update."""
    assert_broken(Board(rounds=1, clips=True, shared_words=True), "is not right")


# --- shards of other nodes ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"ranges": 1, "remote": (1,)}, id="no fault"),
        pytest.param({"ranges": 1, "rounds": 1, "remote": (1,), "kills": 1}, id="a kill"),
        pytest.param({**SMALL, "remote": (0,), "kills": 1}, id="no own shards, a kill"),
        pytest.param({**SMALL, "rounds": 1, "kills": 1, "moves": 1}, id="a kill, and a shard moves"),
        pytest.param({**SMALL, "rounds": 1, "stops": 1, "moves": 1}, id="a stop, and a shard moves"),
        pytest.param({"ranges": 1, "rounds": 1, "remote": (1,), "moves": 1}, id="two shards, one moves"),
    ],
)
def test_a_link_is_a_worker_that_keeps_no_buffer(options: dict[str, Any]) -> None:
    assert_safe(Board(**options))


def test_mutant_link_leaves_a_shard_to_its_worker() -> None:
    assert_broken(Board(**SMALL, rounds=1, stops=1, moves=1, gives_up=(), link_takes=False), "deadlock")


def test_mutant_link_commits_before_it_announces_the_sum() -> None:
    """Its session may end in between; then a board that has all the shards again finds no gradient."""
    assert_broken(Board(**SMALL, remote=(0,), moves=1, announces="last"), "is not right")


def test_mutant_step_without_its_sum() -> None:
    """If the workers did a shard before it became remote, they would not wait for the link to read the own shards."""
    assert_broken(Board(workers=1, ranges=1, moves=1, needs_sum=False), "sums other gradients")
    assert_safe(Board(workers=1, ranges=1, moves=1))


def test_mutant_link_writes_the_sum_during_the_update_before() -> None:
    assert_broken(Board(**SMALL, remote=(0,), link_waits=False), "is not right")


# --- soak ---------------------------------------------------------------------------------------------------


@pytest.mark.soak
def test_mutant_link_settles_no_record() -> None:
    """A killed worker's commit is overwritten by the link, and the buffer goes to a third one."""
    assert_broken(Board(**SMALL, rounds=3, kills=1, moves=2, link_reaps=False), "belongs to")


@pytest.mark.soak
@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"kills": 1}, id="a kill, two ranges"),
        pytest.param({"stops": 1}, id="a stop, two ranges"),
        pytest.param({**SMALL, "kills": 1, "stops": 1, "stops_anywhere": True}, id="a kill, and a stop anywhere"),
        pytest.param({**SMALL, "stops": 2}, id="two stops"),
        pytest.param({"ranges": 1, "kills": 2}, id="two kills"),
        pytest.param({**SMALL, "kills": 2, "rounds": 3}, id="two kills, three steps"),
        pytest.param({**SMALL, "kills": 1, "stops": 1, "rounds": 3}, id="a kill and a stop, three steps"),
        pytest.param({"ranges": 1, "rounds": 1, "kills": 1, "stops": 1}, id="a kill and a stop, two shards"),
        pytest.param({"ranges": 1, "kills": 1, "stops": 1}, id="a kill and a stop, two shards, two steps"),
        pytest.param({"ranges": 1, "kills": 1, "looks_around": True}, id="a kill, idle workers look at any time"),
        pytest.param({"shards": 3, "ranges": 1, "kills": 1}, id="three shards"),
        pytest.param({**SMALL, "kills": 1, "moves": 1}, id="two steps, a kill, and a shard moves"),
        pytest.param({**SMALL, "rounds": 3, "kills": 1, "moves": 2}, id="a kill, a shard moves away and comes back"),
        pytest.param({"clips": True, "kills": 1}, id="clipping, two steps, two ranges, a kill"),
        pytest.param({"clips": True, "ranges": 1, "rounds": 1, "kills": 2}, id="clipping, two kills"),
        pytest.param({**SMALL, "clips": True, "kills": 1, "stops": 1}, id="clipping, a kill and a stop"),
        pytest.param({"workers": 3, "ranges": 1, "rounds": 1, "slots": 5, "kills": 1}, id="three workers, a kill"),
        pytest.param({**SMALL, "workers": 3, "slots": 5, "stops": 1, "rounds": 1}, id="three workers, a stop"),
    ],
)
def test_bigger(options: dict[str, Any]) -> None:
    assert_safe(Board(**options))
