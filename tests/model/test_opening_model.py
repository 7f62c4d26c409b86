"""Nobody is attached to halves of two channels, in every state that any order of steps and kills can reach."""

from __future__ import annotations

from typing import Any

import pytest
from explorer import Result, explore
from opening_model import Names, Numbers


def check(model: Names | Numbers, **options: Any) -> Result:
    result = explore(model, **options)
    print(f"\n{model}\n{result}")
    if result.counterexample is not None:
        print(result.counterexample)
    return result


def assert_broken(model: Names | Numbers, reason: str) -> None:
    result = check(model)
    assert result.counterexample is not None, f"the model did not find the harm in {model}"
    assert reason in result.counterexample.reason


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, id="two publishers"),
        pytest.param({"publishers": 1, "cleanings": 2}, id="a cleaner, twice"),
        pytest.param({"publishers": 3}, id="three publishers", marks=pytest.mark.soak),
    ],
)
def test_every_attached_pair_is_one_channel_and_the_name_can_be_published_again(options: dict[str, Any]) -> None:
    names = Names(**options)
    result = check(names, goal=names.published)
    assert result.counterexample is None, f"\n{result.counterexample}"


@pytest.mark.soak
@pytest.mark.parametrize("cleanings", [1, 2])
def test_whatever_a_cleaner_does_every_attached_pair_is_one_channel(cleanings: int) -> None:
    result = check(Names(cleanings=cleanings, strict=False))
    assert result.counterexample is None, f"\n{result.counterexample}"


def test_numbers_of_descriptors() -> None:
    result = check(Numbers())
    assert result.counterexample is None, f"\n{result.counterexample}"


@pytest.mark.parametrize("checks", [(), ("control",), ("data",)])
def test_mutant_only_one_id_is_looked_at(checks: tuple[str, ...]) -> None:
    assert_broken(Numbers(checks=checks), "a reader that wants channel 1 is attached to")


def test_mutant_a_reader_that_does_not_compare() -> None:
    assert_broken(Names(compares=False), "a reader is attached to the control file of one channel and the data file of")


def test_mutant_a_publisher_that_opens_first_and_does_not_compare() -> None:
    """Once it has the lock, it looks only at the control name."""
    assert_broken(
        Names(publisher_compares=False, locks_first=False, cleanings=1, strict=False),
        "a publisher has the control file of",
    )


def test_mutant_a_publisher_that_does_not_look_again_when_it_has_the_lock() -> None:
    assert_broken(Names(looks=False), "name of a living publisher's channel is removed")


def test_mutant_a_publisher_that_does_not_know_that_names_were_being_given() -> None:
    assert_broken(Names(publishers=1, cleanings=1, knows_naming=False), "told of a mixed pair that nobody made by hand")


def test_mutant_control_is_unlinked_first() -> None:
    """Its data name is removed when a successor has it."""
    assert_broken(Names(unlinks_data_first=False), "the data name of a living publisher's channel is removed")
