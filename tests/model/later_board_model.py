"""NOT what the code does (that is `board_model.py`): the board of a later version, which does not wait for a stopped
worker but gives its gradient task to another. Then "the claim is gone" says no more that the swap happened, so a dead
worker's commit is told from what the shard's word names, and whoever claims a shard settles the record of the worker
whose commit it is about to bury.

    phase     (step, GRADIENT, -) -> (step, UPDATE, target slot) -> (step + 1, GRADIENT, -)
    gradient  one word per shard: (step, FREE | CLAIMED | DONE, worker, buffer)
    update    one word per range: (step, FREE | CLAIMED | DONE, worker)
    record    one word per row: which buffer is this worker's, or which two a commit is about to swap

    worker    load phase; pin the weights; claim a shard (CAS), but first resolve the record of the worker
              whose commit that word still names; write half 0, half 1 of its scratch buffer; store in its
              record the intent (scratch, the shard's buffer, shard, step); commit: one CAS puts the scratch
              into the shard's word, and the buffer that was there is the worker's scratch from now on
              all shards done: pick a slot, CAS the phase to UPDATE; claim a range; write it; CAS it done
              all ranges done: CAS latest to (step + 1, target), then CAS the phase to the next step
    server    frees a dead worker's claims (CAS); finds out which buffer was its: if the shard's word names
              the intent's scratch, the commit happened, and the other is its; else the scratch is;
              writes that into the record (CAS; failed, look again); starts another worker in the row.
              Gives up on a stopped worker: frees its gradient claim, no more

Why claiming has to resolve the record: an intent can be told from a finished commit only as long as the
shard's word still names what was committed. The next step's commit buries that: the word names neither.

Memory is sequentially consistent and pinning is one step: the fences and the pin are the channel model's
subject. A load and the compare-and-swap that depends on it are one step: were the word to change between,
the swap would fail and be tried again.

Values are names. A slot's range contains the version that it is exactly right for, a gradient buffer's half
contains the (shard, step) of which it is exactly the gradient, and 0 (-1 in a slot) is anything else. So a
result is right if and only if every gradient was computed on whole, right weights and counted exactly once.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

FREE, CLAIMED, DONE = "free", "claimed", "done"
GRADIENT, UPDATE = "gradient", "update"

IDLE, PIN, CLAIM, HALF_0, HALF_1, INTENT, COMMIT, RECORD = (
    "idle", "pin", "claim", "half 0", "half 1", "intent", "commit", "record",
)  # fmt: skip
MOVE, TAKE, BEGIN, WRITE, FINISH, PUBLISH, ADVANCE = (
    "move", "take", "begin", "write", "finish", "publish", "advance",
)  # fmt: skip
DEAD, LOAD_WORD, SETTLE = "dead", "dead, record loaded", "dead, buffer known"

GRADIENT_CLAIMED = (HALF_0, HALF_1, INTENT, COMMIT)
UPDATE_CLAIMED = (BEGIN, WRITE, FINISH)


class Shard(NamedTuple):
    """A gradient task's word."""

    step: int
    state: str
    worker: int
    buffer: int


class Range(NamedTuple):
    """An update task's word."""

    step: int
    state: str
    worker: int


class Intent(NamedTuple):
    """A record while a commit may be under way: the worker's buffer is one of these two."""

    scratch: int
    other: int
    shard: int
    step: int


Record: TypeAlias = Intent | int
"""What a row's record says: the buffer that is the worker's, or the intent to swap it."""

Half: TypeAlias = tuple[int, int] | int
"""Half a gradient buffer: (shard, step), or 0."""


class Worker(NamedTuple):
    """A row: a worker's own state, or the server's business with a dead one."""

    scratch: int
    pc: str = IDLE
    step: int = -1  # the step that it is working for
    task: int = -1  # a shard or a range
    other: int = -1  # the buffer that the claimed shard's word names
    slot: int = -1  # the target slot
    pinned: int = -1  # the row's held word: stays when the worker dies
    source: int = -1  # what the range contained in the version before
    stopped: bool = False
    loaded: Record = -1  # the server's: the dead worker's record


class State(NamedTuple):
    """Shared memory first."""

    phase: tuple[int, str, int]
    latest: tuple[int, int]
    slots: tuple[tuple[int, ...], ...]
    shards: tuple[Shard, ...]
    ranges: tuple[Range, ...]
    buffers: tuple[tuple[Half, Half], ...]
    records: tuple[Record, ...]
    workers: tuple[Worker, ...]
    kills: int
    stops: int


Step: TypeAlias = tuple[str, State, bool]


@dataclass(frozen=True, kw_only=True)
class Board:
    """One configuration. `settle` to the end: the protocol, its rivals and its mutants.

    settle: how a record's intent is resolved. "claim": whoever claims a shard first resolves the intent of
    the worker whose commit it is about to bury. "self": the worker after its commit. "never": only the
    server, after a death, by looking which of the two buffers the shard's word does not name.
    """

    workers: int = 2
    shards: int = 2
    ranges: int = 2
    rounds: int = 2  # optimizer steps
    slots: int = 4
    kills: int = 1
    stops: int = 1
    settle: Literal["claim", "self", "never"] = "claim"
    intent: bool = True  # the record says before the commit what the commit will do
    in_place: bool = False  # updates write into latest's slot
    gives_up_updates: bool = False  # a stopped worker's update claim is freed too
    later_is_free: bool = False  # a worker claims every word that does not say "my step, claimed or done"
    server_settles: bool = True  # the server resolves a dead worker's intent with a CAS, or looks again
    neither: Literal["scratch", "other"] = "scratch"  # the guess where the shard's word names neither buffer
    server_frees: bool = True  # the server frees a dead worker's claims

    # --- the model ------------------------------------------------------------------------------------------

    def initial(self) -> State:
        """Version 0 is in slot 0; nothing of step 0 is done."""
        return State(
            phase=(0, GRADIENT, -1),
            latest=(0, 0),
            slots=tuple((0 if slot == 0 else -1,) * self.ranges for slot in range(self.slots)),
            shards=tuple(Shard(-1, DONE, -1, shard) for shard in range(self.shards)),
            ranges=tuple(Range(-1, DONE, -1) for _ in range(self.ranges)),
            buffers=((0, 0),) * (self.shards + self.workers),
            records=tuple(self.shards + row for row in range(self.workers)),
            workers=tuple(Worker(self.shards + row) for row in range(self.workers)),
            kills=self.kills,
            stops=self.stops,
        )

    def steps(self, state: State) -> Iterator[Step]:
        """Every step of every worker, and of the server for each dead one."""
        for row, worker in enumerate(state.workers):
            if worker.pc in (DEAD, LOAD_WORD, SETTLE):
                yield from self._server(state, row)
                continue
            if state.kills:
                dead = Worker(-1, DEAD, pinned=worker.pinned)
                killed = _put(state, row, dead)._replace(kills=state.kills - 1)
                yield f"KILL worker {row} at '{worker.pc}'", killed, True
            if worker.stopped:
                awake = _put(state, row, worker._replace(stopped=False))
                yield f"stopped worker {row} goes on", awake, True
                continue
            if state.stops:
                yield from self._give_up(state, row)
            if worker.pc in (IDLE, MOVE, PUBLISH, ADVANCE):
                yield from self._turn(state, row)
            elif worker.pc in (PIN, CLAIM, RECORD, *GRADIENT_CLAIMED):
                yield from self._gradient(state, row)
            else:
                yield from self._update(state, row)

    def key(self, state: State) -> Hashable:
        """Forget the names of buffers: number them as shards, then workers, then records name them."""
        order: dict[int, int] = {-1: -1}
        for shard in state.shards:
            order.setdefault(shard.buffer, len(order) - 1)
        for worker in state.workers:
            order.setdefault(worker.scratch, len(order) - 1)
        for record in (*state.records, *(w.loaded for w in state.workers)):
            for buffer in (record[0], record[1]) if isinstance(record, tuple) else (record,):
                order.setdefault(buffer, len(order) - 1)
        contents = tuple(state.buffers[buffer] for buffer in order if buffer >= 0)

        def renamed(record: Record) -> Hashable:
            if isinstance(record, tuple):
                return order[record[0]], order[record[1]], record[2], record[3]
            return order[record]

        return (
            state.phase,
            state.latest,
            state.slots,
            tuple((s.step, s.state, s.worker, order[s.buffer]) for s in state.shards),
            state.ranges,
            contents,
            tuple(map(renamed, state.records)),
            tuple(
                (order[w.scratch], *w[1:4], order.get(w.other, w.other), *w[5:9], renamed(w.loaded))
                for w in state.workers
            ),
            state.kills,
            state.stops,
        )

    def broken(self, state: State) -> str | None:
        """Check the promises."""
        version, slot = state.latest
        if state.slots[slot] != (version,) * self.ranges:
            return f"version {version} in slot {slot} is not right: its ranges are {state.slots[slot]}"
        owner = {shard.buffer: f"shard {number}" for number, shard in enumerate(state.shards)}
        if len(owner) < self.shards:
            return f"two shards name the same buffer: {[shard.buffer for shard in state.shards]}"
        for row, worker in enumerate(state.workers):
            if worker.scratch < 0:
                continue
            if worker.scratch in owner:
                return f"buffer {worker.scratch} belongs to {owner[worker.scratch]} and to worker {row}"
            owner[worker.scratch] = f"worker {row}"
            if worker.pinned >= 0 and state.slots[worker.pinned] != (worker.step,) * self.ranges:
                return f"worker {row} has pinned version {worker.step}, and finds {state.slots[worker.pinned]}"
        step, kind, _ = state.phase
        if version != step and (version, kind) != (step + 1, UPDATE):
            return f"step {step} has version {version}"
        return None

    def finished(self, state: State) -> bool:
        """Whether the last step's version is published and every worker alive is idle or stopped."""
        return state.phase[0] == self.rounds and all(w.pc == IDLE or w.stopped for w in state.workers)

    def show(self, state: State) -> dict[str, str]:
        """Name the parts of a state, for a trace."""
        step, kind, slot = state.phase
        parts = {"phase": f"step {step}, {kind}" + (f" into slot {slot}" if slot >= 0 else "")}
        parts["latest"] = f"version {state.latest[0]} in slot {state.latest[1]}"
        parts |= {f"slot {number}": f"ranges {ranges}" for number, ranges in enumerate(state.slots)}
        for number, shard in enumerate(state.shards):
            word = f"step {shard.step}, {shard.state}, worker {shard.worker}, buffer {shard.buffer}"
            parts[f"shard {number}"] = word
        for number, task in enumerate(state.ranges):
            parts[f"range {number}"] = f"step {task.step}, {task.state}, worker {task.worker}"
        parts |= {f"buffer {number}": f"{a} {b}" for number, (a, b) in enumerate(state.buffers)}
        parts |= {f"record {row}": f"{record}" for row, record in enumerate(state.records)}
        for row, worker in enumerate(state.workers):
            scratch = f", scratch buffer {worker.scratch}" if worker.scratch >= 0 else ""
            parts[f"worker {row}"] = worker.pc + scratch + (", stopped" if worker.stopped else "")
        return parts

    # --- a worker's turn: what to do next, and moving the job on --------------------------------------------

    def _turn(self, state: State, row: int) -> Iterator[Step]:
        worker = state.workers[row]
        step, kind, target = state.phase
        name = f"worker {row}"
        if worker.pc == IDLE:
            if step == self.rounds:
                return
            tasks: tuple[Shard | Range, ...] = state.shards if kind == GRADIENT else state.ranges
            label = f"{name} loads the phase: step {step}, {kind}"
            if any(self._claimable(task, step) for task in tasks):
                pc = PIN if kind == GRADIENT else TAKE
                yield label, _put(state, row, worker._replace(pc=pc, step=step, slot=target)), False
            elif all((task.step, task.state) == (step, DONE) for task in tasks):
                pc = MOVE if kind == GRADIENT else PUBLISH
                slot = self._free_slot(state) if kind == GRADIENT else target
                label += ", all done" + (f", picks slot {slot}" if pc == MOVE else "")
                yield label, _put(state, row, worker._replace(pc=pc, step=step, slot=slot)), False
            # Nothing to claim, nothing to move on: it sleeps until that changes.
        elif worker.pc == MOVE:
            moves = state.phase == (worker.step, GRADIENT, -1)
            after = _put(state, row, _idle(worker))
            if moves:
                after = after._replace(phase=(worker.step, UPDATE, worker.slot))
                if not self.in_place:
                    after = after._replace(slots=_with(state.slots, worker.slot, (-1,) * self.ranges))
            yield f"{name} moves the phase to update into slot {worker.slot}{_won(moves)}", after, False
        elif worker.pc == PUBLISH:
            moves = state.latest[0] == worker.step
            after = _put(state, row, worker._replace(pc=ADVANCE))
            if moves:
                after = after._replace(latest=(worker.step + 1, worker.slot))
            yield (
                f"{name} publishes version {worker.step + 1} in slot {worker.slot}{_won(moves)}",
                after,
                False,
            )
        elif worker.pc == ADVANCE:
            moves = state.phase == (worker.step, UPDATE, worker.slot)
            after = _put(state, row, _idle(worker))
            if moves:
                after = after._replace(phase=(worker.step + 1, GRADIENT, -1))
            yield f"{name} moves the phase to step {worker.step + 1}{_won(moves)}", after, False

    def _claimable(self, task: Shard | Range, step: int) -> bool:
        if self.later_is_free:
            return not (task.step == step and task.state != FREE)
        return task.step < step or (task.step == step and task.state == FREE)

    def _free_slot(self, state: State) -> int:
        if self.in_place:
            return state.latest[1]
        taken = {state.latest[1], *(worker.pinned for worker in state.workers)}
        return min(set(range(self.slots)) - taken)

    # --- a gradient task ------------------------------------------------------------------------------------

    def _gradient(self, state: State, row: int) -> Iterator[Step]:
        worker = state.workers[row]
        name, step, task = f"worker {row}", worker.step, worker.task
        if worker.pc == PIN:
            version, slot = state.latest
            if version == step:
                after = _put(state, row, worker._replace(pc=CLAIM, pinned=slot))
                yield f"{name} pins version {version}", after, False
            else:
                yield f"{name} pins version {version}: not its step's", _put(state, row, _idle(worker)), False
        elif worker.pc == CLAIM:
            claimable = [n for n, shard in enumerate(state.shards) if self._claimable(shard, step)]
            for number in claimable:
                yield self._claim_shard(state, row, number)
            if not claimable:
                yield f"{name} finds no shard to claim", _put(state, row, _idle(worker)), False
        elif worker.pc in (HALF_0, HALF_1):
            half = int(worker.pc == HALF_1)
            right = state.slots[worker.pinned] == (step,) * self.ranges
            content = _with(state.buffers[worker.scratch], half, (task, step) if right else 0)
            after = _put(state, row, worker._replace(pc=self._after_half(half)))
            after = after._replace(buffers=_with(state.buffers, worker.scratch, content))
            yield f"{name} writes half {half} of shard {task} into buffer {worker.scratch}", after, False
        elif worker.pc == INTENT:
            intent = Intent(worker.scratch, worker.other, task, step)
            after = _put(state, row, worker._replace(pc=COMMIT))
            after = after._replace(records=_with(state.records, row, intent))
            yield f"{name} records that it swaps buffer {worker.scratch} for {worker.other}", after, False
        elif worker.pc == COMMIT:
            wins = state.shards[task] == Shard(step, CLAIMED, row, worker.other)
            mine = worker.other if wins else worker.scratch
            idle = _idle(worker)._replace(scratch=mine)
            if wins and (self.settle == "self" or not self.intent):
                idle = idle._replace(pc=RECORD)
            # What a scratch buffer contains counts no more.
            after = _put(state, row, idle)._replace(buffers=_with(state.buffers, mine, (0, 0)))
            if wins:
                done = Shard(step, DONE, row, worker.scratch)
                after = after._replace(shards=_with(state.shards, task, done))
            yield f"{name} commits shard {task}{_won(wins)}: its scratch is buffer {mine}", after, False
        else:
            after = _put(state, row, _idle(worker))
            after = after._replace(records=_with(state.records, row, worker.scratch))
            yield f"{name} records that buffer {worker.scratch} is its scratch", after, False

    def _after_half(self, half: int) -> str:
        if half == 0:
            return HALF_1
        return INTENT if self.intent else COMMIT

    def _claim_shard(self, state: State, row: int, number: int) -> Step:
        """Claim, or first resolve the intent of the worker whose commit the claim is about to bury."""
        shard = state.shards[number]
        if self.settle == "claim" and shard.state == DONE and shard.worker >= 0:
            record = state.records[shard.worker]
            buried = (shard.buffer, number, shard.step)
            if isinstance(record, tuple) and (record.scratch, record.shard, record.step) == buried:
                settled = state._replace(records=_with(state.records, shard.worker, record.other))
                label = f"worker {row} resolves row {shard.worker}'s record: buffer {record.other}"
                return label, settled, False
        worker = state.workers[row]
        claimed = Shard(worker.step, CLAIMED, row, shard.buffer)
        after = _put(state, row, worker._replace(pc=HALF_0, task=number, other=shard.buffer))
        after = after._replace(shards=_with(state.shards, number, claimed))
        return f"worker {row} claims shard {number} of step {worker.step}", after, False

    # --- an update task -------------------------------------------------------------------------------------

    def _update(self, state: State, row: int) -> Iterator[Step]:
        worker = state.workers[row]
        name, step, task = f"worker {row}", worker.step, worker.task
        if worker.pc == TAKE:
            claimable = [n for n, word in enumerate(state.ranges) if self._claimable(word, step)]
            for number in claimable:
                after = _put(state, row, worker._replace(pc=BEGIN, task=number))
                after = after._replace(ranges=_with(state.ranges, number, Range(step, CLAIMED, row)))
                yield f"{name} claims range {number} of step {step}", after, False
            if not claimable:
                yield f"{name} finds no range to claim", _put(state, row, _idle(worker)), False
        elif worker.pc == BEGIN:
            source = state.slots[state.latest[1]][task]
            after = self._write(state, worker.slot, task, -1)
            after = _put(after, row, worker._replace(pc=WRITE, source=source))
            yield f"{name} begins to write range {task} into slot {worker.slot}", after, False
        elif worker.pc == WRITE:
            gradients = [state.buffers[shard.buffer][task % 2] for shard in state.shards]
            right = worker.source == step and gradients == [(shard, step) for shard in range(self.shards)]
            after = self._write(state, worker.slot, task, step + 1 if right else -1)
            after = _put(after, row, worker._replace(pc=FINISH))
            yield f"{name} has written range {task} into slot {worker.slot}", after, False
        else:
            wins = state.ranges[task] == Range(step, CLAIMED, row)
            after = _put(state, row, _idle(worker))
            if wins:
                after = after._replace(ranges=_with(state.ranges, task, Range(step, DONE, row)))
            yield f"{name} commits range {task} of step {step}{_won(wins)}", after, False

    def _write(self, state: State, slot: int, task: int, value: int) -> State:
        return state._replace(slots=_with(state.slots, slot, _with(state.slots[slot], task, value)))

    # --- the server -----------------------------------------------------------------------------------------

    def _give_up(self, state: State, row: int) -> Iterator[Step]:
        """Free the claim of a worker that is stopped, not dead: it may go on at any time, or never."""
        worker = state.workers[row]
        stopped = worker._replace(stopped=True)
        name = "shard"
        words: tuple[Shard | Range, ...] = state.shards if worker.pc in GRADIENT_CLAIMED else ()
        if worker.pc in UPDATE_CLAIMED and self.gives_up_updates:
            name, words = "range", state.ranges
        if words and (words[worker.task][:3]) == (worker.step, CLAIMED, row):
            after = _free(_put(state, row, stopped), name, worker.task)._replace(stops=state.stops - 1)
            yield f"worker {row} STOPS: the server frees its claim of {name} {worker.task}", after, True

    def _server(self, state: State, row: int) -> Iterator[Step]:
        """A row whose lock the server has won: free its claims, find its buffer, start another worker."""
        worker = state.workers[row]
        if worker.pc == DEAD:
            tasks: dict[str, tuple[Shard | Range, ...]] = {"shard": state.shards, "range": state.ranges}
            for name, words in tasks.items():
                for number, task in enumerate(words):
                    if (task.state, task.worker) == (CLAIMED, row) and self.server_frees:
                        freed = _free(state, name, number)
                        yield f"server frees dead worker {row}'s claim of {name} {number}", freed, False
                        return
            record = state.records[row]
            if isinstance(record, tuple):
                after = _put(state, row, Worker(-1, LOAD_WORD, loaded=record))
                yield f"server zeroes row {row}'s held word, loads its record: {record}", after, False
            else:
                after = _put(state, row, Worker(record))
                yield f"server starts another worker {row} with buffer {record}", after, False
        elif worker.pc == LOAD_WORD:
            intent = worker.loaded
            assert isinstance(intent, tuple)
            named = state.shards[intent.shard].buffer
            mine = intent.other if named == intent.scratch else intent.scratch
            if named not in intent[:2] and self.neither == "other":
                mine = intent.other
            after = _put(state, row, worker._replace(pc=SETTLE, other=mine))
            yield (
                f"server finds buffer {named} in shard {intent.shard}'s word: {mine} was row {row}'s",
                after,
                False,
            )
        elif self.server_settles and state.records[row] != worker.loaded:
            yield f"server finds row {row}'s record resolved", _put(state, row, Worker(-1, DEAD)), False
        else:
            after = _put(state, row, Worker(worker.other))
            after = after._replace(records=_with(state.records, row, worker.other))
            yield f"server starts another worker {row} with buffer {worker.other}", after, False


def _with(items: tuple, index: int, item: object) -> tuple:  # type: ignore[type-arg]
    """A tuple with one item changed."""
    return (*items[:index], item, *items[index + 1 :])


def _put(state: State, row: int, worker: Worker) -> State:
    return state._replace(workers=_with(state.workers, row, worker))


def _free(state: State, name: str, number: int) -> State:
    """Hand a claimed task back."""
    if name == "shard":
        free = state.shards[number]._replace(state=FREE, worker=-1)
        return state._replace(shards=_with(state.shards, number, free))
    return state._replace(ranges=_with(state.ranges, number, Range(state.ranges[number].step, FREE, -1)))


def _idle(worker: Worker) -> Worker:
    """Done with a task: nothing is pinned, nothing remembered but the scratch buffer."""
    return Worker(worker.scratch)


def _won(wins: bool) -> str:
    return "" if wins else " (CAS fails)"
