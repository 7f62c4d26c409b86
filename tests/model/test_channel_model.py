"""The channel's protocol, checked in every state that any order of steps and kills can reach.

The mutants are tests of the model: each takes one line out of the protocol, and the model must find the
harm. `pytest -s` prints the number of states, and each counterexample (how to read one: README.md).
"""

from __future__ import annotations

from typing import Any

import pytest
from channel_model import Channel
from explorer import Result, explore


def check(channel: Channel, **options: Any) -> Result:
    result = explore(channel, **options)
    print(f"\n{channel}\n{result}")
    if result.counterexample is not None:
        print(result.counterexample)
    return result


def assert_safe(channel: Channel, **options: Any) -> None:
    result = check(channel, **options)
    assert result.counterexample is None, f"\n{result.counterexample}"


def assert_broken(channel: Channel, reason: str) -> None:
    result = check(channel)
    assert result.counterexample is not None, f"the model did not find the harm in {channel}"
    assert reason in result.counterexample.reason


# One reader is enough for each mutant below; the protocol itself is checked with two as well.
ONE: dict[str, Any] = {"readers": 1, "slots": 3, "never_waits": False}
OLDER: dict[str, Any] = {"readers": 1, "held": 2, "slots": 4, "never_waits": False}


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"never_waits": False}, id="two readers", marks=pytest.mark.soak),
        pytest.param({"never_waits": False, "tries": 0, "memory": "pso"}, id="two readers, fallback, pso"),
        pytest.param(OLDER, id="an older snapshot held while a newer one is pinned"),
        pytest.param(OLDER | {"memory": "pso", "tries": 2}, id="the same, pso, two tries"),
        pytest.param(ONE | {"when_full": "grow"}, id="growing before reclaiming"),
    ],
)
def test_every_held_snapshot_is_whole(options: dict[str, Any]) -> None:
    assert_safe(Channel(**options))


@pytest.mark.parametrize("slots", [2, 3])
def test_too_few_slots_only_delay_the_writer(slots: int) -> None:
    """From every state, with nobody killed any more, readers' releases let the writer publish again."""
    channel = Channel(readers=1, slots=slots, never_waits=False)
    assert_safe(channel, goal=channel.publishes)


@pytest.mark.parametrize("held", [1, 2])
def test_with_help_the_writer_never_waits(held: int) -> None:
    """readers * held + 2 slots are enough, and exactly that many exist, for any kills and stops."""
    channel = Channel(readers=1, held=held, slots=held + 3, bound=held + 2, fallback="help")
    assert_safe(channel, goal=channel.publishes)


def test_with_help_one_slot_less_is_too_little() -> None:
    assert_broken(Channel(readers=1, held=2, slots=3, fallback="help"), "the writer waits")


@pytest.mark.parametrize("slots", [3, 4, 5, 6])
def test_setting_all_bits_blocks_every_slot_up_to_any_cap(slots: int) -> None:
    """The weakness that asking for help removes: a reader stopped between setting all bits and keeping one.

    No kill, no fault: that one reader makes the channel grow to its cap, and then the writer waits for it.
    """
    assert_broken(Channel(readers=1, slots=slots, kills=0), f"found none of {slots} slots free")


def test_reclaiming_before_growing_counts_only_the_living() -> None:
    """Two rows, one reader at a time, one is killed: 1 * 1 + 2 slots, if its row is reclaimed in time."""
    one_alive: dict[str, Any] = {"alive": 1, "kills": 1, "slots": 5, "bound": 3, "fallback": "help"}
    assert_safe(Channel(**one_alive))
    assert_broken(Channel(**one_alive, when_full="grow"), "memory is not bounded")


# --- mutants ------------------------------------------------------------------------------------------------

MUTANTS: dict[str, dict[str, Any]] = {
    "no fence between the held word and the second load": {"reader_fence": False},
    "no fence between all bits and the load": {"settle_fence": False},
    "no fence between publishing and scanning": {"writer_fence": False},
    "no second load": {"second_load": False},
    "row reclaimed because it looks stale": {"reclaim": "stale"},
    "row reclaimed because its lock looks free": {"reclaim": "ask"},
    "scanned before publishing": {"scan": "before"},
    "latest stored relaxed, stores in any order": {"latest_release": False, "memory": "pso"},
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_mutant_is_torn(mutant: str) -> None:
    assert_broken(Channel(**(ONE | MUTANTS[mutant])), "and would read")


def test_mutant_keeping_only_the_new_bit_tears_the_older_snapshot() -> None:
    assert_broken(Channel(**OLDER, keeps_older=False), "holds version 1")


def test_mutant_loading_the_help_word_last_is_torn() -> None:
    """A reader moves its hold from the help word to the held word: to load them in that order misses it."""
    assert_broken(Channel(readers=1, slots=3, fallback="help", help_first=False), "and would read")


def test_mutant_asking_for_help_before_the_bit_is_cleared_holds_one_slot_too_many() -> None:
    channel = Channel(readers=1, slots=3, fallback="help", memory="pso", ask_release=False)
    assert_broken(channel, "the writer waits")


def test_mutant_new_reader_that_does_not_zero_its_row_holds_what_the_dead_one_held() -> None:
    assert_broken(Channel(readers=1, slots=3, fallback="help", attach_zeroes=False), "the writer waits")


def test_mutant_without_fallback_has_no_bound() -> None:
    assert_broken(Channel(**ONE, fallback="none", tries=3), "its pin is not bounded")


# --- what turned out to be harmless -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(
            {"reader_fence": False, "writer_fence": False, "settle_fence": False, "memory": "sc"},
            id="no fence, but no store buffer either",
        ),
        pytest.param({"latest_release": False}, id="latest stored relaxed, but on x86"),
        pytest.param({"scan": "before, sparing both"}, id="scanned early, sparing the old latest too"),
    ],
)
def test_harmless(options: dict[str, Any]) -> None:
    """So the fences are there for store buffers alone, and the model does not call everything broken."""
    assert_safe(Channel(**(OLDER | options)))


# --- soak ---------------------------------------------------------------------------------------------------


@pytest.mark.soak
@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"never_waits": False, "memory": "pso"}, id="two readers, pso"),
        pytest.param({"fallback": "help", "tries": 0, "bound": 4}, id="two readers, help"),
        pytest.param(
            {"readers": 1, "held": 3, "slots": 5, "tries": 2, "fallback": "help", "memory": "pso"},
            id="three held, help, pso",
        ),
        pytest.param({"never_waits": False, "slots": 5, "kills": 0, "tries": 2}, id="two readers, 5 slots"),
    ],
)
def test_bigger(options: dict[str, Any]) -> None:
    assert_safe(Channel(**options))
