"""Versions that consist of changes keep their base, in every state that any order of steps and kills can reach."""

from __future__ import annotations

from typing import Any

import pytest
from base_model import Bases
from explorer import Result, explore


def check(bases: Bases) -> Result:
    result = explore(bases)
    print(f"\n{bases}\n{result}")
    if result.counterexample is not None:
        print(result.counterexample)
    return result


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"slots": 3, "versions": 6}, id="three slots"),
        pytest.param({"slots": 4, "versions": 4, "kills": 0}, id="four slots"),
        pytest.param({"slots": 4, "versions": 5}, id="four slots, a kill", marks=pytest.mark.soak),
        pytest.param({"slots": 3, "versions": 6, "kills": 2}, id="two kills", marks=pytest.mark.soak),
        pytest.param({"readers": 2, "slots": 4, "versions": 4, "kills": 0}, id="two readers", marks=pytest.mark.soak),
    ],
)
def test_every_held_version_has_its_base(options: dict[str, Any]) -> None:
    result = check(Bases(**options))
    assert result.counterexample is None, f"\n{result.counterexample}"


MUTANTS: dict[str, tuple[dict[str, Any], str]] = {
    "bases are not held": ({"holds": "none"}, "has no base"),
    "only the base of the latest is held": ({"holds": "latest"}, "has no base"),
    "the next publisher does not know the bases": ({"inherits": False}, "has no base"),
    "the slot of the next base is not reserved": ({"reserves": False}, "latest version"),
    "the version that is written again is not pinned": ({"pins": False}, "no version"),
    "the next base is used before it is written": ({"joins": False}, "has no base"),
    "the thread that gives space back looks for it itself": ({"claims": "sweep"}, "latest version"),
    "changes are collected too late": ({"collects": "late"}, "lacks the changes"),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_mutant_breaks_a_promise(mutant: str) -> None:
    options, reason = MUTANTS[mutant]
    result = check(Bases(**({"slots": 4, "versions": 5} | options)))
    assert result.counterexample is not None, "the model is blind"
    assert reason in result.counterexample.reason


def test_harmless_a_reservation_that_ends_before_the_version_is_the_latest() -> None:
    """The publisher alone picks slots, and this thread is its last: in between nobody looks for a free one. The code
    does not rely on it."""
    assert check(Bases(slots=3, versions=5, unreserves="before")).counterexample is None
