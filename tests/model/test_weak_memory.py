"""The channel under C11's memory, where loads are satisfied early too; and which of its orders it needs.

Each acquire, release, fence and look of the code is taken away, one at a time. Where that does harm the checker must
find it; where it does none here, the reason is given, and the code keeps the order all the same.
`pytest -s` prints the number of states, and each counterexample.
"""

from __future__ import annotations

from typing import Any

import pytest
from explorer import Result, explore
from weak_channel import ORDERS, STEPS, Channel
from weak_memory import ACQUIRE, BOTH, RELAXED, RELEASE, Machine, Thread


def check(kind: str, **options: Any) -> Result:
    result = explore(getattr(Channel(**options), kind)())
    print(f"\n{kind} {options}\n{result}")
    if result.counterexample is not None:
        print(result.counterexample)
    return result


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        pytest.param("pin", {}, id="two versions"),
        pytest.param("pin", {"versions": 3, "tries": 0}, id="all bits"),
        pytest.param("pin", {"readers": 2, "versions": 1}, id="two readers"),
        pytest.param("fork", {}, id="fork"),
        pytest.param("fork", {"slots": 2}, id="fork, two slots"),
        pytest.param("grow", {}, id="slots that move"),
        pytest.param("grow", {"versions": 3, "tries": 0}, id="slots that move, all bits"),
        pytest.param("wait", {"versions": 3}, id="a sleeper"),
        *(
            pytest.param(kind, options, marks=pytest.mark.soak)
            for kind, options in [
                ("pin", {"versions": 3}),
                ("pin", {"pins": 2}),
                ("pin", {"readers": 2, "tries": 0}),
                ("pin", {"versions": 4}),
                ("pin", {"versions": 3, "tries": 2}),
                ("grow", {"versions": 4}),
                ("grow", {"versions": 3, "slots": 4}),
                ("fork", {"versions": 4, "slots": 4}),
                ("wait", {"readers": 2}),
            ]
        ),
    ],
)
def test_the_code_is_safe(kind: str, options: dict[str, Any]) -> None:
    result = check(kind, **options)
    assert result.counterexample is None, f"\n{result.counterexample}"


#: taken away, on that machine, with that configuration, this goes wrong
NEEDED = {
    ("pin", "latest, load"): ({}, "of its version"),
    ("pin", "latest, store"): ({}, "of its version"),
    ("pin", "held, clear"): ({}, "of its version"),
    ("pin", "fence of the pin"): ({}, "of its version"),
    ("pin", "fence of all bits"): ({"tries": 0}, "of its version"),
    ("pin", "second look at latest"): ({}, "of its version"),
    ("pin", "fence of the scan"): ({}, "of its version"),
    ("fork", "held, clear"): ({}, "child reads 3"),
    ("fork", "held, scan"): ({}, "child reads 3"),
    ("fork", "handoffs, first load"): ({}, "child reads 3"),
    ("fork", "handoffs, add"): ({}, "child reads 3"),
    ("fork", "handoffs"): ({}, "child reads 3"),
    ("fork", "second look at handoffs"): ({}, "child reads 3"),
    ("grow", "latest, load"): ({}, "no space"),
    ("grow", "latest, store"): ({}, "no space"),
    ("grow", "held, clear"): ({}, "reads 0"),  # the hole that was punched
    ("grow", "fence of the pin"): ({}, "no space"),
    ("grow", "fence of the scan"): ({}, "no space"),
    ("wait", "fence of the sleeper"): ({}, "deadlock"),
    ("wait", "second look of the sleeper"): ({}, "deadlock"),
    ("wait", "fence of the waker"): ({}, "deadlock"),
}

#: harmless here, and why the code has it
KEPT = {
    ("pin", "held, set"): "it says also what another thread of this process let go before; here there is one thread",
    ("pin", "high, raise"): "the fence of the pin comes after it",
    ("pin", "high, load"): "the fence of the scan comes before it",
    ("fork", "held, set"): "the hand-off is counted after it, with release",
    ("fork", "handoffs, second load"): "nothing that comes after it depends on it alone",
    ("grow", "extent, store"): "latest is stored after it, with release",
    ("grow", "extent, load"): "latest was loaded before it, with acquire",
    ("wait", "sleepers, swap"): "a fence follows it, and one comes before it",
    ("wait", "latest, store"): "whether a wake is lost depends on the fences; the version is another machine's",
}


@pytest.mark.parametrize(("kind", "name"), NEEDED)
def test_mutant_without(kind: str, name: str) -> None:
    options, harm = NEEDED[kind, name]
    result = check(kind, weaker=frozenset({name}), **options)
    assert result.counterexample is not None, f"the machine did not find the harm of {kind} without: {name}"
    assert harm in result.counterexample.reason


@pytest.mark.parametrize(("kind", "name"), KEPT)
def test_harmless_here_without(kind: str, name: str) -> None:
    result = check(kind, weaker=frozenset({name}))
    assert result.counterexample is None, f"it is needed: move it to NEEDED\n{result.counterexample}"


def test_each_order_of_the_code_is_taken_away() -> None:
    assert {name for _, name in [*NEEDED, *KEPT]} == {*ORDERS, *STEPS}


# -- the machine itself: behaviour that C11 allows or forbids


def _outcomes(machine: Machine) -> set[tuple[Any, ...]]:
    """The registers of all threads, at all ends."""
    ends = set()

    def broken(state: Any) -> None:
        if machine.finished(state):
            ends.add(tuple(dict(running.registers).get("r") for running in state.threads))

    machine.broken = broken  # type: ignore[method-assign]
    explore(machine)
    return ends


def _store_then_load(mine: str, other: str, *, fence: bool) -> Thread:
    me = Thread(f"stores {mine}")
    me.store(mine, 1, RELEASE)
    if fence:
        me.fence()
    me.load("r", other, ACQUIRE)
    return me


def test_store_buffering() -> None:
    """Two that store, and then look at the other's word: only with fences one of them sees it."""
    words = {"x": 0, "y": 0}
    for fence in (False, True):
        threads = [_store_then_load("x", "y", fence=fence), _store_then_load("y", "x", fence=fence)]
        assert ((0, 0) in _outcomes(Machine(words, threads))) == (not fence)


@pytest.mark.parametrize("store", [RELAXED, RELEASE])
@pytest.mark.parametrize("load", [RELAXED, ACQUIRE])
def test_message_passing(store: str, load: str) -> None:
    """A reader that sees the flag sees the data, if the store releases and the load acquires."""
    writer, reader = Thread("writer"), Thread("reader")
    writer.store("data", 1, RELAXED)
    writer.store("flag", 1, store)
    reader.load("flag", "flag", load)
    reader.load("r", "data", RELAXED)
    reader.let("r", lambda r: (r["flag"], r["r"]))
    late = (None, (1, 0)) in _outcomes(Machine({"data": 0, "flag": 0}, [writer, reader]))
    assert late == ((store, load) != (RELEASE, ACQUIRE))


def test_one_word_is_never_read_backwards() -> None:
    writer, reader = Thread("writer"), Thread("reader")
    for value in (1, 2):
        writer.store("x", value, RELAXED)
    reader.load("first", "x", RELAXED)
    reader.load("second", "x", RELAXED)
    reader.let("r", lambda r: (r["first"], r["second"]))
    seen = {pair for _, pair in _outcomes(Machine({"x": 0}, [writer, reader]))}
    assert seen == {(0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 2)}


def test_updates_lose_nothing() -> None:
    threads = []
    for number in range(3):
        me = Thread(f"adds {number}")
        me.update("r", "x", lambda value, _: value + 1, RELAXED)
        threads.append(me)
    assert {tuple(sorted(found)) for found in _outcomes(Machine({"x": 0}, threads))} == {(0, 1, 2)}


def test_a_release_goes_on_through_an_update() -> None:
    """A thread that reads the update sees what came before the release that the update read."""
    writer, adder, reader = Thread("writer"), Thread("adder"), Thread("reader")
    writer.store("data", 1, RELAXED)
    writer.store("flag", 1, RELEASE)
    adder.update("_", "flag", lambda value, _: value + 1 if value else None, RELAXED)
    reader.load("flag", "flag", ACQUIRE)
    reader.load("r", "data", RELAXED)
    reader.let("r", lambda r: (r["flag"], r["r"]))
    assert (None, None, (2, 0)) not in _outcomes(Machine({"data": 0, "flag": 0}, [writer, adder, reader]))


def test_readers_may_disagree_about_two_words() -> None:
    """Two that store, two that load both in opposite order: without fences each may see only one."""
    for fence in (False, True):
        threads = []
        for word in ("x", "y"):
            me = Thread(f"stores {word}")
            me.store(word, 1, RELEASE)
            threads.append(me)
        for first, second in (("x", "y"), ("y", "x")):
            me = Thread(f"loads {first}")
            me.load("first", first, ACQUIRE)
            if fence:
                me.fence()
            me.load("second", second, ACQUIRE)
            me.let("r", lambda r: (r["first"], r["second"]))
            threads.append(me)
        outcomes = _outcomes(Machine({"x": 0, "y": 0}, threads))
        assert ((None, None, (1, 0), (1, 0)) in outcomes) == (not fence)


@pytest.mark.parametrize("order", [RELAXED, RELEASE, BOTH])
def test_a_read_may_come_after_a_relaxed_store(order: str) -> None:
    """It has to be over before a release: the word may be written again afterwards."""
    reader, writer = Thread("reader"), Thread("writer")
    reader.check("data", 0, "data")
    reader.store("free", 1, order)
    writer.load("free", "free", ACQUIRE)
    writer.jump("end", lambda r: not r["free"])
    writer.store("data", 1, RELAXED)
    writer.label("end")
    result = explore(Machine({"data": 0, "free": 0}, [reader, writer]))
    assert (result.counterexample is not None) == (order == RELAXED)
