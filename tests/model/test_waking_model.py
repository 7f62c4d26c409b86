"""No wake is lost, in every state that any order of steps and kills can reach."""

from __future__ import annotations

import pytest
from explorer import Result, explore
from waking_model import Waking


def check(waking: Waking) -> Result:
    result = explore(waking, ends=True)
    print(f"\n{waking}\n{result}")
    if result.counterexample is not None:
        print(result.counterexample)
    return result


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, id="two sleepers"),
        pytest.param({"sleepers": 1, "changes": 4}, id="many changes"),
        pytest.param({"sleepers": 2, "wakers": 2, "changes": 1}, id="two wakers"),
        pytest.param({"sleepers": 1, "wakers": 2, "changes": 2}, id="two wakers, two changes"),
        pytest.param({"kills": 1}, id="a kill"),
        pytest.param({"wakers": 2, "changes": 2, "kills": 1}, id="more of all", marks=pytest.mark.soak),
    ],
)
def test_everybody_sees_the_last_change(options):
    result = check(Waking(**options))
    assert result.counterexample is None, f"\n{result.counterexample}"


def test_mutant_a_flag_that_wakers_clear():
    """A waker that is late clears the flag of a sleeper that knows its change already, and wakes before it sleeps."""
    result = check(Waking(sleepers=1, is_flag=True))
    assert result.counterexample is not None
    assert "deadlock" in result.counterexample.reason


def test_mutant_no_second_look():
    result = check(Waking(sleepers=1, changes=1, looks=False))
    assert result.counterexample is not None
    assert "deadlock" in result.counterexample.reason
