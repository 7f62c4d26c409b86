"""A small explicit-state model checker.

A model is a set of processes over shared state. It names, for a state, every step that any process can take
next; the explorer visits every state that any order of steps can reach, breadth first, and asks the model
of each one whether it breaks a promise. So the first counterexample found is also a shortest one.

    model.steps(state) -> (label, next state, whether it is a fault)
          |
    explore: frontier -> skip seen key(state) -> check broken(state) -> next frontier
          |
    Result: number of states, or a Counterexample: the labels, and the changes of each step

Faults (a kill, a worker given up) may happen, but nothing may depend on their happening: a state that only a
fault can leave is a deadlock, and progress is judged on the other steps alone.
"""

from __future__ import annotations

import contextlib
import gc
import time
from array import array
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

S = TypeVar("S")


class Model(Protocol[S]):
    """The interface of a model. States are immutable; `steps` is deterministic."""

    def initial(self) -> S: ...

    def steps(self, state: S) -> Iterable[tuple[str, S, bool]]:
        """Every (label, next state, is a fault) that one process can do next."""

    def key(self, state: S) -> Hashable:
        """Return a key that is equal only for states with the same future. A finer key is correct, but slower."""

    def broken(self, state: S) -> str | None:
        """Say which promise this state breaks."""

    def finished(self, state: S) -> bool:
        """Return whether the state is a proper end, in which no process has a step left."""

    def show(self, state: S) -> dict[str, str]:
        """Name the parts of a state, for a trace."""


@dataclass(frozen=True)
class Counterexample:
    """The shortest way to break a promise."""

    reason: str
    labels: list[str]
    views: list[dict[str, str]]

    def __str__(self) -> str:
        before = self.views[0]
        lines = ["   0. start", *(f"        {name:<10} {value}" for name, value in before.items())]
        for number, (label, view) in enumerate(zip(self.labels, self.views[1:], strict=True), start=1):
            lines.append(f"{number:4}. {label}")
            lines += [f"        {n:<10} {v}" for n, v in view.items() if before.get(n) != v]
            before = view
        return "\n".join([*lines, f"BROKEN: {self.reason}"])


@dataclass(frozen=True)
class Result:
    """The result of one exploration."""

    states: int
    steps: int
    depth: int
    seconds: float
    counterexample: Counterexample | None

    def __str__(self) -> str:
        verdict = "no promise broken" if self.counterexample is None else self.counterexample.reason
        size = f"{self.states} states, {self.steps} steps, depth {self.depth}"
        return f"{size}, {self.seconds:.1f} s: {verdict}"


class _Search(Generic[S]):
    """The states seen so far, by number, and how each was first reached."""

    def __init__(self, model: Model[S]) -> None:
        self.model = model
        self.number: dict[Hashable, int] = {}
        self.parent = array("q")
        self.choice = array("H")  # the parent's how-manieth step led here

    def add(self, key: Hashable, parent: int, choice: int) -> int:
        number = self.number[key] = len(self.number)
        self.parent.append(parent)
        self.choice.append(choice)
        return number

    def trace(self, number: int, reason: str) -> Counterexample:
        """Replay the choices from the start: states themselves are not kept."""
        choices = []
        while number:
            choices.append(self.choice[number])
            number = self.parent[number]
        state = self.model.initial()
        labels, views = [], [self.model.show(state)]
        for choice in reversed(choices):
            label, state, _ = list(self.model.steps(state))[choice]
            labels.append(label)
            views.append(self.model.show(state))
        return Counterexample(reason, labels, views)


@contextlib.contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """States have no cycles; looking for some takes a sixth of the time."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@_no_garbage_collection()
def explore(
    model: Model[S],
    *,
    limit: int = 5_000_000,
    ends: bool = False,
    goal: Callable[[S], bool] | None = None,
) -> Result:
    """Visit every reachable state, or stop at the first broken promise.

    ends: also demand that every run without further faults comes to an end (no cycle; deadlocks are always
    looked for). goal: also demand that from every state, without further faults, some state is reachable in
    which `goal` holds. More than `limit` states is an error: a bounded search would prove nothing.
    """
    begin = time.perf_counter()
    search = _Search(model)
    state = model.initial()
    search.add(model.key(state), 0, 0)
    frontier = [(0, state)]
    graph = _Graph() if ends or goal else None
    steps = depth = 0

    def result(number: int | None = None, reason: str = "") -> Result:
        counterexample = None if number is None else search.trace(number, reason)
        return Result(len(search.number), steps, depth, time.perf_counter() - begin, counterexample)

    if reason := model.broken(state):
        return result(0, reason)
    while frontier:
        ahead: list[tuple[int, S]] = []
        for number, state in frontier:
            stuck = True
            for choice, (_, after, fault) in enumerate(model.steps(state)):
                steps += 1
                key = model.key(after)
                seen = search.number.get(key)
                if seen is None:
                    seen = search.add(key, number, choice)
                    if reason := model.broken(after):
                        return result(seen, reason)
                    ahead.append((seen, after))
                if not fault:
                    stuck = False
                    if graph is not None:
                        graph.edge(number, seen)
            if stuck and not model.finished(state):
                return result(number, "deadlock: nobody can take a step, and the work is not done")
            if graph is not None and goal is not None and goal(state):
                graph.goals.append(number)
        if len(search.number) > limit:
            raise RuntimeError(f"more than {limit} states: make the model smaller, or raise the limit")
        depth += bool(ahead)
        frontier = ahead
    if graph is not None:
        if ends and (cycle := graph.on_a_cycle(len(search.number))) is not None:
            return result(cycle, "a run without faults need not end: from here it can come back to here")
        if goal is not None and (lost := graph.cannot_reach_goal(len(search.number))) is not None:
            return result(lost, "no progress: without another fault the goal cannot be reached from here")
    return result()


class _Graph:
    """The steps that are not faults, kept where progress has to be judged."""

    def __init__(self) -> None:
        self.source = array("L")
        self.target = array("L")
        self.goals: list[int] = []

    def edge(self, source: int, target: int) -> None:
        self.source.append(source)
        self.target.append(target)

    def _into(self, count: int) -> list[list[int]]:
        into: list[list[int]] = [[] for _ in range(count)]
        for source, target in zip(self.source, self.target, strict=True):
            into[target].append(source)
        return into

    def on_a_cycle(self, count: int) -> int | None:
        """Peel off states all of whose steps lead to peeled states; the remaining states can loop for ever."""
        into = self._into(count)
        left = array("L", bytes(array("L").itemsize * count))
        for source in self.source:
            left[source] += 1
        peel = [number for number in range(count) if not left[number]]
        for target in peel:
            for source in into[target]:
                left[source] -= 1
                if not left[source]:
                    peel.append(source)
        resist = set(range(count)) - set(peel)
        if not resist:
            return None
        onward = {a: b for a, b in zip(self.source, self.target, strict=True) if a in resist and b in resist}
        walked: set[int] = set()
        here = min(resist)
        while here not in walked:
            walked.add(here)
            here = onward[here]
        return here

    def cannot_reach_goal(self, count: int) -> int | None:
        """Walk backwards from the goals; the first state never met is lost."""
        into = self._into(count)
        met = set(self.goals)
        todo = list(met)
        while todo:
            for source in into[todo.pop()]:
                if source not in met:
                    met.add(source)
                    todo.append(source)
        return None if len(met) == count else min(set(range(count)) - met)
