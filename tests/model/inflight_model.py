"""Batches in flight, of async training (`inflight_*` in `csrc/board.c`), as a model coarser than `board_model.py`.

    place     one word: (batch, EMPTY | FREE | CLAIMED | DONE, worker, buffer)

    server    puts the next batch into an empty place; applies a DONE place's gradient, which makes the next version, if
              all others that are under way can still be applied in time after it; empties the place, and settles the
              record of the worker whose commit that overwrites
    worker    claims a FREE place; pins the newest weights; writes its scratch buffer; records what it is about to swap;
              swaps the place's word; stores its scratch

Any worker may be killed or stopped before each of these. Claiming and committing are one compare-and-swap each;
settling a record is one step, which the board's model takes apart. A worker may claim any place: the promises do not
need that the code takes the oldest batch.

A buffer contains the (batch, version of the weights) of which it is the gradient, or 0. The promises: every batch is
applied, and once; its gradient is at most `max_staleness` versions older than the weights that it is applied to; no
buffer has two owners.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

from board_model import CLAIMED, DONE, FREE, Record, Task

EMPTY = "empty"
IDLE, PIN, COMPUTE, RECORD, SWAP, SCRATCH, DEAD = "idle", "pin", "compute", "record", "swap", "scratch", "dead"


class Worker(NamedTuple):
    """A row's two words, and what the process has in its registers."""

    scratch: int
    record: Record
    pc: str = IDLE
    place: int = -1
    word: Task | None = None  # its claim
    version: int = -1  # that it has pinned
    stopped: bool = False


class State(NamedTuple):
    """`since`, `applied` and `next` are the server's own."""

    places: tuple[Task, ...]
    version: int
    buffers: tuple[tuple[int, int] | int, ...]
    workers: tuple[Worker, ...]
    since: tuple[int, ...]  # by place: the version when it got its batch; -1 once that is applied
    applied: frozenset[int]
    next: int
    kills: int
    stops: int
    wrong: str = ""


Step: TypeAlias = tuple[str, State, bool]


@dataclass(frozen=True, kw_only=True)
class InFlight:
    """One configuration. `waits` to the end: the code, and its mutants."""

    workers: int = 2
    max_staleness: int = 1
    batches: int = 4
    kills: int = 0
    stops: int = 0
    waits: bool = True  # a gradient waits for those that it would make too old
    more: int = 0  # places
    swaps: bool = True  # a commit stores its word, even if another worker has the place by then
    settles: bool = True  # emptying a place settles a record
    reopens: bool = False  # a place that is DONE takes a batch

    def initial(self) -> State:
        """All places are empty."""
        places = self.max_staleness + 1 + self.more
        return State(
            places=tuple(Task(-1, EMPTY, -1, place) for place in range(places)),
            version=0,
            buffers=(0,) * (places + self.workers),
            workers=tuple(Worker(places + row, Record(places + row, places + row)) for row in range(self.workers)),
            since=(-1,) * places,
            applied=frozenset(),
            next=0,
            kills=self.kills,
            stops=self.stops,
        )

    def steps(self, state: State) -> Iterator[Step]:
        """Yield the server's steps for each place and each worker, the next step of every worker, and the faults."""
        for place in range(len(state.places)):
            yield from self._serve(state, place)
        for row, worker in enumerate(state.workers):
            name = f"worker {row}"
            mine = [place for place, word in enumerate(state.places) if word[1:3] == (CLAIMED, row)]
            if worker.pc == DEAD:
                yield f"server settles {name}'s affairs", self._recover(state, row, mine), False
                continue
            if state.kills:
                dead = Worker(worker.scratch, worker.record, DEAD)
                yield f"KILL {name} at '{worker.pc}'", _put(state, row, dead)._replace(kills=state.kills - 1), True
            if worker.stopped:
                if mine:
                    yield f"server gives up on {name}", _free(state, mine), False
                yield f"{name} goes on", _put(state, row, worker._replace(stopped=False)), True
                continue
            if state.stops and worker.pc != IDLE:
                stopped = _put(state, row, worker._replace(stopped=True))._replace(stops=state.stops - 1)
                yield f"{name} STOPS at '{worker.pc}'", stopped, True
            for label, after in self._worker(state, row):
                yield f"{name} {label}", after, False

    def key(self, state: State) -> Hashable:
        """Forget the names of buffers: number them as places, then rows, then registers name them."""
        named = [place.buffer for place in state.places]
        parts: list[Hashable] = [state.version, *state.since, *state[5:]]
        for place in state.places:
            parts += place[:3]
        for worker in state.workers:
            named += (worker.scratch, *worker.record[:2])
            parts += (*worker.record[2:], *worker[2:4], *worker[5:])
            if worker.word is not None:
                named.append(worker.word.buffer)
                parts.append(worker.word[0])
        order = dict(zip(dict.fromkeys(named), range(len(named)), strict=False))
        return (*parts, *map(order.__getitem__, named), *map(state.buffers.__getitem__, order))

    def broken(self, state: State) -> str | None:
        """Check the promises."""
        owners = [place.buffer for place in state.places]
        for worker in state.workers:
            if worker.pc == SCRATCH:
                owners.append(worker.record.other if worker.word is None else worker.word.buffer)
            elif worker.pc != DEAD:
                owners.append(worker.scratch)
        if len(set(owners)) < len(owners):
            return f"a buffer has two owners: places and workers have {owners}"
        return state.wrong or None

    def finished(self, state: State) -> bool:
        """Return whether every batch is applied, or no worker is left to compute one."""
        return len(state.applied) == self.batches or all(worker.stopped for worker in state.workers)

    def show(self, state: State) -> dict[str, str]:
        """Name the parts of a state, for a trace."""
        parts = {"version": str(state.version)}
        for number, (place, since) in enumerate(zip(state.places, state.since, strict=True)):
            under_way = f", under way since version {since}" if since >= 0 else ""
            parts[f"place {number}"] = (
                f"batch {place.step}, {place.state}, worker {place.worker}, buffer {place.buffer}" + under_way
            )
        parts |= {f"buffer {number}": f"{content}" for number, content in enumerate(state.buffers)}
        for row, worker in enumerate(state.workers):
            stopped = ", stopped" if worker.stopped else ""
            parts[f"worker {row}"] = f"next: {worker.pc}{stopped}, scratch {worker.scratch}, {worker.record}"
        return parts

    # --- the server -----------------------------------------------------------------------------------------

    def _serve(self, state: State, place: int) -> Iterator[Step]:
        """inflight_open, inflight_apply up to the new version, inflight_empty."""
        word, since = state.places[place], state.since[place]
        takes = [
            n for n, other in enumerate(state.places) if other.state == EMPTY or (other.state == DONE and self.reopens)
        ]
        if place in takes[:1] and state.next < self.batches:
            after = _place(state, place, Task(state.next, FREE, -1, word.buffer))
            after = after._replace(next=state.next + 1, since=_with(state.since, place, state.version))
            yield f"server puts batch {state.next} into place {place}", after, False
        if word.state == DONE and since >= 0 and self._may_apply(state, place):
            yield f"server applies place {place}", self._apply(state, place), False
        if word.state == DONE and since < 0:
            after = _fill(_place(state, place, Task(-1, EMPTY, -1, word.buffer)), word.buffer)
            record = state.workers[word.worker].record
            if self.settles and record == Record(word.buffer, record.other, place, word.step):
                settled = state.workers[word.worker]._replace(record=Record(record.other, record.other))
                after = _put(after, word.worker, settled)
            yield f"server empties place {place}", after, False

    def _may_apply(self, state: State, place: int) -> bool:
        """`may_apply` in `untorn.train.run.steps`: the others, oldest first and one per version, are still in time."""
        others = sorted(since for other, since in enumerate(state.since) if other != place and since >= 0)
        late = [state.version + 1 + place - since for place, since in enumerate(others)]
        return not self.waits or all(staleness <= self.max_staleness for staleness in late)

    def _apply(self, state: State, place: int) -> State:
        word, wrong = state.places[place], ""
        content = state.buffers[word.buffer]
        if not isinstance(content, tuple) or content[0] != word.step:
            wrong = f"place {place}'s gradient of batch {word.step} is {content}"
        elif word.step in state.applied:
            wrong = f"batch {word.step} is applied twice"
        elif state.version - content[1] > self.max_staleness:
            wrong = f"batch {word.step}, computed on version {content[1]}, is applied to version {state.version}"
        applied, since = state.applied | {word.step}, _with(state.since, place, -1)
        return state._replace(version=state.version + 1, applied=applied, since=since, wrong=wrong)

    def _recover(self, state: State, row: int, mine: list[int]) -> State:
        """board_recover, and the next worker of this row."""
        record = state.workers[row].record
        named = state.places[record.shard].buffer
        buffer = record.other if named == record.scratch else record.scratch
        return _fill(_put(_free(state, mine), row, Worker(buffer, Record(buffer, buffer))), buffer)

    # --- a worker -------------------------------------------------------------------------------------------

    def _worker(self, state: State, row: int) -> Iterator[tuple[str, State]]:
        worker = state.workers[row]
        if worker.pc == IDLE:
            for place, word in enumerate(state.places):
                if word.state == FREE:
                    claim = Task(word.step, CLAIMED, row, word.buffer)
                    claims = worker._replace(pc=PIN, place=place, word=claim)
                    yield f"claims place {place}", _put(_place(state, place, claim), row, claims)
            return
        word, scratch = worker.word, worker.scratch
        assert word is not None
        idle = Worker(scratch, worker.record)
        if worker.pc == PIN:
            yield f"pins version {state.version}", _put(state, row, worker._replace(pc=COMPUTE, version=state.version))
        elif worker.pc == COMPUTE:
            content = (word.step, worker.version)
            after = _put(state, row, worker._replace(pc=RECORD, version=-1))
            yield f"writes the gradient of batch {word.step} into buffer {scratch}", _fill(after, scratch, content)
        elif worker.pc == RECORD:
            record = Record(scratch, word.buffer, worker.place, word.step)
            yield f"records {record}", _put(state, row, worker._replace(pc=SWAP, record=record))
        elif worker.pc == SWAP:
            if self.swaps and state.places[worker.place] != word:
                yield f"commits place {worker.place} (CAS fails)", _fill(_put(state, row, idle), scratch)
                return
            after = _place(state, worker.place, Task(word.step, DONE, row, scratch))
            yield f"commits place {worker.place}", _put(after, row, worker._replace(pc=SCRATCH))
        else:
            yield (
                f"stores that buffer {word.buffer} is its scratch",
                _put(state, row, idle._replace(scratch=word.buffer)),
            )


def _with(items: tuple, index: int, item: object) -> tuple:  # type: ignore[type-arg]
    """A tuple with one item changed."""
    return (*items[:index], item, *items[index + 1 :])


def _put(state: State, row: int, worker: Worker) -> State:
    return state._replace(workers=_with(state.workers, row, worker))


def _fill(state: State, buffer: int, content: tuple[int, int] | int = 0) -> State:
    """A buffer's content; that of a scratch buffer which nobody is about to commit counts no more."""
    return state._replace(buffers=_with(state.buffers, buffer, content))


def _place(state: State, place: int, word: Task) -> State:
    return state._replace(places=_with(state.places, place, word))


def _free(state: State, places: list[int]) -> State:
    """Claims handed back."""
    for place in places:
        state = _place(state, place, state.places[place]._replace(state=FREE, worker=-1))
    return state
