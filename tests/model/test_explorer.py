"""The checker itself, on toys whose answers are known."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from explorer import explore


@dataclass(frozen=True)
class Toy:
    """States are letters; `edges` maps each to its successors, an upper-case one being a fault."""

    edges: dict[str, str]
    done: str = ""
    bad: str = ""

    def initial(self) -> str:
        return "a"

    def steps(self, state: str) -> Iterator[tuple[str, str, bool]]:
        for after in self.edges.get(state, ""):
            yield f"{state} to {after}", after.lower(), after.isupper()

    def key(self, state: str) -> str:
        return state

    def broken(self, state: str) -> str | None:
        return f"{state} is bad" if state in self.bad else None

    def finished(self, state: str) -> bool:
        return state in self.done

    def show(self, state: str) -> dict[str, str]:
        return {"state": state}


def reason(toy: Toy, **options: object) -> str:
    result = explore(toy, **options)  # type: ignore[arg-type]
    return "" if result.counterexample is None else result.counterexample.reason


def test_a_shortest_way_is_found_and_printed() -> None:
    result = explore(Toy({"a": "bd", "b": "c", "c": "e", "d": "e"}, bad="e"))
    assert result.counterexample is not None
    assert result.counterexample.labels == ["a to d", "d to e"]
    assert str(result.counterexample).splitlines()[-3:] == [
        "   2. d to e",
        "        state      e",
        "BROKEN: e is bad",
    ]


def test_a_state_that_only_a_fault_can_leave_is_a_deadlock() -> None:
    assert "deadlock" in reason(Toy({"a": "B"}, done="b"))
    assert reason(Toy({"a": "b"}, done="b")) == ""


def test_a_run_that_need_not_end_is_found() -> None:
    toy = Toy({"a": "b", "b": "cd", "c": "b"}, done="d")
    assert reason(toy) == ""
    assert "need not end" in reason(toy, ends=True)
    assert reason(Toy({"a": "b", "b": "Ad"}, done="d"), ends=True) == ""  # only a fault goes back


def test_a_state_from_which_the_goal_is_lost_is_found() -> None:
    toy = Toy({"a": "bc", "b": "b", "c": "c"})
    assert "no progress" in reason(toy, goal=lambda state: state == "c")
    assert reason(Toy({"a": "b", "b": "a"}), goal=lambda state: state == "a") == ""


def test_a_search_cut_short_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="more than 1 states"):
        explore(Toy({"a": "b", "b": "c"}, done="c"), limit=1)
