"""Sleeping and waking (`csrc/futex.h`) as a model, which shows that no wake is lost.

    sleeper   load the word; announce: make `sleepers` odd (a compare-and-swap), that is its ticket; look at the word
              again; sleep, if `sleepers` still is the ticket: the kernel looks and sleeps in one step
    waker     change the word; load `sleepers`; odd: add 1 to it (a compare-and-swap); wake all who are asleep

Sequential consistency: the two fences are there for that. A sleeper that has seen the last change is finished. Any
sleeper may be killed at any step. A lost wake shows as a deadlock: nothing left to do, and somebody asleep.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

LOAD, ANNOUNCE, LOOK, WAIT, ASLEEP, DONE = "load", "announce", "look", "wait", "asleep", "done"
CHANGE, CHECK, ADD, WAKE = "change", "check", "add", "wake"


class Sleeper(NamedTuple):
    """The registers of a process."""

    pc: str = LOAD
    seen: int = 0
    ticket: int = 0


class Waker(NamedTuple):
    """`left`: changes that it will make."""

    left: int
    pc: str = CHANGE
    ticket: int = 0


class State(NamedTuple):
    """The two shared words, and everybody."""

    word: int
    sleepers: int
    asleep: tuple[Sleeper, ...]
    wakers: tuple[Waker, ...]
    kills: int


Step: TypeAlias = tuple[str, State, bool]


@dataclass(frozen=True, kw_only=True)
class Waking:
    """One configuration. `is_flag`, `looks`: the code, and its mutants."""

    sleepers: int = 2
    wakers: int = 1
    changes: int = 2
    kills: int = 0
    is_flag: bool = False  # `sleepers` is 0 or 1, wakers clear it, and the kernel compares the word
    looks: bool = True  # a sleeper looks at the word after it has announced itself

    def initial(self) -> State:
        return State(0, 0, (Sleeper(),) * self.sleepers, (Waker(self.changes),) * self.wakers, self.kills)

    def steps(self, state: State) -> Iterator[Step]:
        for index, sleeper in enumerate(state.asleep):
            for label, changed in self._sleep(state, sleeper):
                yield f"sleeper {index} {label}", _with_sleeper(changed[0], index, changed[1]), False
            if state.kills and sleeper.pc != DONE:
                killed = _with_sleeper(state._replace(kills=state.kills - 1), index, sleeper._replace(pc=DONE))
                yield f"sleeper {index} is killed", killed, True
        for index, waker in enumerate(state.wakers):
            for label, after, next_waker in self._wake(state, waker):
                wakers = (*state.wakers[:index], next_waker, *state.wakers[index + 1 :])
                yield f"waker {index} {label}", after._replace(wakers=wakers), False

    def _sleep(self, state: State, me: Sleeper) -> Iterator[tuple[str, tuple[State, Sleeper]]]:
        if me.pc == LOAD:
            pc = DONE if state.word == self.wakers * self.changes else ANNOUNCE
            yield f"sees {state.word}", (state, me._replace(pc=pc, seen=state.word))
        elif me.pc == ANNOUNCE:
            odd = state.sleepers | 1
            pc = LOOK if self.looks else WAIT
            yield f"announces itself: {odd}", (state._replace(sleepers=odd), me._replace(pc=pc, ticket=odd))
        elif me.pc == LOOK:
            yield "looks again", (state, me._replace(pc=LOAD if state.word != me.seen else WAIT))
        elif me.pc == WAIT:
            stands = state.word == me.seen if self.is_flag else state.sleepers == me.ticket
            yield "falls asleep" if stands else "is sent back", (state, me._replace(pc=ASLEEP if stands else LOAD))

    def _wake(self, state: State, me: Waker) -> Iterator[tuple[str, State, Waker]]:
        if me.pc == CHANGE and me.left:
            after = state._replace(word=state.word + 1)
            yield f"makes the word {after.word}", after, me._replace(pc=CHECK, left=me.left - 1)
        elif me.pc == CHECK:
            odd = state.sleepers % 2 == 1
            yield f"finds {state.sleepers}", state, me._replace(pc=ADD if odd else CHANGE, ticket=state.sleepers)
        elif me.pc == ADD:
            if self.is_flag:  # it has seen the flag, and takes it, even if another process set it
                pc = WAKE if state.sleepers else CHANGE
                yield "clears the flag", state._replace(sleepers=0), me._replace(pc=pc)
            elif state.sleepers == me.ticket:
                yield "adds 1", state._replace(sleepers=me.ticket + 1), me._replace(pc=WAKE)
            else:
                yield "is too late to add 1", state, me._replace(pc=CHECK)
        elif me.pc == WAKE:
            woken = tuple(each._replace(pc=LOAD) if each.pc == ASLEEP else each for each in state.asleep)
            yield "wakes all", state._replace(asleep=woken), me._replace(pc=CHANGE)

    def key(self, state: State) -> Hashable:
        return state

    def broken(self, state: State) -> str | None:
        return None

    def finished(self, state: State) -> bool:
        return all(each.pc == DONE for each in state.asleep) and all(not each.left for each in state.wakers)

    def show(self, state: State) -> dict[str, str]:
        parts = {"word": str(state.word), "sleepers": str(state.sleepers)}
        parts |= {f"sleeper {i}": str(each) for i, each in enumerate(state.asleep)}
        return parts | {f"waker {i}": str(each) for i, each in enumerate(state.wakers)}


def _with_sleeper(state: State, index: int, sleeper: Sleeper) -> State:
    return state._replace(asleep=(*state.asleep[:index], sleeper, *state.asleep[index + 1 :]))
