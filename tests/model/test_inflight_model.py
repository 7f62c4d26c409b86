"""The batches in flight of asynchronous training, in every state that any order of steps, kills and stops can reach.

Every run is also checked to end with every batch applied, if nobody is killed or stopped any more and somebody is left.
"""

from __future__ import annotations

from typing import Any

import pytest
from explorer import Result, explore
from inflight_model import InFlight


def check(places: InFlight) -> Result:
    result = explore(places, ends=True)
    print(f"\n{places}\n{result}")
    if result.counterexample is not None:
        print(result.counterexample)
    return result


def assert_safe(places: InFlight) -> None:
    result = check(places)
    assert result.counterexample is None, f"\n{result.counterexample}"


def assert_broken(places: InFlight, reason: str) -> None:
    result = check(places)
    assert result.counterexample is not None, f"the model did not find the harm in {places}"
    assert reason in result.counterexample.reason


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, id="no fault"),
        pytest.param({"kills": 1}, id="a kill"),
        pytest.param({"batches": 2, "kills": 1, "stops": 1}, id="a kill and a stop"),
        pytest.param({"max_staleness": 0, "batches": 3, "kills": 1, "stops": 1}, id="one place, a kill and a stop"),
        pytest.param({"max_staleness": 2, "batches": 3}, id="three places"),
    ],
)
def test_every_batch_is_applied_once_and_in_time(options: dict[str, Any]) -> None:
    assert_safe(InFlight(**options))


def test_mutant_gradients_are_applied_as_they_come() -> None:
    """Few places alone keep no bound: while one batch takes its time, the others' places are used again and again."""
    assert_broken(InFlight(batches=3, waits=False), "is applied to version 2")


def test_mutant_one_place_more() -> None:
    """With that many under way, none can be applied without making another too old."""
    assert_broken(InFlight(batches=3, more=1), "deadlock")


def test_mutant_a_late_commit_counts() -> None:
    assert_broken(InFlight(batches=2, stops=1, swaps=False), "two owners")


def test_mutant_an_emptied_place_settles_no_record() -> None:
    assert_broken(InFlight(batches=3, kills=1, settles=False), "two owners")


def test_mutant_a_place_is_taken_before_its_gradient_is_applied() -> None:
    assert_broken(InFlight(batches=3, reopens=True), "deadlock")


@pytest.mark.soak
@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"batches": 3, "stops": 1}, id="a stop"),
        pytest.param({"batches": 3, "kills": 1, "stops": 1}, id="a kill and a stop"),
        pytest.param({"kills": 2}, id="two kills"),
        pytest.param({"max_staleness": 2}, id="three places, four batches"),
        pytest.param({"max_staleness": 2, "batches": 3, "kills": 1}, id="three places, a kill"),
        pytest.param({"workers": 3, "batches": 3, "kills": 1}, id="three workers, a kill"),
    ],
)
def test_bigger(options: dict[str, Any]) -> None:
    assert_safe(InFlight(**options))
