"""No wake of a queue is lost, in every state that any order of steps, kills and cancellations can reach.

The mutants are tests of the model: each takes one line out of the protocol, and the model must find that somebody
sleeps for ever, or that nobody does.
"""

from __future__ import annotations

from typing import Any

import pytest
from explorer import Result, explore
from queue_waking_model import PLACE, SLOT, QueueWaking


def check(options: dict[str, Any]) -> Result:
    waking = QueueWaking(**{"waits_for_slots": False} | options)
    result = explore(waking, ends=True)
    print(f"\n{waking}\n{result}")
    if result.counterexample is not None:
        print(result.counterexample)
    return result


TWO_WAKERS: dict[str, Any] = {"wakers": ((PLACE,), (PLACE,))}
ONE: dict[str, Any] = {"wakers": ((PLACE,),)}
COROUTINE = ONE | {"coroutines": 1}
ROOM: dict[str, Any] = {"waits_for_slots": True, "waiters": (PLACE, SLOT), "wakers": ((PLACE,),)}


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"timeouts": 1}, id="two waiters"),
        pytest.param({"comes_back": True}, id="two waiters that come back"),
        pytest.param(TWO_WAKERS, id="two wakers"),
        pytest.param({"kills": 1}, id="a kill"),
        pytest.param(ONE | {"ends": 1}, id="a signal"),
        pytest.param(COROUTINE | {"ends": 1}, id="a coroutine that is cancelled"),
        pytest.param(ROOM, id="one wants a place, one a slot"),
        pytest.param(ROOM | {"wakers": ((PLACE, SLOT),)}, id="both come"),
        pytest.param(TWO_WAKERS | {"waiters": (PLACE,) * 3}, id="three waiters", marks=pytest.mark.soak),
        pytest.param(
            {"waiters": (PLACE,), "comes_back": True, "wakers": ((PLACE,) * 3, (PLACE,))},
            id="many wakes of one",
            marks=pytest.mark.soak,
        ),
        pytest.param(TWO_WAKERS | {"kills": 2}, id="two kills", marks=pytest.mark.soak),
        pytest.param(COROUTINE | {"coroutines": 2, "ends": 2}, id="two coroutines", marks=pytest.mark.soak),
        pytest.param(COROUTINE | {"comes_back": True, "kills": 1}, id="a coroutine and a kill", marks=pytest.mark.soak),
        pytest.param(ROOM | {"wakers": ((PLACE,), (SLOT,))}, id="both come at once", marks=pytest.mark.soak),
        pytest.param(ROOM | {"kills": 1}, id="a place, a slot and a kill", marks=pytest.mark.soak),
    ],
)
def test_nobody_sleeps_while_there_is_what_it_wants(options: dict[str, Any]) -> None:
    result = check(options)
    assert result.counterexample is None, f"\n{result.counterexample}"


MUTANTS: dict[str, tuple[dict[str, Any], str]] = {
    "the number made even although others sleep": ({"adds": 1}, "deadlock"),
    "who fell asleep meanwhile is not woken": (TWO_WAKERS | {"wakes_rest": False}, "deadlock"),
    "no fence behind the event": ({"fences": False}, "deadlock"),
    "a signal ends the one that was woken": (ONE | {"ends": 1, "passes_on": False}, "deadlock"),
    "a cancelled coroutine was woken": (COROUTINE | {"ends": 1, "passes_on": False}, "deadlock"),
    "coroutines wake one another for ever": (
        COROUTINE | {"coroutines": 2, "comes_back": True, "passes_on_news_only": False},
        "need not end",
    ),
    "nobody looks again after a kill": ({"kills": 1, "rechecks": False}, "deadlock"),
    "the wake went to one that wants a slot": (ROOM | {"looks_behind": False}, "deadlock"),
}


def assert_found(options: dict[str, Any], reason: str) -> None:
    result = check(options)
    assert result.counterexample is not None, f"the model did not find the harm in {options}"
    assert reason in result.counterexample.reason


@pytest.mark.parametrize("mutant", MUTANTS)
def test_mutant_is_found(mutant: str) -> None:
    assert_found(*MUTANTS[mutant])


@pytest.mark.soak
def test_mutant_who_is_about_to_sleep_is_not_sent_back_is_found() -> None:
    """The wake goes to one that wants a slot, and does not need it."""
    assert_found(ROOM | {"wakers": ((PLACE,), (SLOT,)), "adds": 0}, "deadlock")
