"""The queue's protocol (`csrc/queue.c`) as a model: put, take, finish, give back, close, and reaping the dead.

    producer   claim a free slot; store half 1; store half 2; offer; settle the tail; is there room?; ring cell; settle
    consumer   search the returned, if there may be some; head; tail; cell; word; take; head + 1; then finish and
               release, or give back and tell
    closer     when all producers are done or reaped: settle; the end into the ring
    reaper     of a dead row: settle; each slot; tell of returned ones; clear the row; another consumer takes it

Every load, store and compare-and-swap of shared words is a step, and any process, the reaper as well, may be killed
before each of them. The payload of a slot is two halves. Its stores wait in the producer's store buffer and reach
memory one at a time, in any order; a compare-and-swap that releases waits for them. A consumer's reads are not steps:
in every state, each slot that a living consumer has taken and not released must be whole and have its item. So a read
may be cut into any pieces. A released slot can be overwritten only because its consumer says so behind its reads.

The promises: no item is finished twice; at the end each item whose put returned was finished, and all slots are free;
never more items wait than may; whoever asks is told of items that were given back; a consumer is told of the end only
if nothing can come back; and without faults the end can be reached from every state.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

FREE, WRITING, OFFERED, READY, TAKEN, HELD, RETURNED = range(7)
STATE_NAMES = ("FREE", "WRITING", "OFFERED", "READY", "TAKEN", "HELD", "RETURNED")
NOBODY, END = -1, -1

Word: TypeAlias = tuple[int, int, int]
"""(position, state, row)."""

Cell: TypeAlias = tuple[int, int]
"""(position, slot)."""


class Process(NamedTuple):
    """A row's process, with its registers; a producer has the items that it still puts."""

    role: str
    pc: str
    left: tuple[int, ...] = ()
    slot: int = -1
    tail: int = 0
    head: int = 0
    cell: Cell = (0, 0)
    word: Word = (0, 0, 0)
    back: str = ""  # where a settled tail is needed
    flag: int = 0
    at: int = 0
    best: tuple[Word, int] | None = None
    buffer: tuple[tuple[int, int], ...] = ()  # (half, item) on its way to the payload of `slot`


class State(NamedTuple):
    """Memory, then the processes, then what is only known to the checker."""

    tail: int
    head: int
    returned: int
    closed: bool  # only where the end is not in the ring
    cells: tuple[Cell, ...]
    words: tuple[Word, ...]
    halves: tuple[tuple[int, int], ...]
    attached: tuple[bool, ...]
    processes: tuple[Process, ...]  # by row; then the closer
    reapers: tuple[Process | None, ...]  # by row
    kills: int
    gives: int
    put: frozenset[int]
    finished: frozenset[int]
    note: str = ""


Step: TypeAlias = tuple[str, State, bool]


@dataclass(frozen=True, kw_only=True)
class Queue:
    """One configuration. `helps` to the end: the code, and its mutants."""

    items: tuple[int, ...] = (2, 1)  # by producer
    consumers: int = 1
    capacity: int = 1
    slots: int = 2
    kills: int = 0
    gives: int = 0  # how often an item is given back
    kills_of: str = "all"  # or one role
    merged: bool = True  # loads that follow one another are one step, but for those that a proof needs apart
    helps: bool = True  # I3 and I4 are made for others
    looks_again: bool = True  # a helper loads the tail once more
    positions: bool = True  # words have a position
    offer_releases: bool = True
    reaper_settles: bool = True
    returns_taken: bool = True  # what the dead had taken comes back
    tells: str = "behind"  # "before", "never"
    clears: str = "unchanged"  # `returned` is made even if it did not change; or "always"
    end: str = "ring"  # or "flag": a word of its own
    waits_for_others: bool = True  # an end is told only if nobody has a taken item
    names_owner: bool = True  # T2 says who took the item
    clears_row_last: bool = True

    # --- the model ------------------------------------------------------------------------------------------

    @property
    def cells(self) -> int:
        """Twice the capacity, at least."""
        return 2 * self.capacity

    def initial(self) -> State:
        """Nothing waits; the first position is behind the first round of the ring."""
        numbers = iter(range(1, sum(self.items) + 1))
        producers = [Process("producer", "claim", tuple(next(numbers) for _ in range(n))) for n in self.items]
        rows = [*producers, *(Process("consumer", "search") for _ in range(self.consumers))]
        return State(
            tail=self.cells,
            head=self.cells,
            returned=0,
            closed=False,
            cells=tuple((index, 0) for index in range(self.cells)),
            words=((0, FREE, NOBODY),) * self.slots,
            halves=((0, 0),) * self.slots,
            attached=(True,) * len(rows),
            processes=(*rows, Process("closer", "wait")),
            reapers=(None,) * len(rows),
            kills=self.kills,
            gives=self.gives,
            put=frozenset(),
            finished=frozenset(),
        )

    def steps(self, state: State) -> Iterator[Step]:
        """Yield the next steps of every process, the stores that reach memory, and the kills."""
        for row, process in enumerate(state.processes):
            name = f"{process.role} {row}"
            if process.pc in ("dead", "done"):
                continue
            for half, item in process.buffer:
                rest = tuple(store for store in process.buffer if store[0] != half)
                arrived = _set(state.halves[process.slot], half, item)
                yield (
                    f"{name}'s half {half} reaches memory",
                    _with(state, row, process._replace(buffer=rest))._replace(
                        halves=_set(state.halves, process.slot, arrived)
                    ),
                    False,
                )
            for label, after in self._step(state, row, process):
                yield f"{name} {label}", after, False
            if state.kills and self.kills_of in ("all", process.role) and process.role != "closer":
                dead = Process(process.role, "dead")
                yield (
                    f"KILL {name} at '{process.pc}'",
                    _with(state, row, dead)._replace(kills=state.kills - 1),
                    True,
                )
        for row, reaper in enumerate(state.reapers):
            if not state.attached[row] or state.processes[row].pc != "dead":
                continue
            current = reaper or Process("reaper", "settle" if self.reaper_settles else "slot", back="slot")
            for label, after in self._step(state, row, current):
                yield f"reaper of {row} {label}", after, False
            if reaper is not None and state.kills and self.kills_of == "all":
                killed = state._replace(reapers=_set(state.reapers, row, None), kills=state.kills - 1)
                yield f"KILL reaper of {row} at '{reaper.pc}'", killed, True

    def broken(self, state: State) -> str | None:
        """Check the promises."""
        if state.note:
            return state.note
        waiting = sum(word[1] == READY for word in state.words)
        if waiting > self.capacity:
            return f"{waiting} items wait, and {self.capacity} may"
        for row, process in enumerate(state.processes):
            if process.role == "consumer" and process.pc in ("finish", "release") and process.slot >= 0:
                halves, word = state.halves[process.slot], state.words[process.slot]
                if halves != (process.flag, process.flag) or process.flag == 0:
                    return f"consumer {row} reads {halves[0]}/{halves[1]} in slot {process.slot}, took {process.flag}"
                if self.names_owner and word[2] != row:
                    return f"slot {process.slot} is not consumer {row}'s, who reads it"
        told = state.returned % 2 or any(
            process.pc == "tell" or (process.pc == "dead" and attached)
            for process, attached in zip(state.processes, state.attached, strict=False)
        )
        if not told and any(word[1] == RETURNED for word in state.words):
            return "an item was given back, and nobody is told"
        if self.finished(state):
            if lost := state.put - state.finished:
                return f"items {sorted(lost)} were put, and never finished"
            if any(word[1] != FREE for word in state.words):
                return "a slot stays taken for ever"
        return None

    def finished(self, state: State) -> bool:
        """Return whether all processes are done, or dead and reaped."""
        return all(process.pc in ("dead", "done") for process in state.processes) and not any(
            attached and process.pc == "dead"
            for attached, process in zip(state.attached, state.processes, strict=False)
        )

    def key(self, state: State) -> Hashable:
        return state

    def show(self, state: State) -> dict[str, str]:
        """Name the parts of a state."""
        shown = {
            "tail, head": f"{state.tail}, {state.head}",
            "returned": str(state.returned),
            "ring": " ".join(f"{position}:{'end' if slot == END else slot}" for position, slot in state.cells),
            "finished": str(sorted(state.finished)),
        }
        for slot, (position, kind, row) in enumerate(state.words):
            shown[f"slot {slot}"] = f"({position}, {STATE_NAMES[kind]}, {row}) {state.halves[slot]}"
        for row, process in enumerate(state.processes):
            shown[f"row {row}"] = f"{process.pc} slot={process.slot} tail={process.tail} head={process.head}"
        return shown

    # --- one step of one process; `row` is also that of the dead, for a reaper -------------------------------

    def _step(self, state: State, row: int, process: Process) -> Iterator[tuple[str, State]]:
        yield from getattr(self, "_" + process.pc.replace(" ", "_"))(state, row, process)

    def _then(self, state: State, row: int, p: Process, label: str) -> Iterator[tuple[str, State]]:
        """Yield this load, or, if loads are merged, the next one."""
        after = _put(state, row, p)
        if self.merged:
            yield from self._step(after, row, p)
        else:
            yield label, after

    def _ready(self, position: int) -> Word:
        return (position if self.positions else 0, READY, NOBODY)

    def _is_of(self, cell: Cell, position: int) -> bool:
        return cell[0] == position

    # settling: I3 and I4

    def _settle(self, state: State, row: int, p: Process) -> Iterator[tuple[str, State]]:
        yield from self._then(
            state, row, p._replace(pc="settle cell", tail=state.tail), f"loads the tail: {state.tail}"
        )

    def _settle_cell(self, state: State, row: int, p: Process) -> Iterator[tuple[str, State]]:
        cell = state.cells[p.tail % self.cells]
        if not self._is_of(cell, p.tail):
            yield "loads the cell at the tail: empty", _put(state, row, p._replace(pc="settle same"))
        elif cell[1] == END:
            yield "loads the cell at the tail: the end", self._ended(state, row, p)
        else:
            after = p._replace(pc="settle word" if self.helps or cell[1] == p.slot else "settle", cell=cell)
            yield f"loads the cell at the tail: slot {cell[1]}", _put(state, row, after)

    def _settle_same(self, state: State, row: int, p: Process) -> Iterator[tuple[str, State]]:
        pc = p.back if state.tail == p.tail else "settle"
        yield f"loads the tail again: {state.tail}", _put(state, row, p._replace(pc=pc))

    def _settle_word(self, state: State, row: int, p: Process) -> Iterator[tuple[str, State]]:
        after = p._replace(pc="settle look" if self.looks_again else "settle ready", word=state.words[p.cell[1]])
        yield "loads that slot's word", _put(state, row, after)

    def _settle_look(self, state: State, row: int, p: Process) -> Iterator[tuple[str, State]]:
        pc = "settle ready" if state.tail == p.tail else "settle"
        yield f"loads the tail again: {state.tail}", _put(state, row, p._replace(pc=pc))

    def _settle_ready(self, state: State, row: int, p: Process) -> Iterator[tuple[str, State]]:
        slot, position = p.cell[1], p.tail
        after = state
        if p.word[1] == OFFERED and state.words[slot] == p.word:
            after = state._replace(words=_set(state.words, slot, self._ready(position)))
        elif p.word[1] != OFFERED and p.word != self._ready(position) and self.looks_again and self.positions:
            after = state._replace(note=f"the word of slot {slot} at the tail is in state {STATE_NAMES[p.word[1]]}")
        yield "I3: the slot becomes READY", _put(after, row, p._replace(pc="settle tail"))

    def _settle_tail(self, state: State, row: int, p: Process) -> Iterator[tuple[str, State]]:
        tail = p.tail + 1 if state.tail == p.tail else state.tail
        yield "I4: the tail grows", _put(state._replace(tail=tail), row, p._replace(pc="settle"))

    def _ended(self, state: State, row: int, p: Process) -> State:
        if p.role == "consumer":
            pc = "cell" if p.head < p.tail else "end"
            return _put(state, row, p._replace(pc=pc, at=0, flag=0))
        if p.role == "producer" and p.back == "room":
            return _put(state, row, p._replace(pc="withdraw"))
        return _put(state, row, p._replace(pc=p.back if p.role != "closer" else "done"))

    # producers

    def _claim(self, state: State, row: int, p: Process) -> Iterator[tuple[str, State]]:
        for slot, (position, kind, _) in enumerate(state.words):
            if kind == FREE:
                words = _set(state.words, slot, (position, WRITING, row))
                buffer = ((0, p.left[0]), (1, p.left[0]))
                after = p._replace(pc="offer", slot=slot, buffer=buffer)
                yield f"claims slot {slot}, and stores item {p.left[0]}", _put(state._replace(words=words), row, after)

    def _offer(self, state: State, row: int, p: Process) -> Iterator[tuple[str, State]]:
        if p.buffer and self.offer_releases:
            return
        words = _set(state.words, p.slot, (state.words[p.slot][0], OFFERED, row))
        yield "offers it", _put(state._replace(words=words), row, p._replace(pc="settle", back="room"))

    def _room(self, state: State, row: int, p: Process) -> Iterator[tuple[str, State]]:
        head = state.head
        pc = "insert" if p.tail - head < self.capacity else "room cell"
        yield from self._then(state, row, p._replace(pc=pc, head=head), f"loads the head: {head}")

    def _room_cell(self, state: State, row: int, p: Process) -> Iterator[tuple[str, State]]:
        cell = state.cells[p.head % self.cells]
        pc = "room word" if self._is_of(cell, p.head) else "settle"
        yield from self._then(state, row, p._replace(pc=pc, cell=cell), "loads the cell at the head")

    def _room_word(self, state: State, row: int, p: Process) -> Iterator[tuple[str, State]]:
        full = state.words[p.cell[1]] == self._ready(p.head)
        yield (
            f"loads the word of the item at the head: {'full' if full else 'taken'}",
            _put(state, row, p._replace(pc="settle" if full else "room head")),
        )

    def _room_head(self, state: State, row: int, p: Process) -> Iterator[tuple[str, State]]:
        head = p.head + 1 if state.head == p.head else state.head
        yield "T3 for a taker: the head grows", _put(state._replace(head=head), row, p._replace(pc="settle"))

    def _insert(self, state: State, row: int, p: Process) -> Iterator[tuple[str, State]]:
        index = p.tail % self.cells
        if self.end == "flag" and p.flag == 0:
            pc = "withdraw" if state.closed else "insert"
            yield "loads the flag", _put(state, row, p._replace(pc=pc, flag=1))
            return
        if state.cells[index][0] >= p.tail:  # another was faster: its load, or its compare-and-swap, tells
            yield "I2: the cell is another's", _put(state, row, p._replace(pc="settle", flag=0))
            return
        cells = _set(state.cells, index, (p.tail, p.slot))
        after = p._replace(pc="settle", back="inserted", flag=0)
        yield f"I2: puts slot {p.slot} at {p.tail}", _put(state._replace(cells=cells), row, after)

    def _inserted(self, state: State, row: int, p: Process) -> Iterator[tuple[str, State]]:
        left = p.left[1:]
        after = Process("producer", "claim" if left else "done", left)
        yield "returns from put", _put(state._replace(put=state.put | {p.left[0]}), row, after)

    def _withdraw(self, state: State, row: int, p: Process) -> Iterator[tuple[str, State]]:
        words = _set(state.words, p.slot, (state.words[p.slot][0], FREE, NOBODY))
        yield "is told of the end", _put(state._replace(words=words), row, Process("producer", "done"))

    # consumers

    def _search(self, state: State, row: int, p: Process) -> Iterator[tuple[str, State]]:
        flag = state.returned
        after = Process("consumer", "search slot" if flag % 2 else "head", flag=flag)
        yield f"loads returned: {flag}", _put(state, row, after)

    def _search_slot(self, state: State, row: int, p: Process) -> Iterator[tuple[str, State]]:
        word, best = state.words[p.at], p.best
        if word[1] == RETURNED and (best is None or word < best[0]):
            best = (word, p.at)
        last = p.at + 1 == self.slots
        pc = ("search none" if best is None else "search take") if last else "search slot"
        yield f"looks at slot {p.at}", _put(state, row, p._replace(pc=pc, at=p.at + 1, best=best))

    def _search_none(self, state: State, row: int, p: Process) -> Iterator[tuple[str, State]]:
        same = state.returned == p.flag
        if same or self.clears == "always":
            after = state._replace(returned=state.returned + state.returned % 2)
            yield "makes returned even", _put(after, row, Process("consumer", "head"))
        else:
            yield "returned has changed", _put(state, row, Process("consumer", "search"))

    def _search_take(self, state: State, row: int, p: Process) -> Iterator[tuple[str, State]]:
        assert p.best is not None
        word, slot = p.best
        if state.words[slot] != word:
            yield "another took it", _put(state, row, Process("consumer", "search"))
            return
        yield from self._took(state, row, p, slot, "finish", f"takes slot {slot} again")

    def _took(self, state: State, row: int, p: Process, slot: int, pc: str, label: str) -> Iterator[tuple[str, State]]:
        position = state.words[slot][0]
        words = _set(state.words, slot, (position, TAKEN, row if self.names_owner else NOBODY))
        # the item that the consumer must read is what is in memory, unless its stores are late
        stored = state.halves[slot]
        item = stored[0] if stored[0] == stored[1] else 0
        yield label, _put(state._replace(words=words), row, p._replace(pc=pc, slot=slot, flag=item, best=None, at=0))

    def _head(self, state: State, row: int, p: Process) -> Iterator[tuple[str, State]]:
        after = p._replace(pc="tail", head=state.head, flag=0)
        yield from self._then(state, row, after, f"loads the head: {state.head}")

    def _tail(self, state: State, row: int, p: Process) -> Iterator[tuple[str, State]]:
        empty = p.head >= state.tail
        pc = ("settle" if self.helps else "settled") if empty else "cell"
        after = p._replace(pc=pc, back="settled", tail=state.tail, slot=-1)
        yield from self._then(state, row, after, f"loads the tail: {state.tail}")

    def _settled(self, state: State, row: int, p: Process) -> Iterator[tuple[str, State]]:
        if p.head < p.tail:
            yield "finds an item", _put(state, row, p._replace(pc="cell"))
        elif self.end == "flag" and state.closed:
            yield "finds the flag and nothing else", _put(state, row, p._replace(pc="end", at=0, flag=0))
        else:
            yield "finds nothing", _put(state, row, Process("consumer", "search"))

    def _cell(self, state: State, row: int, p: Process) -> Iterator[tuple[str, State]]:
        cell = state.cells[p.head % self.cells]
        if not self._is_of(cell, p.head):
            yield "loads a cell of a later round", _put(state, row, p._replace(pc="head"))
        else:
            yield f"loads the cell at the head: slot {cell[1]}", _put(state, row, p._replace(pc="take", cell=cell))

    def _take(self, state: State, row: int, p: Process) -> Iterator[tuple[str, State]]:
        slot = p.cell[1]
        if state.words[slot] == self._ready(p.head):
            yield from self._took(state, row, p, slot, "next", f"T2: takes slot {slot}")
        else:
            yield f"T2: the item at {p.head} was taken", _put(state, row, p._replace(pc="next", slot=-1))

    def _next(self, state: State, row: int, p: Process) -> Iterator[tuple[str, State]]:
        head = p.head + 1 if state.head == p.head else state.head
        pc = "finish" if p.slot >= 0 else "head"
        yield "T3: the head grows", _put(state._replace(head=head), row, p._replace(pc=pc))

    def _finish(self, state: State, row: int, p: Process) -> Iterator[tuple[str, State]]:
        position = state.words[p.slot][0]
        words = _set(state.words, p.slot, (position, HELD, row))
        note = f"item {p.flag} is finished twice" if p.flag in state.finished else ""
        after = state._replace(words=words, finished=state.finished | {p.flag}, note=note)
        yield f"finishes item {p.flag}", _put(after, row, p._replace(pc="release"))
        if state.gives:
            words = _set(state.words, p.slot, (position, RETURNED, NOBODY))
            less = state._replace(gives=state.gives - 1)
            if self.tells == "before" and p.at != -1:
                told = less._replace(returned=(state.returned | 1) + 2, gives=state.gives)
                yield "tells of a returned item", _put(told, row, p._replace(at=-1))
                return
            pc = "tell" if self.tells == "behind" else "search"
            given = Process("consumer", pc, flag=0)
            yield f"gives item {p.flag} back", _put(less._replace(words=words), row, given)

    def _release(self, state: State, row: int, p: Process) -> Iterator[tuple[str, State]]:
        words = _set(state.words, p.slot, (state.words[p.slot][0], FREE, NOBODY))
        yield "releases the slot", _put(state._replace(words=words), row, Process("consumer", "search"))

    def _tell(self, state: State, row: int, p: Process) -> Iterator[tuple[str, State]]:
        after = state._replace(returned=(state.returned | 1) + 2)
        if p.role == "reaper":
            yield (
                "tells of returned items",
                _put(after, row, p._replace(pc="clear" if self.clears_row_last else "over")),
            )
        else:
            yield "tells of a returned item", _put(after, row, Process("consumer", "search"))

    def _end(self, state: State, row: int, p: Process) -> Iterator[tuple[str, State]]:
        if not self.waits_for_others:
            yield "ends", self._done(state, row)
            return
        _position, kind, owner = state.words[p.at]
        if kind == RETURNED:
            yield from self._took(state, row, p, p.at, "finish", f"takes slot {p.at} at the end")
            return
        left = p.flag or (kind == TAKEN and owner != row)
        if p.at + 1 < self.slots:
            yield f"looks at slot {p.at} at the end", _put(state, row, p._replace(at=p.at + 1, flag=int(left)))
        elif left:
            yield "waits for others", _put(state, row, Process("consumer", "search"))
        else:
            yield "ends", self._done(state, row)

    def _done(self, state: State, row: int) -> State:
        left = [
            slot
            for slot, (_, kind, owner) in enumerate(state.words)
            if kind == RETURNED or (kind == TAKEN and owner != row)
        ]
        note = f"consumer {row} was told of the end, and the item in slot {left[0]} may come back" if left else ""
        return _put(state._replace(note=note), row, Process("consumer", "done"))

    # the closer

    def _wait(self, state: State, row: int, p: Process) -> Iterator[tuple[str, State]]:
        producers = [
            (process, attached)
            for process, attached in zip(state.processes, state.attached, strict=False)
            if process.role == "producer"
        ]
        early = self.kills_of == "nobody"  # closing may come at any time
        if early or all(process.pc == "done" or not attached for process, attached in producers):
            if self.end == "flag":
                yield "sets the flag", _put(state._replace(closed=True), row, p._replace(pc="done"))
            else:
                yield "closes", _put(state, row, p._replace(pc="settle", back="close"))

    def _close(self, state: State, row: int, p: Process) -> Iterator[tuple[str, State]]:
        index = p.tail % self.cells
        if state.cells[index][0] >= p.tail:
            yield "finds the cell to be another's", _put(state, row, p._replace(pc="settle"))
            return
        cells = _set(state.cells, index, (p.tail, END))
        yield f"puts the end at {p.tail}", _put(state._replace(cells=cells), row, p._replace(pc="done"))

    # the reaper

    def _slot(self, state: State, row: int, p: Process) -> Iterator[tuple[str, State]]:
        if not self.clears_row_last and p.at == 0 and p.flag == 0:
            attached = _set(state.attached, row, False)
            yield "clears the row", _put(state._replace(attached=attached), row, p._replace(flag=1))
            return
        yield f"loads the word of slot {p.at}", _put(state, row, p._replace(pc="slot free", word=state.words[p.at]))

    def _slot_free(self, state: State, row: int, p: Process) -> Iterator[tuple[str, State]]:
        position, kind, owner = p.word
        words = state.words
        if owner == row and kind != FREE and words[p.at] == p.word:
            back = kind == TAKEN and self.returns_taken
            words = _set(words, p.at, (position, RETURNED if back else FREE, NOBODY))
        pc = "slot" if p.at + 1 < self.slots else "tell" if self.tells != "never" else "clear"
        yield (
            f"frees slot {p.at}, if it was the dead one's",
            _put(state._replace(words=words), row, p._replace(pc=pc, at=p.at + 1)),
        )

    def _clear(self, state: State, row: int, p: Process) -> Iterator[tuple[str, State]]:
        after = state._replace(attached=_set(state.attached, row, False), reapers=_set(state.reapers, row, None))
        yield "clears the row", self._again(after, row)

    def _over(self, state: State, row: int, p: Process) -> Iterator[tuple[str, State]]:
        yield "is over", self._again(state._replace(reapers=_set(state.reapers, row, None)), row)

    def _again(self, state: State, row: int) -> State:
        """Start another consumer in the row of a dead one."""
        if state.processes[row].role != "consumer":
            return state
        return _with(state._replace(attached=_set(state.attached, row, True)), row, Process("consumer", "search"))


def _set(values: tuple, index: int, value: object) -> tuple:
    return (*values[:index], value, *values[index + 1 :])


def _with(state: State, row: int, process: Process) -> State:
    return state._replace(processes=_set(state.processes, row, process))


def _put(state: State, row: int, process: Process) -> State:
    """The same state in which this process, or this reaper, is now there."""
    if process.role == "reaper":
        return state._replace(reapers=_set(state.reapers, row, process))
    return _with(state, row, process)
