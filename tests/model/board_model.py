"""Sync training's board (`csrc/board*.c`) as a model: every atomic access of the code is one step.

    phase     (step, GRADIENT, -) -> (step, UPDATE, target slot) -> (step + 1, GRADIENT, -)
              with clipping, (step, NORM, -) in between
    gradient  one word per shard: (step, FREE | CLAIMED | DONE, worker, buffer)
    norm      one word per range: (step, FREE | CLAIMED | DONE, worker), and one number per range
    update    one word per range: (step, FREE | CLAIMED | DONE, worker)
    row       two words per worker: scratch (its buffer), record (step, shard, and two buffers: its own is one of them)

    board_next      load the phase; shard_claim, range_claim: load a word; compare-and-swap it; load the next one.
                    A shard's word that says DONE: first load that worker's record, and if it is of this very commit,
                    swap it for "its buffer is the other" (record_settle_overwritten)
    _compute        pin the weights; write the scratch buffer
    board_commit    store the record (scratch or the shard's buffer); swap the shard's word; store scratch
    phase_end_*     pick a slot, swap the phase; load latest, swap it, swap the phase
    norms_run       load the shards' words; write the range's number; swap its word; claim the next one
    updates_run     load latest; load the shards' words, the norms; write the range; swap its word; claim the next one
    board_recover   (the worker is dead) free its claims; load its record; load that shard's word: if it names the
                    scratch, the swap happened, and the other is its own, or else the scratch is; swap the record,
                    or look again; store scratch; start another worker
    server          sees that a worker is stopped, which may continue at any moment, or never; then frees its claim of a
                    gradient (board_give_up), or, if it has claimed a norm or an update (board_holds_range), kills it
    link            all own shards are done: write the sum buffer; announce it; then each remote shard: load its word,
                    settle the record of a commit that it tells of, swap the word, write its buffer, store DONE
    server          ends the link's session, if it has not announced its sum; makes a shard remote or own. A board whose
                    shards were all own is at its limit then, so that no worker completes a step by itself

Memory is sequentially consistent, pinning is one step, and so is scanning the held words for a free slot: fences
and pins are the channel model's subject. A load of a word that only its reader writes is part of the step after it,
and so is a load of a dead worker's claim, which nobody but the server can change.

Values are names. A slot's range contains the version that it is exactly right for, a gradient buffer the (shard,
step) of which it is exactly the gradient, a range's norm the step of whose gradients it is, and 0 (-1 in a slot or a
norm) is anything else. So a result is right if and only if every gradient was computed on whole, right weights and
counted exactly once, and scaled by the norms of all ranges.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

FREE, CLAIMED, DONE = "free", "claimed", "done"
#: the worker in a word that the link has claimed
LINK = -2
#: a sum of other gradients than those of its step, which the peers may have got by now
WRONG = -2
GRADIENT, NORM, UPDATE = "gradient", "norm", "update"

IDLE, SCAN, REAP_LOAD, REAP, CLAIM = "idle", "scan", "reap: load", "reap", "claim"
PIN, COMPUTE = "pin", "compute"
RECORD, SWAP, SCRATCH = "record", "swap", "scratch"
MEASURE, PICK, MOVE, LATEST, PUBLISH, ADVANCE = "measure", "pick", "move", "latest", "publish", "advance"
SOURCE, COLLECT, NORMS, BEGIN, WRITE, FINISH = "source", "collect", "norms", "begin", "write", "finish"
DEAD, SETTLE_LOAD, SETTLE_WORD, SETTLE, START = "dead", "settle: load", "settle: word", "settle", "start"

GIVES_UP, KILLS = "gives up", "kills"
SUM, ANNOUNCE, LOAD, COMMIT = "sum", "announce", "load", "commit"


class Task(NamedTuple):
    """A task's word. A range's names no buffer."""

    step: int
    state: str
    worker: int
    buffer: int = -1


class Record(NamedTuple):
    """Whose buffer is what: a commit that swaps `scratch` for `other`, or may have; settled if they are the same."""

    scratch: int
    other: int
    shard: int = 0
    step: int = 0


class Row(NamedTuple):
    """A worker's two words."""

    scratch: int
    record: Record


class Worker(NamedTuple):
    """The registers of a process; in a dead worker's row, those of the server."""

    pc: str = IDLE
    step: int = -1  # the phase that was loaded
    kind: str = GRADIENT
    slot: int = -1  # the target slot
    first: int = 0  # where a scan of words begins, how far it is, whether all were done
    at: int = 0
    done: bool = True
    task: int = -1
    swapped: bool = False  # the commit's swap happened, and the scratch word does not say so yet
    pinned: int = -1  # the held word: stays when the worker dies
    latest: tuple[int, int] | None = None
    norms: tuple[int, ...] = ()  # of the ranges, as an update has collected them
    source: int = -1  # content of the range in the version before
    todo: tuple[str, ...] = ()  # the rest of a commit
    stopped: bool = False
    remote: tuple[int, ...] = ()  # the remote shards, as it found them
    server: str = ""  # the server's next step after it saw the worker stopped
    # from here on, see key(): fields that name buffers
    word: Task | None = None  # value that a swap expects; a claim
    buffers: tuple[int, ...] = ()  # of the shards, as an update has collected them
    record: Record | None = None  # somebody's, about to be settled
    mine: int = -1  # the server's: the dead worker's buffer


class Link(NamedTuple):
    """The registers of the link."""

    pc: str = IDLE
    step: int = -1
    at: int = 0  # in `remote`
    word: Task | None = None
    record: Record | None = None


class State(NamedTuple):
    """Shared memory first."""

    phase: tuple[int, str, int]
    latest: tuple[int, int]
    slots: tuple[tuple[int, ...], ...]
    shards: tuple[Task, ...]
    ranges: tuple[Task, ...]
    buffers: tuple[tuple[int, int] | int, ...]
    rows: tuple[Row, ...]
    workers: tuple[Worker, ...]
    kills: int
    stops: int
    measures: tuple[Task, ...] = ()  # the norms' words
    norms: tuple[int, ...] = ()
    remote: tuple[int, ...] = ()
    moves: int = 0
    summed: int = -1  # the newest step whose sum was announced
    sum: int = -1  # the step of whose own shards the sum buffer is the whole sum
    link: Link = Link()


Step: TypeAlias = tuple[str, State, bool]


@dataclass(frozen=True, kw_only=True)
class Board:
    """One configuration. `commit` to the end: the code, and its mutants."""

    workers: int = 2
    shards: int = 2
    ranges: int = 2
    rounds: int = 2  # optimizer steps
    slots: int = 4
    kills: int = 0
    stops: int = 0
    clips: bool = False  # gradients are clipped by their norm
    stops_anywhere: bool = False  # not only with a claim, or in a commit: elsewhere it is as if nobody scheduled it
    looks_around: bool = False  # idle workers look at any time, not only when there is something to do
    commit: tuple[str, ...] = (RECORD, SWAP, SCRATCH)
    reaps: Literal["before", "after", "anything", "never"] = "before"  # the claim; the record may be of any commit
    reap_swaps: bool = True  # or it stores the record, whatever is there by then
    looks_again: bool = True  # the server swaps a dead worker's record, and failing that looks again; or it stores it
    neither: Literal["scratch", "other"] = "scratch"  # a dead worker's buffer where the shard's word names neither
    recovers: tuple[str, ...] = (GRADIENT, NORM, UPDATE)  # a dead worker's claims of these are freed
    gives_up: tuple[str, ...] = (GRADIENT,)  # and a stopped one's of these
    kills_stopped: bool = True  # workers that are stopped with a claim of a range
    shared_words: bool = False  # norm tasks have the updates' words
    in_place: bool = False  # updates write into latest's slot
    remote: tuple[int, ...] = ()  # shards of other nodes, at first
    moves: int = 0  # of a shard to another node, or from there
    link_reaps: bool = True  # before it claims
    link_takes: bool = True  # a remote shard that a worker has claimed
    link_waits: bool = True  # for the phase of its step, before it writes the sum
    announces: Literal["first", "last"] = "first"  # the sum, or the remote shards
    needs_sum: bool = True  # a step with remote shards is complete only once its sum was announced
    later_is_free: bool = False  # a worker claims every word that does not say "my step, claimed or done"

    # --- the model ------------------------------------------------------------------------------------------

    def initial(self) -> State:
        """Version 0 is in slot 0; nothing of step 0 is done."""
        return State(
            phase=(0, GRADIENT, -1),
            latest=(0, 0),
            slots=tuple((0 if slot == 0 else -1,) * self.ranges for slot in range(self.slots)),
            shards=tuple(Task(0, FREE, -1, shard) for shard in range(self.shards)),
            ranges=tuple(Task(0, FREE, -1) for _ in range(self.ranges)),
            buffers=(0,) * (self.shards + self.workers),
            rows=tuple(
                Row(buffer, Record(buffer, buffer)) for buffer in range(self.shards, self.shards + self.workers)
            ),
            workers=(Worker(),) * self.workers,
            kills=self.kills,
            stops=self.stops,
            measures=tuple(Task(0, FREE, -1) for _ in range(self.ranges)) if self.clips else (),
            norms=(-1,) * self.ranges if self.clips else (),
            remote=self.remote,
            moves=self.moves,
        )

    def steps(self, state: State) -> Iterator[Step]:
        """The next step of every worker, of the server for each that is dead or stopped, and the faults."""
        for row, worker in enumerate(state.workers):
            if worker.pc in _SERVER:
                yield (*self._recover(state, row), False)
                continue
            if state.kills:
                killed = _put(state, row, _dead(worker))._replace(kills=state.kills - 1)
                yield f"KILL worker {row} at '{worker.pc}'", killed, True
            if worker.stopped:
                yield f"worker {row} goes on", _put(state, row, worker._replace(stopped=False)), True
            elif state.stops and self._stops_here(state, row):
                stopped = _put(state, row, worker._replace(stopped=True))
                yield f"worker {row} STOPS at '{worker.pc}'", stopped._replace(stops=state.stops - 1), True
            if worker.server or (worker.stopped and self._in_the_way(state, row)):
                yield (*self._pass_over(state, row), False)
            if not worker.stopped and (worker.pc != IDLE or self._wakes(state)):
                label, after = self._worker(state, row)
                yield f"worker {row} {label}", after, False
        if state.link.pc != IDLE or self._link_is_due(state):
            label, after = self._link(state)
            yield f"link {label}", after, False
        if state.moves and state.link.pc in (IDLE, SUM, ANNOUNCE) and (state.remote or self._rests(state)):
            for shard in range(self.shards):
                remote = tuple(sorted({shard}.symmetric_difference(state.remote)))
                after = state._replace(remote=remote, moves=state.moves - 1, link=Link())
                yield f"server ends the session; remote are {remote} from now on", after, True

    def key(self, state: State) -> Hashable:
        """Forget the names of buffers: number them as shards, rows, then registers name them."""
        named = [shard.buffer for shard in state.shards]
        for row in state.rows:
            named += (row.scratch, *row.record[:2])
        parts: list[Hashable] = [*state[:3], state.ranges, *state[8:-1]]
        for shard in state.shards:
            parts += shard[:3]
        for row in state.rows:
            parts += row.record[2:]
        for worker in state.workers:
            parts += worker[:_NAMES]
            if worker.word is not None:
                named.append(worker.word.buffer)
                parts += worker.word[:3]
            if worker.record is not None:
                named += worker.record[:2]
                parts += worker.record[2:]
            named += (*worker.buffers, worker.mine)
        link = state.link
        parts += link[:3]
        if link.word is not None:
            named.append(link.word.buffer)
            parts += link.word[:3]
        if link.record is not None:
            named += link.record[:2]
            parts += link.record[2:]
        order = dict(zip(dict.fromkeys([-1, *named]), range(-1, len(named)), strict=False))
        contents = [state.buffers[buffer] for buffer in order if buffer >= 0]
        return (*parts, *map(order.__getitem__, named), *contents)

    def broken(self, state: State) -> str | None:
        """Check the promises."""
        version, slot = state.latest
        if state.sum == WRONG:
            return f"the link sums other gradients than those of step {state.link.step}"
        if state.slots[slot] != (version,) * self.ranges:
            return f"version {version} in slot {slot} is not right: its ranges are {state.slots[slot]}"
        owner = {shard.buffer: f"shard {number}" for number, shard in enumerate(state.shards)}
        if len(owner) < self.shards:
            return f"two shards name the same buffer: {[shard.buffer for shard in state.shards]}"
        for row, worker in enumerate(state.workers):
            if worker.pc in _SERVER:
                continue  # its record has still to be settled
            mine = _buffer(state, row)
            if mine in owner:
                return f"buffer {mine} belongs to {owner[mine]} and to worker {row}"
            owner[mine] = f"worker {row}"
            # A stopped worker that was given up finds newer weights, and commits nothing.
            if worker.pc == COMPUTE and state.shards[worker.task] == worker.word:
                found = state.slots[worker.pinned]
                if found != (worker.step,) * self.ranges:
                    return f"worker {row} works on version {worker.step}, and has pinned {found}"
        step, kind, _ = state.phase
        if version != step and (version, kind) != (step + 1, UPDATE):
            return f"step {step} has version {version}"
        return None

    def finished(self, state: State) -> bool:
        """Return whether the last step's version is published and every worker is idle, or stopped and not needed."""
        idle = state.phase[0] == self.rounds and all(w.pc == IDLE or w.stopped for w in state.workers)
        return idle or all(w.stopped for w in state.workers)

    def show(self, state: State) -> dict[str, str]:
        """Name the parts of a state, for a trace."""
        step, kind, slot = state.phase
        parts = {"phase": f"step {step}, {kind}" + (f" into slot {slot}" if slot >= 0 else "")}
        parts["latest"] = f"version {state.latest[0]} in slot {state.latest[1]}"
        parts |= {f"slot {number}": f"ranges {ranges}" for number, ranges in enumerate(state.slots)}
        for number, task in enumerate(state.shards):
            word = f"step {task.step}, {task.state}, worker {task.worker}, buffer {task.buffer}"
            parts[f"shard {number}"] = word
        for number, task in enumerate(state.ranges):
            parts[f"range {number}"] = f"step {task.step}, {task.state}, worker {task.worker}"
        for number, (task, norm) in enumerate(zip(state.measures, state.norms, strict=True)):
            parts[f"norm {number}"] = f"step {task.step}, {task.state}, worker {task.worker}, of step {norm}"
        parts |= {f"buffer {number}": f"{content}" for number, content in enumerate(state.buffers)}
        parts |= {f"row {number}": f"scratch {row.scratch}, {row.record}" for number, row in enumerate(state.rows)}
        for row, worker in enumerate(state.workers):
            parts[f"worker {row}"] = f"next: {worker.pc}" + (", stopped" if worker.stopped else "")
        return parts

    # --- a worker: board_next -------------------------------------------------------------------------------

    def _wakes(self, state: State) -> bool:
        """Return whether an idle worker looks at the board: it sleeps while there is nothing to do."""
        step, kind, _ = state.phase
        if step == self.rounds or self.looks_around:
            return step < self.rounds
        words = self._words(state, kind)
        remote = state.remote if kind == GRADIENT else ()
        if any(self._claimable(word, step) for number, word in enumerate(words) if number not in remote):
            return True
        return all(word[:2] == (step, DONE) for word in words) and self._is_summed(state, step, remote)

    def _is_summed(self, state: State, step: int, remote: tuple[int, ...]) -> bool:
        """Return whether a step whose shards are all done is complete."""
        return not remote or not self.needs_sum or state.summed == step

    def _words(self, state: State, kind: str) -> tuple[Task, ...]:
        """The tasks of a phase."""
        if kind == NORM and not self.shared_words:
            return state.measures
        return state.shards if kind == GRADIENT else state.ranges

    def _word(self, state: State, kind: str, number: int, word: Task) -> State:
        """A task's word stored."""
        if kind == GRADIENT:
            return state._replace(shards=_with(state.shards, number, word))
        if kind == NORM and not self.shared_words:
            return state._replace(measures=_with(state.measures, number, word))
        return state._replace(ranges=_with(state.ranges, number, word))

    def _claimable(self, task: Task, step: int) -> bool:
        if self.later_is_free:
            return not (task.step == step and task.state != FREE)
        return task.step < step or (task.step == step and task.state == FREE)

    def _worker(self, state: State, row: int) -> tuple[str, State]:
        worker = state.workers[row]
        if worker.pc == IDLE:
            step, kind, slot = state.phase
            first = row * (self.shards if kind == GRADIENT else self.ranges) // self.workers
            remote = state.remote if kind == GRADIENT else ()
            scan = Worker(SCAN, step, kind, slot, first, server=worker.server, remote=remote)
            return f"loads the phase: step {step}, {kind}", _put(state, row, scan)
        if worker.pc in (SCAN, CLAIM):
            return self._claim(state, row)
        if worker.pc in (REAP_LOAD, REAP):
            return self._reap(state, row)
        if worker.pc in (MEASURE, PICK, MOVE, LATEST, PUBLISH, ADVANCE):
            return self._end_phase(state, row)
        if worker.kind != GRADIENT and worker.pc == COLLECT:
            return self._collect(state, row)
        if worker.kind == NORM:
            return self._norm(state, row)
        if worker.kind == UPDATE:
            return self._update(state, row)
        if worker.pc in (PIN, COMPUTE):
            return self._compute(state, row)
        return self._commit(state, row)

    def _claim(self, state: State, row: int) -> tuple[str, State]:
        """shard_claim, range_claim: one load, or one swap."""
        worker = state.workers[row]
        name, words = {GRADIENT: "shard", NORM: "norm", UPDATE: "range"}[worker.kind], self._words(state, worker.kind)
        number = (worker.first + worker.at) % len(words)
        reaps = worker.kind == GRADIENT and self.reaps != "never"
        if worker.pc == SCAN:
            word = words[number]
            label = f"looks at {name} {number}: step {word.step}, {word.state}"
            if self._claimable(word, worker.step) and number not in worker.remote:
                settles = reaps and word.state == DONE and word.worker != LINK and self.reaps != "after"
                pc = REAP_LOAD if settles else CLAIM
                return label, _put(state, row, worker._replace(pc=pc, word=word, task=number, done=False))
            done = worker.done and word[:2] == (worker.step, DONE)
            return label, _put(state, row, self._look_on(state, worker._replace(done=done), len(words)))
        label = f"claims {name} {number} of step {worker.step}"
        assert worker.word is not None
        if words[number] != worker.word:
            return label + " (CAS fails)", _put(state, row, self._look_on(state, worker, len(words)))
        claim = Task(worker.step, CLAIMED, row, worker.word.buffer)
        pc = {GRADIENT: PIN, NORM: COLLECT, UPDATE: SOURCE}[worker.kind]
        if worker.buffers:
            pc = BEGIN
        if reaps and self.reaps == "after" and worker.word.state == DONE:
            pc = REAP_LOAD
        word = worker.word if pc == REAP_LOAD else claim
        after = _put(state, row, worker._replace(pc=pc, word=word, task=number, first=0, at=0, done=True))
        return label, self._word(after, worker.kind, number, claim)

    def _look_on(self, state: State, worker: Worker, count: int) -> Worker:
        """After a word that could not be claimed: the next one, or the end of the scan."""
        if worker.at + 1 < count:
            return worker._replace(pc=SCAN, at=worker.at + 1, word=None, task=-1)
        if not worker.done or not self._is_summed(state, worker.step, worker.remote):
            return _idle(worker)
        pc = {GRADIENT: MEASURE if self.clips else PICK, NORM: PICK, UPDATE: LATEST}[worker.kind]
        return Worker(pc, worker.step, worker.kind, worker.slot, server=worker.server)

    def _reap(self, state: State, row: int) -> tuple[str, State]:
        """record_settle_overwritten: settle the record of the worker whose commit the claim is about to overwrite."""
        worker = state.workers[row]
        word = worker.word
        assert word is not None
        record, name = state.rows[word.worker].record, f"worker {word.worker}'s record"
        onward = worker._replace(pc=CLAIM, record=None)
        if self.reaps == "after":
            onward = onward._replace(pc=PIN, word=Task(worker.step, CLAIMED, row, word.buffer))
        if worker.pc == REAP_LOAD:
            settles = record == Record(word.buffer, record.other, worker.task, word.step) or self.reaps == "anything"
            if settles:
                onward = worker._replace(pc=REAP, record=record)
            return f"loads {name}" + ("" if settles else ": not of that commit"), _put(state, row, onward)
        after = _put(state, row, onward)
        assert worker.record is not None
        wins = record == worker.record or not self.reap_swaps
        if wins:
            after = _record(after, word.worker, Record(worker.record.other, worker.record.other))
        return f"settles {name}: buffer {worker.record.other}{_won(wins)}", after

    def _end_phase(self, state: State, row: int) -> tuple[str, State]:
        worker = state.workers[row]
        step, slot = worker.step, worker.slot
        if worker.pc == MEASURE:
            after = _put(state, row, _idle(worker))
            moves = state.phase == (step, GRADIENT, -1)
            if moves:
                after = after._replace(phase=(step, NORM, -1))
            return f"moves the phase to the norms{_won(moves)}", after
        if worker.pc == PICK:
            taken = {state.latest[1], *(other.pinned for other in state.workers)}
            slot = state.latest[1] if self.in_place else min(set(range(self.slots)) - taken)
            return f"picks slot {slot}", _put(state, row, worker._replace(pc=MOVE, slot=slot))
        if worker.pc == MOVE:
            after = _put(state, row, _idle(worker))
            moves = state.phase == (step, worker.kind, -1)
            if moves:
                after = after._replace(phase=(step, UPDATE, slot))
                if not self.in_place:
                    after = after._replace(slots=_with(state.slots, slot, (-1,) * self.ranges))
            return f"moves the phase to update into slot {slot}{_won(moves)}", after
        if worker.pc == LATEST:
            pc = PUBLISH if state.latest[0] == step else ADVANCE
            after = _put(state, row, worker._replace(pc=pc, latest=state.latest if pc == PUBLISH else None))
            return f"loads latest: version {state.latest[0]}", after
        if worker.pc == PUBLISH:
            after = _put(state, row, worker._replace(pc=ADVANCE, latest=None))
            moves = state.latest == worker.latest
            if moves:
                after = after._replace(latest=(step + 1, slot))
            return f"publishes version {step + 1} in slot {slot}{_won(moves)}", after
        after = _put(state, row, _idle(worker))
        moves = state.phase == (step, UPDATE, slot)
        if moves:
            after = after._replace(phase=(step + 1, GRADIENT, -1))
        return f"moves the phase to step {step + 1}{_won(moves)}", after

    # --- a gradient task ------------------------------------------------------------------------------------

    def _compute(self, state: State, row: int) -> tuple[str, State]:
        worker = state.workers[row]
        if worker.pc == PIN:
            version, slot = state.latest
            return f"pins version {version}", _put(state, row, worker._replace(pc=COMPUTE, pinned=slot))
        scratch = state.rows[row].scratch
        right = state.slots[worker.pinned] == (worker.step,) * self.ranges
        worker = worker._replace(pc=self.commit[0], todo=self.commit[1:], pinned=-1)
        after = _fill(_put(state, row, worker), scratch, (worker.task, worker.step) if right else 0)
        return f"writes the gradient of shard {worker.task} into buffer {scratch}", after

    def _commit(self, state: State, row: int) -> tuple[str, State]:
        worker = state.workers[row]
        step, shard = worker.step, worker.task
        assert worker.word is not None
        old, scratch = worker.word.buffer, state.rows[row].scratch
        onward = worker._replace(pc=worker.todo[0], todo=worker.todo[1:]) if worker.todo else _idle(worker)
        if worker.pc == SWAP:
            if state.shards[shard] != worker.word:  # The content of a scratch buffer no longer matters.
                return f"commits shard {shard} (CAS fails)", _fill(_put(state, row, _idle(worker)), scratch)
            after = _fill(_put(state, row, onward._replace(swapped=SCRATCH in worker.todo)), old)
            label = f"commits shard {shard} with buffer {scratch}"
            return label, self._word(after, GRADIENT, shard, Task(step, DONE, row, scratch))
        after = _put(state, row, onward)
        if worker.pc == RECORD:
            label = f"records that it swaps buffer {scratch} for {old}"
            return label, _record(after, row, Record(scratch, old, shard, step))
        rows = _with(state.rows, row, state.rows[row]._replace(scratch=old))
        after = _put(state, row, onward._replace(swapped=False))._replace(rows=rows)
        return f"stores that buffer {old} is its scratch", after

    # --- a norm task, an update task ------------------------------------------------------------------------

    def _collect(self, state: State, row: int) -> tuple[str, State]:
        """shards_collect: one load."""
        worker = state.workers[row]
        number = len(worker.buffers)
        buffer = state.shards[number].buffer
        last = NORMS if self.clips and worker.kind == UPDATE else BEGIN
        pc = COLLECT if number + 1 < self.shards else last
        after = _put(state, row, worker._replace(pc=pc, buffers=(*worker.buffers, buffer)))
        return f"finds shard {number} in buffer {buffer}", after

    def _gradients_are_right(self, state: State, worker: Worker) -> bool:
        found = [state.buffers[buffer] for buffer in worker.buffers]
        gradients = [(shard, worker.step) for shard in range(self.shards)]
        if state.summed != worker.step:
            return found == gradients
        measured = [(shard, LINK - worker.step) for shard in range(self.shards)]
        return state.sum == worker.step and all(map(tuple.__contains__, zip(gradients, measured, strict=True), found))

    def _finish(self, state: State, row: int) -> tuple[str, State]:
        """The commit of a range's task, and on to the next one."""
        worker = state.workers[row]
        step, task = worker.step, worker.task
        scan = worker._replace(pc=SCAN, first=(task + 1) % self.ranges, word=None, task=-1)
        after = _put(state, row, scan)
        wins = self._words(state, worker.kind)[task] == worker.word
        if wins:
            after = self._word(after, worker.kind, task, Task(step, DONE, row))
        return f"commits {worker.kind} {task} of step {step}{_won(wins)}", after

    def _norm(self, state: State, row: int) -> tuple[str, State]:
        worker = state.workers[row]
        step, task = worker.step, worker.task
        if worker.pc == BEGIN:
            after = _put(state, row, worker._replace(pc=WRITE))
            return f"begins to write norm {task}", after._replace(norms=_with(state.norms, task, -1))
        if worker.pc == WRITE:
            value = step if self._gradients_are_right(state, worker) else -1
            after = _put(state, row, worker._replace(pc=FINISH))
            return f"has written norm {task}", after._replace(norms=_with(state.norms, task, value))
        return self._finish(state, row)

    def _update(self, state: State, row: int) -> tuple[str, State]:
        worker = state.workers[row]
        step, task, slot = worker.step, worker.task, worker.slot
        if worker.pc == SOURCE:
            after = _put(state, row, worker._replace(pc=COLLECT, latest=state.latest))
            return f"loads latest: version {state.latest[0]}", after
        assert worker.latest is not None
        if worker.pc == NORMS:
            number = len(worker.norms)
            pc = NORMS if number + 1 < self.ranges else BEGIN
            after = _put(state, row, worker._replace(pc=pc, norms=(*worker.norms, state.norms[number])))
            return f"finds norm {number} of step {state.norms[number]}", after
        if worker.pc == BEGIN:
            source = state.slots[worker.latest[1]][task]
            after = _put(self._write(state, slot, task, -1), row, worker._replace(pc=WRITE, source=source))
            return f"begins to write range {task} into slot {slot}", after
        if worker.pc == WRITE:
            scaled = worker.norms == ((step,) * self.ranges if self.clips else ())
            right = worker.source == step and scaled and self._gradients_are_right(state, worker)
            after = self._write(state, slot, task, step + 1 if right else -1)
            return f"has written range {task} into slot {slot}", _put(after, row, worker._replace(pc=FINISH, source=-1))
        return self._finish(state, row)

    def _write(self, state: State, slot: int, task: int, value: int) -> State:
        return state._replace(slots=_with(state.slots, slot, _with(state.slots[slot], task, value)))

    def _rests(self, state: State) -> bool:
        """Return whether no worker is in the middle of completing a step: the board is at its limit."""
        return all(worker.pc in (IDLE, PIN, COMPUTE, *self.commit, *_SERVER) for worker in state.workers)

    # --- the link -------------------------------------------------------------------------------------------

    def _link_is_due(self, state: State) -> bool:
        """Return whether it has not made the sum of a step whose own shards are done."""
        step, kind, _ = state.phase
        if not state.remote or step == self.rounds:
            return False
        if not self.link_waits and kind == UPDATE and step + 1 < self.rounds and len(state.remote) == self.shards:
            return state.summed == step
        own = [word for number, word in enumerate(state.shards) if number not in state.remote]
        return kind == GRADIENT and state.summed != step and all(word[:2] == (step, DONE) for word in own)

    def _link(self, state: State) -> tuple[str, State]:
        link, step = state.link, state.link.step
        if link.pc == IDLE:
            begun = state.phase[0] + (state.summed == state.phase[0])
            return "begins to write the sum", state._replace(sum=-1, link=Link(SUM, begun))
        if link.pc == SUM:
            pc = ANNOUNCE if self.announces == "first" else LOAD
            own = [(number, word.buffer) for number, word in enumerate(state.shards) if number not in state.remote]
            right = all(state.buffers[buffer] == (number, step) for number, buffer in own)
            return "has written the sum", state._replace(sum=step if right else WRONG, link=Link(pc, step))
        if link.pc == ANNOUNCE:
            after = Link(LOAD, step) if self.announces == "first" else Link()
            return f"announces the sum of step {step}", state._replace(summed=step, link=after)
        shard = state.remote[link.at]
        word = state.shards[shard]
        if link.pc == LOAD:
            label = f"looks at shard {shard}: step {word.step}, {word.state}"
            if word[:2] == (step, DONE):
                return label, self._link_on(state)
            if not self.link_takes and word[:2] == (step, CLAIMED):
                return label, state
            settles = self.link_reaps and word.state == DONE and word.worker != LINK
            return label, state._replace(link=link._replace(pc=REAP_LOAD if settles else CLAIM, word=word))
        assert link.word is not None
        if link.pc in (REAP_LOAD, REAP):
            return self._link_reap(state, link.word)
        if link.pc == CLAIM:
            if word != link.word:
                return f"claims shard {shard} (CAS fails)", state._replace(link=Link(LOAD, step, link.at))
            claim = Task(step, CLAIMED, LINK, word.buffer)
            after = self._word(state, GRADIENT, shard, claim)
            return f"claims shard {shard}", after._replace(link=link._replace(pc=WRITE, word=claim))
        if link.pc == WRITE:
            after = _fill(state, link.word.buffer, (shard, LINK - step))
            return f"writes buffer {link.word.buffer}", after._replace(link=link._replace(pc=COMMIT))
        after = self._word(state, GRADIENT, shard, link.word._replace(state=DONE))
        return f"commits shard {shard}", self._link_on(after)

    def _link_on(self, state: State) -> State:
        """To the next remote shard."""
        link = state.link
        if link.at + 1 < len(state.remote):
            return state._replace(link=Link(LOAD, link.step, link.at + 1))
        return state._replace(link=Link() if self.announces == "first" else Link(ANNOUNCE, link.step))

    def _link_reap(self, state: State, word: Task) -> tuple[str, State]:
        link, shard = state.link, state.remote[state.link.at]
        record, name = state.rows[word.worker].record, f"worker {word.worker}'s record"
        if link.pc == REAP_LOAD:
            if record != Record(word.buffer, record.other, shard, word.step):
                return f"loads {name}: not of that commit", state._replace(link=link._replace(pc=CLAIM))
            return f"loads {name}", state._replace(link=link._replace(pc=REAP, record=record))
        assert link.record is not None
        after = state._replace(link=link._replace(pc=CLAIM, record=None))
        if record == link.record:
            after = _record(after, word.worker, Record(record.other, record.other))
        return f"settles {name}{_won(record == link.record)}", after

    # --- the server -----------------------------------------------------------------------------------------

    def _claims(self, state: State, row: int, kinds: tuple[str, ...]) -> list[tuple[str, int]]:
        """The tasks of these kinds that this worker has claimed."""
        words = [(kind, number, word) for kind in kinds for number, word in enumerate(self._words(state, kind))]
        return [(kind, number) for kind, number, word in words if word[1:3] == (CLAIMED, row)]

    def _free(self, state: State, kind: str, number: int) -> State:
        word = self._words(state, kind)[number]
        return self._word(state, kind, number, word._replace(state=FREE, worker=-1))

    def _stops_here(self, state: State, row: int) -> bool:
        pc = state.workers[row].pc
        claims = self._claims(state, row, (GRADIENT, NORM, UPDATE))
        return pc != IDLE and (self.stops_anywhere or pc in self.commit or claims != [])

    def _in_the_way(self, state: State, row: int) -> bool:
        """Return whether a stopped worker has a claim that the server would take."""
        kinds = self.gives_up + ((NORM, UPDATE) if self.kills_stopped else ())
        return self._claims(state, row, kinds) != []

    def _pass_over(self, state: State, row: int) -> tuple[str, State]:
        """Return the server's steps for a worker that it saw stopped, which may have continued since."""
        worker, name = state.workers[row], f"worker {row}"
        claims = self._claims(state, row, self.gives_up)
        if worker.server == "":
            after = _put(state, row, worker._replace(server=GIVES_UP if claims else KILLS))
            return f"server sees that {name} is stopped", after
        if worker.server == KILLS and self._claims(state, row, (NORM, UPDATE)):
            return f"server kills {name}", _put(state, row, _dead(worker))
        claims = claims if worker.server == GIVES_UP else []
        after = _put(state, row, worker._replace(server=""))
        for kind, number in claims:
            after = self._free(after, kind, number)
        return f"server takes from {name}: {claims}", after

    def _recover(self, state: State, row: int) -> tuple[str, State]:
        """board_recover: one step for a dead worker."""
        server, record, name = state.workers[row], state.rows[row].record, f"dead worker {row}'s"
        if server.pc == DEAD:
            claims = self._claims(state, row, self.recovers)
            if claims:
                kind, number = claims[0]
                return f"server frees {name} claim of {kind} {number}", self._free(state, kind, number)
            return f"server turns to {name} record", _put(state, row, server._replace(pc=SETTLE_LOAD))
        if server.pc == SETTLE_LOAD:
            if record.scratch == record.other:
                after = server._replace(pc=START, mine=record.scratch)
            else:
                after = server._replace(pc=SETTLE_WORD, record=record)
            return f"server loads {name} record: {record}", _put(state, row, after)
        if server.pc == SETTLE_WORD:
            loaded = server.record
            assert loaded is not None
            named = state.shards[loaded.shard].buffer
            mine = loaded.other if named == loaded.scratch else loaded.scratch
            if named not in (loaded.scratch, loaded.other) and self.neither == "other":
                mine = loaded.other
            label = f"server finds buffer {named} in shard {loaded.shard}: {mine} was {name}"
            return label, _put(state, row, server._replace(pc=SETTLE, mine=mine))
        if server.pc == SETTLE:
            if self.looks_again and record != server.record:
                again = server._replace(pc=SETTLE_LOAD, record=None, mine=-1)
                return f"server settles {name} record (CAS fails)", _put(state, row, again)
            after = _put(state, row, server._replace(pc=START, record=None))
            return f"server settles {name} record", _record(after, row, Record(server.mine, server.mine))
        # The dead worker's held word is zeroed. The content of its buffer no longer matters.
        after = _put(state, row, Worker())
        after = after._replace(rows=_with(state.rows, row, state.rows[row]._replace(scratch=server.mine)))
        return f"server starts another worker {row} with buffer {server.mine}", _fill(after, server.mine)


_NAMES = Worker._fields.index("word")
_SERVER = (DEAD, SETTLE_LOAD, SETTLE_WORD, SETTLE, START)


def _idle(worker: Worker) -> Worker:
    """Done with a task: a worker that remembers nothing."""
    return Worker(server=worker.server)


def _dead(worker: Worker) -> Worker:
    return Worker(DEAD, pinned=worker.pinned)


def _buffer(state: State, row: int) -> int:
    """The buffer that this worker may write into."""
    worker = state.workers[row]
    if worker.swapped:
        assert worker.word is not None
        return worker.word.buffer
    return state.rows[row].scratch


def _with(items: tuple, index: int, item: object) -> tuple:  # type: ignore[type-arg]
    """A tuple with one item changed."""
    return (*items[:index], item, *items[index + 1 :])


def _put(state: State, row: int, worker: Worker) -> State:
    return state._replace(workers=_with(state.workers, row, worker))


def _record(state: State, row: int, record: Record) -> State:
    return state._replace(rows=_with(state.rows, row, state.rows[row]._replace(record=record)))


def _fill(state: State, buffer: int, content: tuple[int, int] | int = 0) -> State:
    return state._replace(buffers=_with(state.buffers, buffer, content))


def _won(wins: bool) -> str:
    return "" if wins else " (CAS fails)"
