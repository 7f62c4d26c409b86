"""A machine with the memory of C11, for programs that are small enough to be run in every possible way.

The models beside this one have store buffers: their loads come in order and read what memory has. Processors such as
aarch64, and compilers, do more: a load may be satisfied early, and then reads what memory had before, although a load
of another word that came first has read something new. This machine allows what C11 allows, but for values out of thin
air and stores before loads (see `check` for the loads that may come late all the same)::

    memory     each word is the list of all its stores, in the order of its modification; a store carries a view
    a view     says of each word up to which of its stores its owner has seen, or must see
    load       reads any store that its thread's view allows: an old one, if nothing forbids it
               acquire: and takes over that store's view
    store      relaxed carries nothing, or what the last fence left; release: all that its thread has seen
    fence      full: takes over what all full fences before it have seen, and leaves that to those after it

It is the machine of Kang, Hur, Lahav, Vafeiadis and Dreyer, "A Promising Semantics for Relaxed-Memory Concurrency"
(POPL 2017), without the promises. Stores to one word come in the order in which they are executed.

A thread is a list of steps, written with `Thread`. Where a step takes a word or a value it may take a function of the
thread's registers. `explorer.explore` runs all threads in every order, with every store that a load can read.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

View: TypeAlias = tuple[int, ...]
Registers: TypeAlias = dict[str, Any]

RELAXED, ACQUIRE, RELEASE, BOTH = "relaxed", "acquire", "release", "acquire and release"


class Message(NamedTuple):
    """One store."""

    value: Any
    view: View


class Running(NamedTuple):
    """A thread: the number of its next step, registers by name, and its views.

    `seen`: a lower bound for its loads. `loaded`: the same with the views of relaxed loads, which a fence takes over.
    `left`: the view that a relaxed store carries since the last fence. `reads`: words of memory that it is reading:
    (word, the first store that it may see, the value that is right, a description).
    """

    at: int
    registers: tuple[tuple[str, Any], ...]
    seen: View
    loaded: View
    left: View
    reads: tuple[tuple[int, int, Any, str], ...] = ()
    asleep: bool = False


class State(NamedTuple):
    """Memory, what full fences have seen, and everybody."""

    memory: tuple[tuple[Message, ...], ...]
    fenced: View
    threads: tuple[Running, ...]
    note: str = ""


@dataclass
class Thread:
    """A program. Each method adds a step; `label` names the next one."""

    name: str
    steps: list[tuple[Any, ...]] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)

    def label(self, name: str) -> None:
        self.labels[name] = len(self.steps)

    def load(self, register: str, word: Any, order: str) -> None:
        self.steps.append(("load", register, word, order))

    def store(self, word: Any, value: Any, order: str) -> None:
        self.steps.append(("store", word, value, order))

    def update(self, register: str, word: Any, change: Callable[[Any, Registers], Any], order: str) -> None:
        """Replace the newest value by `change` of it, in one step, unless that is None; the register gets the value
        before."""
        self.steps.append(("update", register, word, change, order))

    def fence(self) -> None:
        self.steps.append(("fence",))

    def check(self, word: Any, value: Any, what: str) -> None:
        """Read plain memory from here on; seeing another value than `value` is the harm that is searched for. The reads
        may be made as late as the next release store or fence of this thread: a processor may do that."""
        self.steps.append(("check", word, value, what))

    def let(self, register: str, value: Any) -> None:
        self.steps.append(("let", register, value))

    def choose(self, register: str, options: Callable[[Registers], list[Any]]) -> None:
        """Continue with each of them."""
        self.steps.append(("choose", register, options))

    def jump(self, label: str, condition: Callable[[Registers], bool] = lambda _: True) -> None:
        self.steps.append(("jump", label, condition))

    def sleep(self, word: Any, value: Any) -> None:
        """Fall asleep, as in the kernel, if the newest value is this one, in one step."""
        self.steps.append(("sleep", word, value))

    def wake(self) -> None:
        """Wake who is asleep."""
        self.steps.append(("wake",))

    def fail(self, what: str) -> None:
        """It is a harm to come here."""
        self.steps.append(("fail", what))


_LOCAL = ("let", "jump", "check", "fail")


@dataclass
class Machine:
    """Threads over words with first values; a model for `explorer.explore`."""

    words: dict[str, Any]
    threads: list[Thread]

    def __post_init__(self) -> None:
        self._number = {name: number for number, name in enumerate(self.words)}

    # -- the model

    def initial(self) -> State:
        nothing = (0,) * len(self.words)
        memory = tuple((Message(value, nothing),) for value in self.words.values())
        state = State(memory, nothing, tuple(Running(0, (), nothing, nothing, nothing) for _ in self.threads))
        for index in range(len(self.threads)):
            state = self._local(state, index)
        return state

    def steps(self, state: State) -> Iterator[tuple[str, State, bool]]:
        for index, running in enumerate(state.threads):
            if running.asleep or running.at >= len(self.threads[index].steps):
                continue
            step = self.threads[index].steps[running.at]
            for label, after in getattr(self, f"_{step[0]}")(state, index, running, *step[1:]):
                yield f"{self.threads[index].name} {label}", self._local(after, index), False

    def key(self, state: State) -> Hashable:
        return state

    def broken(self, state: State) -> str | None:
        if state.note:
            return state.note
        for thread, running in zip(self.threads, state.threads, strict=True):
            for word, first, right, what in running.reads:
                for message in state.memory[word][first:]:
                    if message.value != right:
                        return f"{thread.name} reads {message.value} as {what}, expected {right}"
        return None

    def finished(self, state: State) -> bool:
        return all(running.at >= len(thread.steps) for thread, running in zip(self.threads, state.threads, strict=True))

    def show(self, state: State) -> dict[str, str]:
        parts = {name: " ".join(str(m.value) for m in state.memory[n]) for name, n in self._number.items()}
        for thread, running in zip(self.threads, state.threads, strict=True):
            seen = ", ".join(f"{name} {running.seen[n]}" for name, n in self._number.items() if running.seen[n])
            registers = ", ".join(f"{name}={value}" for name, value in running.registers)
            parts[thread.name] = f"step {running.at}, {registers or '-'}; has seen {seen or 'nothing'}"
        return parts

    # -- steps. Each yields (label, state)

    def _load(self, state: State, index: int, me: Running, register: str, word: Any, order: str) -> Any:
        number = self._word(me, word)
        messages = state.memory[number]
        for at in range(me.seen[number], len(messages)):
            value, view = messages[at]
            seen = _with(me.seen, number, at)
            loaded = _join(_with(me.loaded, number, max(at, me.loaded[number])), view)
            if order == ACQUIRE:
                seen = _join(seen, view)
            after = me._replace(at=me.at + 1, seen=seen, loaded=loaded, registers=_set(me, register, value))
            old = "" if at == len(messages) - 1 else " (an old value)"
            yield f"loads {self._name(number)} = {value}{old}", _replaced(state, index, after)

    def _store(self, state: State, index: int, me: Running, word: Any, value: Any, order: str) -> Any:
        number, value = self._word(me, word), _value(me, value)
        yield f"stores {self._name(number)} = {value}", self._stored(state, index, me, number, value, order, me.left)

    def _update(self, state: State, index: int, me: Running, register: str, word: Any, change: Any, order: str) -> Any:
        number = self._word(me, word)
        at = len(state.memory[number]) - 1
        value, view = state.memory[number][at]
        new = change(value, dict(me.registers))
        loaded = _join(_with(me.loaded, number, at), view)
        seen = _with(me.seen, number, at)
        if order in (ACQUIRE, BOTH):
            seen = _join(seen, view)
        me = me._replace(seen=seen, loaded=loaded, registers=_set(me, register, value))
        if new is None:
            yield f"finds {self._name(number)} = {value}", _replaced(state, index, me._replace(at=me.at + 1))
        else:
            label = f"makes {self._name(number)} {value} -> {new}"
            yield label, self._stored(state, index, me, number, new, order, _join(me.left, view))

    def _stored(
        self, state: State, index: int, me: Running, number: int, value: Any, order: str, carried: View
    ) -> State:
        at = len(state.memory[number])
        seen = _with(me.seen, number, at)
        loaded = _with(me.loaded, number, at)
        releases = order in (RELEASE, BOTH)
        view = _join(seen, carried) if releases else _with(carried, number, at)
        memory = _with(state.memory, number, (*state.memory[number], Message(value, view)))
        after = me._replace(at=me.at + 1, seen=seen, loaded=loaded, reads=() if releases else me.reads)
        return _replaced(state._replace(memory=memory), index, after)

    def _fence(self, state: State, index: int, me: Running) -> Any:
        seen = _join(_join(me.seen, me.loaded), state.fenced)
        after = me._replace(at=me.at + 1, seen=seen, loaded=seen, left=seen, reads=())
        yield "fences", _replaced(state._replace(fenced=seen), index, after)

    def _choose(self, state: State, index: int, me: Running, register: str, options: Any) -> Any:
        for option in options(dict(me.registers)):
            after = me._replace(at=me.at + 1, registers=_set(me, register, option))
            yield f"chooses {register} = {option}", _replaced(state, index, after)

    def _sleep(self, state: State, index: int, me: Running, word: Any, value: Any) -> Any:
        number = self._word(me, word)
        asleep = state.memory[number][-1].value == _value(me, value)
        label = "falls asleep" if asleep else "is sent back by the kernel"
        yield label, _replaced(state, index, me._replace(at=me.at + 1, asleep=asleep))

    def _wake(self, state: State, index: int, me: Running) -> Any:
        threads = [each._replace(asleep=False) for each in state.threads]
        threads[index] = me._replace(at=me.at + 1)
        state = state._replace(threads=tuple(threads))
        for other in range(len(threads)):
            state = self._local(state, other)
        yield "wakes all", state

    # -- what others cannot see is done at once

    def _local(self, state: State, index: int) -> State:
        thread, me, note = self.threads[index], state.threads[index], state.note
        while not me.asleep and me.at < len(thread.steps) and thread.steps[me.at][0] in _LOCAL:
            kind, *args = thread.steps[me.at]
            at = me.at + 1
            if kind == "let":
                me = me._replace(registers=_set(me, args[0], _value(me, args[1])))
            elif kind == "check":
                number = self._word(me, args[0])
                me = me._replace(reads=(*me.reads, (number, me.seen[number], _value(me, args[1]), args[2])))
            elif kind == "fail":
                note, at = f"{thread.name}: {args[0]}", len(thread.steps)
            elif args[1](dict(me.registers)):
                at = thread.labels[args[0]]
            me = me._replace(at=at)
        return _replaced(state._replace(note=note), index, me)

    def _word(self, me: Running, word: Any) -> int:
        return self._number[_value(me, word)]

    def _name(self, number: int) -> str:
        return next(name for name, each in self._number.items() if each == number)


def _value(me: Running, value: Any) -> Any:
    return value(dict(me.registers)) if callable(value) else value


def _set(me: Running, register: str, value: Any) -> tuple[tuple[str, Any], ...]:
    return tuple(sorted({**dict(me.registers), register: value}.items()))


def _with(items: tuple[Any, ...], index: int, item: Any) -> tuple[Any, ...]:
    return (*items[:index], item, *items[index + 1 :])


def _join(one: View, other: View) -> View:
    return one if one == other else tuple(map(max, one, other))


def _replaced(state: State, index: int, running: Running) -> State:
    return state._replace(threads=_with(state.threads, index, running))
