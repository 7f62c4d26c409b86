"""Sync training's board (`csrc/board.c`) as a model: every atomic access of the code is one step.

    phase     (step, GRADIENT, -) -> (step, UPDATE, target slot) -> (step + 1, GRADIENT, -)
              with clipping, (step, NORM, -) in between
    gradient  one word per shard: (step, FREE | CLAIMED | DONE, worker, buffer)
    norm      one word per range: (step, FREE | CLAIMED | DONE, worker), and one number per range
    update    one word per range: (step, FREE | CLAIMED | DONE, worker)
    record    two words per worker: scratch (its buffer), intent (step, shard, the shard's old buffer) or none

    board_next      load the phase; task_claim: load a word, compare-and-swap it, load the next one
    _compute        pin the weights; write half 0, half 1 of the scratch buffer
    board_commit    store the intent; swap the shard's word; store scratch = old; clear the intent
    phase_end_*     pick a slot, swap the phase; load latest, swap it, swap the phase
    norms_run       load the shards' words; write the range's number; swap its word; claim the next one
    updates_run     load latest; load the shards' words, the norms; write the range; swap its word; claim the next one
    board_recover   (the worker is dead) load its intent; load that shard's word: while its claim stands, the swap did
                    not happen, otherwise scratch = old; clear the intent; then free its claims; start another

Only dead workers lose claims: a stopped worker is waited for, so it needs no step here, it is one that nobody
schedules. `later_board_model.py` is the protocol that takes gradient tasks from stopped workers too.

Memory is sequentially consistent, pinning is one step, and so is scanning the held words for a free slot: fences
and pins are the channel model's subject. A load of a word that only its reader writes is part of the step after it.

Values are names. A slot's range contains the version that it is exactly right for, a gradient buffer's half contains
the (shard, step) of which it is exactly the gradient, a range's norm the step of whose gradients it is, and 0 (-1 in
a slot or a norm) is anything else. So a result is right if and only if every gradient was computed on whole, right
weights and counted exactly once, and scaled by the norms of all ranges.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

FREE, CLAIMED, DONE = "free", "claimed", "done"
GRADIENT, NORM, UPDATE = "gradient", "norm", "update"

IDLE, SCAN, CLAIM = "idle", "scan", "claim"
PIN, HALF_0, HALF_1 = "pin", "half 0", "half 1"
INTENT, SWAP, SCRATCH, CLEAR = "intent", "swap", "scratch", "clear"
MEASURE, PICK, MOVE, LATEST, PUBLISH, ADVANCE = "measure", "pick", "move", "latest", "publish", "advance"
SOURCE, COLLECT, NORMS, BEGIN, WRITE, FINISH = "source", "collect", "norms", "begin", "write", "finish"
DEAD, SETTLE_WORD, SETTLE_SCRATCH, SETTLE_CLEAR = "dead", "settle: word", "settle: scratch", "settle: clear"
FREE_LOAD, FREE_SWAP, START = "free: load", "free: swap", "start"

SETTLE, FREE_CLAIMS = "settle", "free claims"


class Task(NamedTuple):
    """A task's word. A range's names no buffer."""

    step: int
    state: str
    worker: int
    buffer: int = -1


class Intent(NamedTuple):
    """What a commit is about to do: the shard's word gives up the buffer `old`."""

    step: int
    shard: int
    old: int


class Record(NamedTuple):
    """A worker's two words."""

    scratch: int
    intent: Intent | None = None


Half: TypeAlias = tuple[int, int] | int
"""Half a gradient buffer: (shard, step), or 0."""


class Worker(NamedTuple):
    """What a process has in its registers; in a dead worker's row, what the server has."""

    pc: str = IDLE
    step: int = -1  # the phase that was loaded
    kind: str = GRADIENT
    slot: int = -1  # the target slot
    first: int = 0  # where a scan of words begins, how far it is, whether all were done
    at: int = 0
    done: bool = True
    word: Task | None = None  # what a swap expects; a claim
    task: int = -1
    swapped: bool = False  # the commit's swap happened, and the scratch word does not say so yet
    pinned: int = -1  # the held word: stays when the worker dies
    latest: tuple[int, int] | None = None
    buffers: tuple[int, ...] = ()  # of the shards, as an update has collected them
    norms: tuple[int, ...] = ()  # of the ranges, likewise
    source: int = -1  # what the range contained in the version before
    intent: Intent | None = None  # the server's: the dead worker's
    todo: tuple[str, ...] = ()  # the rest of a commit, or of a repair


class State(NamedTuple):
    """Shared memory first."""

    phase: tuple[int, str, int]
    latest: tuple[int, int]
    slots: tuple[tuple[int, ...], ...]
    shards: tuple[Task, ...]
    ranges: tuple[Task, ...]
    buffers: tuple[tuple[Half, Half], ...]
    records: tuple[Record, ...]
    workers: tuple[Worker, ...]
    kills: int
    stops: int
    measures: tuple[Task, ...] = ()  # the norms' words
    norms: tuple[int, ...] = ()


Step: TypeAlias = tuple[str, State, bool]


@dataclass(frozen=True, kw_only=True)
class Board:
    """One configuration. `commit` to the end: the code, and its mutants."""

    workers: int = 2
    shards: int = 2
    ranges: int = 2
    rounds: int = 2  # optimizer steps
    slots: int = 4
    kills: int = 1
    clips: bool = False  # gradients are clipped by their norm
    looks_around: bool = False  # idle workers look at any time, not only when there is something to do
    commit: tuple[str, ...] = (INTENT, SWAP, SCRATCH, CLEAR)
    recover: tuple[str, ...] = (SETTLE, FREE_CLAIMS)
    stands: Literal["exact", "any claim", "never"] = "exact"  # which word says that the swap did not happen
    stops: int = 0  # live workers whose gradient claim the server takes away
    norms_recovered: bool = True  # claims of norm tasks are freed as well
    shared_words: bool = False  # norm tasks have the updates' words
    in_place: bool = False  # updates write into latest's slot
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
            buffers=((0, 0),) * (self.shards + self.workers),
            records=tuple(Record(self.shards + row) for row in range(self.workers)),
            workers=(Worker(),) * self.workers,
            kills=self.kills,
            stops=self.stops,
            measures=tuple(Task(0, FREE, -1) for _ in range(self.ranges)) if self.clips else (),
            norms=(-1,) * self.ranges if self.clips else (),
        )

    def steps(self, state: State) -> Iterator[Step]:
        """The next step of every worker, of the server for each dead one, and the faults."""
        for row, worker in enumerate(state.workers):
            if worker.pc in _SERVER:
                yield (*self._server(state, row), False)
                continue
            if state.kills:
                dead = Worker(DEAD, pinned=worker.pinned, todo=self.recover)
                killed = _put(state, row, dead)._replace(kills=state.kills - 1)
                yield f"KILL worker {row} at '{worker.pc}'", killed, True
            if state.stops and worker.pc in (PIN, HALF_0, HALF_1, *self.commit):
                task = state.shards[worker.task]
                if task == worker.word:
                    freed = task._replace(state=FREE, worker=-1)
                    after = state._replace(shards=_with(state.shards, worker.task, freed), stops=state.stops - 1)
                    yield f"server frees LIVE worker {row}'s claim of shard {worker.task}", after, True
            if worker.pc != IDLE or self._wakes(state):
                label, after = self._worker(state, row)
                yield f"worker {row} {label}", after, False

    def key(self, state: State) -> Hashable:
        """Forget the names of buffers: number them as shards, records, then registers name them."""
        order = {-1: -1}

        def name(buffer: int) -> int:
            return order.setdefault(buffer, len(order) - 1)

        def words(task: Task | None) -> Hashable:
            return task and (*task[:3], name(task.buffer))

        def intents(intent: Intent | None) -> Hashable:
            return intent and (*intent[:2], name(intent.old))

        shards = tuple(map(words, state.shards))
        records = tuple((name(record.scratch), intents(record.intent)) for record in state.records)
        workers = tuple(
            (
                *worker._replace(word=None, buffers=(), intent=None),
                words(worker.word),
                tuple(map(name, worker.buffers)),
                intents(worker.intent),
            )
            for worker in state.workers
        )
        contents = tuple(state.buffers[buffer] for buffer in order if buffer >= 0)
        return (*state[:3], shards, state.ranges, contents, records, workers, *state[8:])

    def broken(self, state: State) -> str | None:
        """Check the promises."""
        version, slot = state.latest
        if state.slots[slot] != (version,) * self.ranges:
            return f"version {version} in slot {slot} is not right: its ranges are {state.slots[slot]}"
        owner = {shard.buffer: f"shard {number}" for number, shard in enumerate(state.shards)}
        if len(owner) < self.shards:
            return f"two shards name the same buffer: {[shard.buffer for shard in state.shards]}"
        for row, worker in enumerate(state.workers):
            if worker.pc in _SERVER and (worker.todo != () or state.records[row].intent is not None):
                continue  # its record has still to be settled
            mine = _buffer(state, row)
            if mine in owner:
                return f"buffer {mine} belongs to {owner[mine]} and to worker {row}"
            owner[mine] = f"worker {row}"
            pinned = worker.pinned >= 0 and worker.pc not in _SERVER
            if pinned and state.slots[worker.pinned] != (worker.step,) * self.ranges:
                found = state.slots[worker.pinned]
                return f"worker {row} works on version {worker.step}, and has pinned {found}"
        step, kind, _ = state.phase
        if version != step and (version, kind) != (step + 1, UPDATE):
            return f"step {step} has version {version}"
        return None

    def finished(self, state: State) -> bool:
        """Whether the last step's version is published and every worker is idle."""
        return state.phase[0] == self.rounds and all(worker.pc == IDLE for worker in state.workers)

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
        parts |= {f"buffer {number}": f"{a} {b}" for number, (a, b) in enumerate(state.buffers)}
        parts |= {f"record {row}": f"scratch {r.scratch}, {r.intent}" for row, r in enumerate(state.records)}
        parts |= {f"worker {row}": f"next: {worker.pc}" for row, worker in enumerate(state.workers)}
        return parts

    # --- a worker: board_next -------------------------------------------------------------------------------

    def _wakes(self, state: State) -> bool:
        """Whether an idle worker looks at the board: it sleeps while it would find nothing to do."""
        step, kind, _ = state.phase
        if step == self.rounds or self.looks_around:
            return step < self.rounds
        words = self._words(state, kind)
        return any(self._claimable(word, step) for word in words) or all(word[:2] == (step, DONE) for word in words)

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
            scan = Worker(SCAN, step, kind, slot, first)
            return f"loads the phase: step {step}, {kind}", _put(state, row, scan)
        if worker.pc in (SCAN, CLAIM):
            return self._claim(state, row)
        if worker.pc in (MEASURE, PICK, MOVE, LATEST, PUBLISH, ADVANCE):
            return self._end_phase(state, row)
        if worker.kind != GRADIENT and worker.pc == COLLECT:
            return self._collect(state, row)
        if worker.kind == NORM:
            return self._norm(state, row)
        if worker.kind == UPDATE:
            return self._update(state, row)
        if worker.pc in (PIN, HALF_0, HALF_1):
            return self._compute(state, row)
        return self._commit(state, row)

    def _claim(self, state: State, row: int) -> tuple[str, State]:
        """task_claim: one load, or one swap."""
        worker = state.workers[row]
        name, words = {GRADIENT: "shard", NORM: "norm", UPDATE: "range"}[worker.kind], self._words(state, worker.kind)
        number = (worker.first + worker.at) % len(words)
        if worker.pc == SCAN:
            word = words[number]
            label = f"looks at {name} {number}: step {word.step}, {word.state}"
            if self._claimable(word, worker.step):
                return label, _put(state, row, worker._replace(pc=CLAIM, word=word, done=False))
            done = worker.done and word[:2] == (worker.step, DONE)
            return label, _put(state, row, self._look_on(worker._replace(done=done), len(words)))
        label = f"claims {name} {number} of step {worker.step}"
        if words[number] != worker.word:
            return label + " (CAS fails)", _put(state, row, self._look_on(worker, len(words)))
        claim = Task(worker.step, CLAIMED, row, worker.word.buffer)
        begin = {GRADIENT: PIN, NORM: COLLECT, UPDATE: SOURCE}[worker.kind]
        pc = BEGIN if worker.buffers else begin
        after = _put(state, row, worker._replace(pc=pc, word=claim, task=number, first=0, at=0, done=True))
        return label, self._word(after, worker.kind, number, claim)

    def _look_on(self, worker: Worker, count: int) -> Worker:
        """After a word that could not be claimed: the next one, or the end of the scan."""
        if worker.at + 1 < count:
            return worker._replace(pc=SCAN, at=worker.at + 1, word=None)
        if not worker.done:
            return Worker()
        pc = {GRADIENT: MEASURE if self.clips else PICK, NORM: PICK, UPDATE: LATEST}[worker.kind]
        return Worker(pc, worker.step, worker.kind, worker.slot)

    def _end_phase(self, state: State, row: int) -> tuple[str, State]:
        worker = state.workers[row]
        step, slot = worker.step, worker.slot
        if worker.pc == MEASURE:
            after = _put(state, row, Worker())
            moves = state.phase == (step, GRADIENT, -1)
            if moves:
                after = after._replace(phase=(step, NORM, -1))
            return f"moves the phase to the norms{_won(moves)}", after
        if worker.pc == PICK:
            taken = {state.latest[1], *(other.pinned for other in state.workers)}
            slot = state.latest[1] if self.in_place else min(set(range(self.slots)) - taken)
            return f"picks slot {slot}", _put(state, row, worker._replace(pc=MOVE, slot=slot))
        if worker.pc == MOVE:
            after = _put(state, row, Worker())
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
        after = _put(state, row, Worker())
        moves = state.phase == (step, UPDATE, slot)
        if moves:
            after = after._replace(phase=(step + 1, GRADIENT, -1))
        return f"moves the phase to step {step + 1}{_won(moves)}", after

    # --- a gradient task ------------------------------------------------------------------------------------

    def _compute(self, state: State, row: int) -> tuple[str, State]:
        worker = state.workers[row]
        if worker.pc == PIN:
            version, slot = state.latest
            return f"pins version {version}", _put(state, row, worker._replace(pc=HALF_0, pinned=slot))
        scratch = state.records[row].scratch
        half = int(worker.pc == HALF_1)
        right = state.slots[worker.pinned] == (worker.step,) * self.ranges
        content = _with(state.buffers[scratch], half, (worker.task, worker.step) if right else 0)
        worker = worker._replace(pc=HALF_1)
        if half == 1:
            worker = worker._replace(pc=self.commit[0], todo=self.commit[1:], pinned=-1)
        after = _put(state, row, worker)._replace(buffers=_with(state.buffers, scratch, content))
        return f"writes half {half} of shard {worker.task} into buffer {scratch}", after

    def _commit(self, state: State, row: int) -> tuple[str, State]:
        worker = state.workers[row]
        step, shard = worker.step, worker.task
        assert worker.word is not None
        old, record = worker.word.buffer, state.records[row]
        idle = worker._replace(pc=worker.todo[0], todo=worker.todo[1:]) if worker.todo else Worker()
        if worker.pc == SWAP:
            if state.shards[shard] != worker.word:
                end = worker._replace(pc=CLEAR, todo=()) if CLEAR in self.commit else Worker()
                return f"commits shard {shard} (CAS fails)", _put(state, row, end)
            after = _put(state, row, idle._replace(swapped=True))
            # What a scratch buffer contains counts no more.
            after = after._replace(buffers=_with(state.buffers, old, (0, 0)))
            label = f"commits shard {shard} with buffer {record.scratch}"
            return label, self._word(after, GRADIENT, shard, Task(step, DONE, row, record.scratch))
        if worker.pc == INTENT:
            label, record = f"stores its intent: buffer {old} out", record._replace(intent=Intent(step, shard, old))
        elif worker.pc == SCRATCH:
            label, record = f"stores that buffer {old} is its scratch", record._replace(scratch=old)
            idle = idle._replace(swapped=False)
        else:
            label, record = "clears its intent", record._replace(intent=None)
        return label, _put(state, row, idle)._replace(records=_with(state.records, row, record))

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
        gradients = [state.buffers[buffer][worker.task % 2] for buffer in worker.buffers]
        return gradients == [(shard, worker.step) for shard in range(self.shards)]

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

    # --- the server: board_recover --------------------------------------------------------------------------

    def _server(self, state: State, row: int) -> tuple[str, State]:
        """One step for a dead worker. `todo` is what is left of the repair; () once the record is settled."""
        server, record, name = state.workers[row], state.records[row], f"dead worker {row}'s"
        if server.pc == DEAD:
            intent = record.intent
            if server.todo[:1] == (SETTLE,):
                if intent is None:
                    return f"server finds {name} intent: none", _put(state, row, self._settled(server))
                after = _put(state, row, server._replace(pc=SETTLE_WORD, intent=intent))
                return f"server loads {name} intent: {intent}", after
            pc = FREE_LOAD if server.todo else START
            return f"server turns to {name} claims", _put(state, row, server._replace(pc=pc))
        if server.pc == SETTLE_WORD:
            intent = server.intent
            assert intent is not None
            word = state.shards[intent.shard]
            stands = {
                "exact": word[:3] == (intent.step, CLAIMED, row),
                "any claim": word.state == CLAIMED,
                "never": False,
            }[self.stands]
            label = f"server looks at shard {intent.shard}: " + ("claimed still" if stands else "the swap happened")
            return label, _put(state, row, server._replace(pc=SETTLE_CLEAR if stands else SETTLE_SCRATCH))
        if server.pc == SETTLE_SCRATCH:
            assert server.intent is not None
            settled = record._replace(scratch=server.intent.old)
            after = _put(state, row, server._replace(pc=SETTLE_CLEAR))
            label = f"server stores {name} scratch: buffer {settled.scratch}"
            return label, after._replace(records=_with(state.records, row, settled))
        if server.pc == SETTLE_CLEAR:
            after = _put(state, row, self._settled(server))
            settled = record._replace(intent=None)
            return f"server clears {name} intent", after._replace(records=_with(state.records, row, settled))
        if server.pc in (FREE_LOAD, FREE_SWAP):
            return self._free(state, row)
        # The dead worker's held word is zeroed. What its buffer contains counts no more.
        after = _put(state, row, Worker())
        after = after._replace(buffers=_with(state.buffers, record.scratch, (0, 0)))
        return f"server starts another worker {row} with buffer {record.scratch}", after

    def _settled(self, server: Worker) -> Worker:
        after = server._replace(intent=None, todo=server.todo[1:])
        return after._replace(pc=FREE_LOAD if after.todo else START)

    def _free(self, state: State, row: int) -> tuple[str, State]:
        """claims_free, for the shards' words, then the norms' and the ranges': one load, or one swap."""
        server = state.workers[row]
        kinds = (GRADIENT,) * self.shards
        if self.clips and self.norms_recovered:
            kinds += (NORM,) * self.ranges
        kinds += (UPDATE,) * self.ranges
        kind = kinds[server.at]
        number = server.at - kinds.index(kind)
        word = self._words(state, kind)[number]
        onward = server._replace(pc=FREE_LOAD, at=server.at + 1, word=None)
        if onward.at == len(kinds):
            todo = server.todo[1:]
            onward = onward._replace(pc=DEAD if todo else START, at=0, todo=todo)
        name = f"{kind} task {number}"
        if server.pc == FREE_LOAD:
            if word[1:3] == (CLAIMED, row):
                onward = server._replace(pc=FREE_SWAP, word=word)
            return f"server looks at {name}: {word.state}", _put(state, row, onward)
        after = _put(state, row, onward)
        if word == server.word:
            after = self._word(after, kind, number, word._replace(state=FREE, worker=-1))
        return f"server frees dead worker {row}'s claim of {name}{_won(word == server.word)}", after


_SERVER = (DEAD, SETTLE_WORD, SETTLE_SCRATCH, SETTLE_CLEAR, FREE_LOAD, FREE_SWAP, START)


def _buffer(state: State, row: int) -> int:
    """The buffer that this worker may write into."""
    worker, record = state.workers[row], state.records[row]
    if worker.swapped:
        assert worker.word is not None
        return worker.word.buffer
    return record.scratch


def _with(items: tuple, index: int, item: object) -> tuple:  # type: ignore[type-arg]
    """A tuple with one item changed."""
    return (*items[:index], item, *items[index + 1 :])


def _put(state: State, row: int, worker: Worker) -> State:
    return state._replace(workers=_with(state.workers, row, worker))


def _won(wins: bool) -> str:
    return "" if wins else " (CAS fails)"
