"""The queue's protocol, checked in every state that any order of steps and kills can reach.

The mutants are tests of the model: each takes one line out of the protocol, and the model must find the harm.
"""

from __future__ import annotations

from typing import Any

import pytest
from explorer import Result, explore
from queue_model import Queue


def check(queue: Queue, limit: int) -> Result:
    result = explore(queue, goal=queue.finished, limit=limit)
    print(f"\n{queue}\n{result}")
    if result.counterexample is not None:
        print(result.counterexample)
    return result


def assert_safe(queue: Queue, limit: int = 400_000) -> None:
    result = check(queue, limit)
    assert result.counterexample is None, f"\n{result.counterexample}"


def assert_broken(queue: Queue, reason: str) -> None:
    result = check(queue, 400_000)
    assert result.counterexample is not None, f"the model did not find the harm in {queue}"
    assert reason in result.counterexample.reason


KILL: dict[str, Any] = {"items": (2,), "kills": 1}
TWO: dict[str, Any] = {"items": (1,), "consumers": 2, "slots": 1}


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(KILL | {"merged": False}, id="a kill at any step"),
        pytest.param(KILL | {"gives": 1}, id="a kill, and an item that is given back"),
        pytest.param({"items": (1,), "consumers": 2}, id="two consumers"),
        pytest.param({"items": (1, 1), "slots": 1}, id="two producers"),
        pytest.param(TWO | {"gives": 1}, id="two consumers, one gives back", marks=pytest.mark.soak),
        pytest.param({"items": (2,), "kills_of": "nobody"}, id="closed at any time", marks=pytest.mark.soak),
    ],
)
def test_every_item_is_finished_once(options: dict[str, Any]) -> None:
    assert_safe(Queue(**options))


# --- mutants ------------------------------------------------------------------------------------------------

MUTANTS: dict[str, tuple[dict[str, Any], str]] = {
    "nobody makes the steps of the dead": (KILL | {"helps": False}, "no progress"),
    "offered before the bytes are there": (KILL | {"offer_releases": False}, "reads 0/0"),
    "reaped before the tail is settled": (KILL | {"reaper_settles": False}, "at the tail is in state FREE"),
    "what the dead had taken is dropped": (KILL | {"returns_taken": False}, "were put, and never finished"),
    "taking does not say who": (KILL | {"names_owner": False}, "no progress"),
    "a row cleared before its slots": (KILL | {"clears_row_last": False}, "a slot stays taken"),
    "nobody is told of what comes back": (KILL | {"tells": "never"}, "nobody is told"),
    "told before it is there": (TWO | {"gives": 1, "tells": "before"}, "nobody is told"),
    "said to be none although one came": (TWO | {"gives": 2, "clears": "always"}, "nobody is told"),
    "the end told while others have items": (TWO | {"waits_for_others": False}, "may come back"),
    "the end in a word of its own": ({"items": (1,), "end": "flag", "kills_of": "nobody"}, "never finished"),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_mutant_is_found(mutant: str) -> None:
    assert_broken(Queue(**MUTANTS[mutant][0]), MUTANTS[mutant][1])


# --- soak ---------------------------------------------------------------------------------------------------


@pytest.mark.soak
def test_mutant_helping_without_a_second_look_is_found() -> None:
    assert_broken(Queue(items=(2,), consumers=2, slots=1, looks_again=False), "never finished")


@pytest.mark.soak
@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"items": (1,), "consumers": 2, "kills": 1}, id="two consumers, a kill"),
        pytest.param({"items": (1, 1)}, id="two producers, two slots"),
        pytest.param({"items": (1, 1), "slots": 1, "kills": 1}, id="two producers, a kill"),
        pytest.param({"items": (2,), "consumers": 2, "slots": 1}, id="two consumers, a slot that is used again"),
        pytest.param({"items": (2,), "kills": 2, "gives": 1}, id="two kills"),
        pytest.param({"items": (4,), "capacity": 2, "slots": 3}, id="more of the ring"),
    ],
)
def test_bigger(options: dict[str, Any]) -> None:
    assert_safe(Queue(**options), 5_000_000)
