"""Waiting and waking at a queue's gate (`csrc/queue.c`, `futex_wake_one` in `csrc/futex.h`) as a model.

    waiter      load `events`; take what it wants, if there is some; announce: make `sleepers` odd, that is its ticket;
                look at `events` again; sleep, if `sleepers` still is the ticket (the kernel does both in one step)
    waker       put a thing there; add 1 to `events`; fence; load `sleepers`; odd: add 2 (a compare-and-swap), and wake
                one of those asleep; if nobody was: add 1 more, and wake all
    coroutine   a waiter whose thread sleeps for it: if it is woken and `events` has changed, it wakes another one, too
    slot        at the gate of producers some want a place in the ring, and some a slot. Who lacks a slot sets `eager`,
                fences and looks again. A waker for places looks at `eager` before and behind its wake; if it is set, it
                adds 1 to `events` and wakes all. A waker for slots fences, looks at `eager`, clears it and wakes all

How things get into the queue and out of it is `queue_model.py`'s; here both are one step. Stores to `events` and
`eager` may reach memory late, but before the next fence. Any process may be killed before any step. A signal handler
may end a waiter that was woken, and a coroutine may be cancelled at any time: they pass the wake on.

A lost wake shows as a deadlock: all are asleep, and one wants what is there. Waiters also look again after a time. That
may happen at any step, as a fault, so nothing may depend on it. Only a process that is killed behind its change and
before its wake, or woken and before it looked, owes a wake; then each waiter looks again once.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

PLACE, SLOT = 0, 1
LOAD, TAKE, WANT, AGAIN, ANNOUNCE, LOOK, SLEEP = "load", "take", "want", "again", "announce", "look", "sleep"
ASLEEP, WOKEN, OVER, DEAD = "asleep", "woken", "over", "dead"
PUT, EAGER_BEFORE, EVENT, EAGER_BEHIND, TOLD = "put", "eager before", "event", "eager behind", "told"
CHECK, ADD, WAKE, EVEN, REST = "check", "add", "wake", "even", "rest"


class Process(NamedTuple):
    """The registers of a waiter, or of a waker, which has changes `left`."""

    wants: int
    pc: str
    left: tuple[int, ...] = ()
    seen: int = 0
    ticket: int = 0
    all: bool = False  # it wakes all
    back: str = ""  # where to go on behind a wake
    coroutine: bool = False
    gone: bool = False  # the coroutine was cancelled
    rechecks: int = 0  # debts after which it has looked again
    stores: tuple[str, ...] = ()  # on their way to memory


class State(NamedTuple):
    """The gate, what is there, everybody, and what may still happen."""

    events: int
    sleepers: int
    eager: int
    there: tuple[int, int]
    processes: tuple[Process, ...]
    debts: int
    kills: int
    ends: int
    timeouts: int


Step: TypeAlias = tuple[str, State, bool]


@dataclass(frozen=True, kw_only=True)
class QueueWaking:
    """One configuration. `wakes_rest` to the end: the code, and its mutants."""

    waiters: tuple[int, ...] = (PLACE, PLACE)  # by waiter: what it wants
    coroutines: int = 0  # how many of the waiters are such
    wakers: tuple[tuple[int, ...], ...] = ((PLACE, PLACE),)  # by waker: what it puts there
    kills: int = 0
    ends: int = 0  # signal handlers that raise, and cancellations
    timeouts: int = 0
    comes_back: bool = False  # a waiter that took something wants more; otherwise it is busy from then on
    wakes_rest: bool = True
    fences: bool = True
    passes_on: bool = True
    passes_on_news_only: bool = True
    rechecks: bool = True
    looks_behind: bool = True
    adds: int = 2  # what a wake of one adds before
    waits_for_slots: bool = True  # some waiters may want slots, and wakers look at `eager`

    def initial(self) -> State:
        waiters = [Process(wants, LOAD, coroutine=i < self.coroutines) for i, wants in enumerate(self.waiters)]
        wakers = [Process(-1, PUT, left) for left in self.wakers]
        return State(0, 0, 0, (0, 0), (*waiters, *wakers), 0, self.kills, self.ends, self.timeouts)

    def steps(self, state: State) -> Iterator[Step]:
        """Yield the next steps of every process, stores that reach memory, and faults."""
        for me, process in enumerate(state.processes):
            name = f"{'waker' if process.wants < 0 else 'coroutine' if process.coroutine else 'waiter'} {me}"
            for store in process.stores[:1]:
                arrived = _put(state, me, process._replace(stores=process.stores[1:]))
                yield f"{name}'s store to {store} reaches memory", _stored(arrived, store), False
            if process.pc in (OVER, DEAD):
                continue
            step = getattr(self, "_" + process.pc.replace(" ", "_"))
            for label, after in step(state, me, process):
                yield f"{name} {label}", after, False
            yield from self._faults(state, me, process, name)

    def _faults(self, state: State, me: int, p: Process, name: str) -> Iterator[Step]:
        owes = p.pc not in (PUT, ASLEEP, ANNOUNCE, LOOK, SLEEP)
        if state.kills:
            dead = _put(state, me, p._replace(pc=DEAD))
            yield f"KILL {name} at '{p.pc}'", dead._replace(kills=state.kills - 1, debts=state.debts + owes), True
        if p.pc == ASLEEP and self.rechecks and p.rechecks < state.debts:
            yield f"{name} looks again", _put(state, me, p._replace(pc=LOAD, rechecks=state.debts)), False
        elif p.pc == ASLEEP and state.timeouts:
            after = _put(state, me, p._replace(pc=LOAD))
            yield f"{name} looks again early", after._replace(timeouts=state.timeouts - 1), True
        if not state.ends or p.wants < 0 or p.gone:
            return
        if p.coroutine:
            after = p._replace(gone=True) if p.pc in (ASLEEP, WOKEN) or p.back else p._replace(pc=OVER)
            yield f"{name} is cancelled", _put(state, me, after)._replace(ends=state.ends - 1), True
        elif p.pc in (ASLEEP, WOKEN):
            ended = self._passing(p, OVER) if self.passes_on else p._replace(pc=OVER)
            yield f"{name} is ended by a signal", _put(state, me, ended)._replace(ends=state.ends - 1), True

    # --- waiters

    def _load(self, state: State, me: int, p: Process) -> Iterator[tuple[str, State]]:
        yield f"loads events: {state.events}", _put(state, me, p._replace(pc=TAKE, seen=state.events))

    def _take(self, state: State, me: int, p: Process) -> Iterator[tuple[str, State]]:
        if state.there[p.wants]:
            yield self._took(state, me, p)
        else:
            yield "finds nothing", _put(state, me, p._replace(pc=WANT if p.wants == SLOT else ANNOUNCE))

    def _took(self, state: State, me: int, p: Process) -> tuple[str, State]:
        after = p._replace(pc=LOAD if self.comes_back else OVER)
        return "takes what it wants", _put(_with_there(state, p.wants, -1), me, after)

    def _want(self, state: State, me: int, p: Process) -> Iterator[tuple[str, State]]:
        yield "sets eager", _put(state, me, p._replace(pc=AGAIN, stores=("eager",)))

    def _again(self, state: State, me: int, p: Process) -> Iterator[tuple[str, State]]:
        if p.stores:
            return  # the fence
        if state.there[p.wants]:
            yield self._took(state, me, p)
        else:
            yield "finds nothing again", _put(state, me, p._replace(pc=ANNOUNCE))

    def _announce(self, state: State, me: int, p: Process) -> Iterator[tuple[str, State]]:
        odd = state.sleepers | 1
        yield f"announces itself: {odd}", _put(state._replace(sleepers=odd), me, p._replace(pc=LOOK, ticket=odd))

    def _look(self, state: State, me: int, p: Process) -> Iterator[tuple[str, State]]:
        after = p._replace(pc=SLEEP if state.events == p.seen else WOKEN)
        yield "looks at events again", _put(state, me, after)

    def _sleep(self, state: State, me: int, p: Process) -> Iterator[tuple[str, State]]:
        stands = state.sleepers == p.ticket
        yield (
            "falls asleep" if stands else "is sent back",
            _put(state, me, p._replace(pc=ASLEEP if stands else WOKEN)),
        )

    def _asleep(self, state: State, me: int, p: Process) -> Iterator[tuple[str, State]]:
        if p.gone:
            yield "is rung for, and leaves", _put(state, me, p._replace(pc=OVER))

    def _woken(self, state: State, me: int, p: Process) -> Iterator[tuple[str, State]]:
        news = state.events != p.seen
        if not p.coroutine:
            yield "is awake", _put(state, me, p._replace(pc=LOAD))
        elif self.passes_on and (news or not self.passes_on_news_only):
            yield "wakes another one", _put(state, me, self._passing(p, LOAD))
        else:
            yield "is awake", _put(state, me, p._replace(pc=OVER if p.gone else LOAD if news else ANNOUNCE))

    def _passing(self, p: Process, back: str) -> Process:
        return p._replace(pc=CHECK, all=False, back=back)

    # --- wakers

    def _put(self, state: State, me: int, p: Process) -> Iterator[tuple[str, State]]:
        if not p.left:
            return
        kind, rest = p.left[0], p.left[1:]
        pc = EVENT if not self.waits_for_slots else EAGER_BEFORE if kind == PLACE else TOLD
        name = "a slot" if kind == SLOT else "a place" if self.waits_for_slots else "an item"
        yield f"puts {name} there", _put(_with_there(state, kind, 1), me, p._replace(pc=pc, left=rest, all=False))

    def _eager_before(self, state: State, me: int, p: Process) -> Iterator[tuple[str, State]]:
        eager = bool(state.eager) and self.looks_behind
        yield f"loads eager: {state.eager}", _put(state, me, p._replace(pc=EVENT, all=eager))

    def _told(self, state: State, me: int, p: Process) -> Iterator[tuple[str, State]]:
        if not state.eager:
            yield "finds that nobody wants it", _put(state, me, p._replace(pc=PUT))
        else:
            after = p._replace(pc=EVENT, all=True)
            yield "clears eager", _put(state._replace(eager=0), me, after)

    def _event(self, state: State, me: int, p: Process) -> Iterator[tuple[str, State]]:
        behind = self.waits_for_slots and not p.all and self.looks_behind
        after = p._replace(pc=CHECK, stores=(*p.stores, "events"), back=EAGER_BEHIND if behind else PUT)
        yield "adds 1 to events", _put(state, me, after)

    def _eager_behind(self, state: State, me: int, p: Process) -> Iterator[tuple[str, State]]:
        after = p._replace(pc=EVENT, all=True, back="") if state.eager else p._replace(pc=PUT, back="")
        yield f"loads eager again: {state.eager}", _put(state, me, after)

    # --- a wake, by a waker or one that passes it on

    def _check(self, state: State, me: int, p: Process) -> Iterator[tuple[str, State]]:
        if p.stores and self.fences:
            return
        odd = state.sleepers % 2 == 1
        pc = ADD if p.all or self.adds else WAKE
        after = p._replace(pc=pc, ticket=state.sleepers) if odd else self._after_wake(p)
        yield f"finds {state.sleepers}", _put(state, me, after)

    def _add(self, state: State, me: int, p: Process) -> Iterator[tuple[str, State]]:
        number = p.ticket + (1 if p.all else self.adds)
        if state.sleepers == p.ticket:
            after = state._replace(sleepers=number)
            yield f"makes it {number}", _put(after, me, p._replace(pc=REST if p.all else WAKE, ticket=number))
        else:
            yield "is too late to change it", _put(state, me, p._replace(pc=CHECK))

    def _wake(self, state: State, me: int, p: Process) -> Iterator[tuple[str, State]]:
        asleep = [index for index, each in enumerate(state.processes) if each.pc == ASLEEP]
        for index in asleep:
            woken = _put(state, index, state.processes[index]._replace(pc=WOKEN))
            yield f"wakes {index}", _put(woken, me, self._after_wake(p))
        if not asleep:
            yield "finds nobody asleep", _put(state, me, p._replace(pc=EVEN))

    def _even(self, state: State, me: int, p: Process) -> Iterator[tuple[str, State]]:
        if state.sleepers == p.ticket:
            after = p._replace(pc=REST) if self.wakes_rest else self._after_wake(p)
            yield "adds 1 more", _put(state._replace(sleepers=p.ticket + 1), me, after)
        else:
            yield "leaves the number, which another changed", _put(state, me, self._after_wake(p))

    def _rest(self, state: State, me: int, p: Process) -> Iterator[tuple[str, State]]:
        woken = tuple(each._replace(pc=WOKEN) if each.pc == ASLEEP else each for each in state.processes)
        yield "wakes all", _put(state._replace(processes=woken), me, self._after_wake(p))

    def _after_wake(self, p: Process) -> Process:
        return p._replace(pc=OVER if p.gone else p.back, back="", ticket=0)

    # --- what the explorer asks

    def key(self, state: State) -> Hashable:
        """Return the state without what does not matter: numbers that nobody compares, the order of processes."""

        def compared(p: Process) -> Process:
            seen = p.seen == state.events if p.pc not in (LOAD, OVER, DEAD) else False
            ticket = p.ticket == state.sleepers if p.pc in (LOOK, SLEEP, ADD, WAKE, EVEN) else False
            return p._replace(seen=int(seen), ticket=int(ticket), rechecks=int(p.rechecks < state.debts))

        processes = tuple(sorted(compared(each) for each in state.processes))
        return state._replace(events=0, sleepers=state.sleepers % 2, debts=0, processes=processes)

    def broken(self, state: State) -> str | None:
        return None

    def finished(self, state: State) -> bool:
        """Return whether nobody does anything, and nobody who waits wants what is there."""
        for process in state.processes:
            if process.stores or process.pc not in (ASLEEP, OVER, DEAD, PUT) or (process.pc == PUT and process.left):
                return False
            if process.pc == ASLEEP and (process.gone or state.there[process.wants]):
                return False
        return True

    def show(self, state: State) -> dict[str, str]:
        parts = {"gate": f"{state.events} {state.sleepers} {state.eager}", "there": str(state.there)}
        return parts | {str(i): f"{p.pc} {p.ticket} {p.stores}" for i, p in enumerate(state.processes)}


def _put(state: State, me: int, process: Process) -> State:
    return state._replace(processes=(*state.processes[:me], process, *state.processes[me + 1 :]))


def _with_there(state: State, kind: int, more: int) -> State:
    places, slots = state.there
    return state._replace(there=(places + more, slots) if kind == PLACE else (places, slots + more))


def _stored(state: State, store: str) -> State:
    return state._replace(eager=1) if store == "eager" else state._replace(events=state.events + 1)
