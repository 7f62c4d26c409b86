"""The channel's protocol (`csrc/channel.c`) as a model of holding and writing slots.

    writer   FENCE; load every row's words, one at a time; pick a slot that is not latest and that no row
             holds; store half 1; store half 2; store latest (release)
    reader   load latest; store its held word with the slot's bit; FENCE; load latest again: unmoved, the
             snapshot is held; moved, clear the bit and try again; after `tries` tries, fall back
    release  store the held word without the bit

A payload is two halves, written in two steps: a torn read is a pair of unequal halves. Reading is not a step
here: the checker demands in *every* state that each held slot is whole and of its version, so a read may be
cut into any pieces and done at any time while the snapshot is held.

Stores go to the process's own store buffer and reach memory later, one at a time:

    "sc"   before the process does anything else: the memory that nobody has
    "tso"  first in, first out: x86-64
    "pso"  in any order, except that stores to one word stay in order and a release store waits for those
           before it: the stores of aarch64. (Loads stay in order in all three.)

FENCE waits until the buffer is empty. Steps that touch nothing shared are merged with the one before: a
process killed or stopped between the two has done nothing that others could see. A kill therefore drops the
buffer: that is the kill that came before those stores; the kill after them is a kill after they drained.

Versions, kills and restarts are unlimited. The key keeps the model finite: versions count only by their
order, and the content of a slot only while some process can still come to hold it.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias, cast

Latest: TypeAlias = tuple[int, int]
"""The `latest` word: (version, slot)."""

Store: TypeAlias = tuple[object, object, bool]
"""A store on its way to memory: (location, value, release)."""

REQUEST = "asks"
"""A help word with which a reader asks the writer to choose the slot for it."""

IDLE, AGAIN, CHECK, SETTLE, ASK, TAKE, DEAD = "idle", "again", "check", "settle", "ask", "take", "dead"
SCAN_HELP, SCAN, RECLAIM, ZERO, WAIT = "scan help", "scan", "reclaim", "zero", "wait"


class Reader(NamedTuple):
    """A row, and what the process that owns it keeps for itself."""

    pc: str = IDLE
    tries: int = 0
    seen: Latest | None = None  # result of the first load of latest
    held: tuple[Latest, ...] = ()  # validated snapshots
    last: int = 0  # the newest version that this process has held
    buffer: tuple[Store, ...] = ()


class Writer(NamedTuple):
    """The publisher."""

    pc: str = SCAN_HELP
    row: int = 0
    taken: int = 0  # bits seen in the rows so far
    swept: bool = False  # dead rows were reclaimed for this version already
    pending: int = -1  # only where the scan comes too early: the slot written and not yet published
    buffer: tuple[Store, ...] = ()


class State(NamedTuple):
    """Memory first, then each process's own."""

    latest: Latest
    halves: tuple[tuple[int, int], ...]  # per slot that exists
    words: tuple[int, ...]  # per row: a bit per slot held
    helps: tuple[str | Latest | None, ...]  # per row, with fallback="help"
    readers: tuple[Reader, ...]
    writer: Writer
    killed: int = 0  # counted where the number of kills is limited
    note: str = ""  # a promise broken by the step that led here


@dataclass(frozen=True, kw_only=True)
class Channel:
    """One configuration. Every option after `memory` that is not the default is a mutant or a rival design.

    fallback: of a reader after `tries` tries. "all": set every bit, load latest, keep only that bit.
    "help": ask the writer, which answers with a slot. "none": continue trying.
    when_full: no slot free: "grow" first and reclaim dead rows at the cap, or "reclaim" first.
    """

    readers: int = 2
    held: int = 1  # snapshots per reader process
    slots: int = 4  # the cap
    tries: int = 1
    memory: Literal["sc", "tso", "pso"] = "tso"
    never_waits: bool = True  # promise: the writer does not wait
    bound: int | None = None  # promise: the largest number of slots that ever exist
    fallback: Literal["all", "help", "none"] = "all"
    when_full: Literal["grow", "reclaim"] = "reclaim"
    kills: int | None = None  # of readers; None: any number, of the writer too
    alive: int | None = None  # readers alive at one time, where fewer than rows
    reader_fence: bool = True
    settle_fence: bool = True
    writer_fence: bool = True
    second_load: bool = True
    keeps_older: bool = True  # the fallback keeps the bits of snapshots held already
    latest_release: bool = True
    ask_release: bool = True  # a reader asks for help with a release store: after its bit is cleared
    help_first: bool = True  # the writer loads a row's help word before its held word
    scan: Literal["after", "before", "before, sparing both"] = "after"
    reclaim: Literal["lock", "ask", "stale"] = "lock"
    attach_zeroes: bool = True

    # --- the model ------------------------------------------------------------------------------------------

    def initial(self) -> State:
        """Version 1 is in slot 0; every reader is attached and holds nothing."""
        rows = range(self.readers)
        return State(
            latest=(1, 0),
            halves=((1, 1),),
            words=tuple(0 for _ in rows),
            helps=tuple(None for _ in rows),
            readers=tuple(Reader() if self._room(row) else Reader(pc=DEAD) for row in rows),
            writer=self._scan(Writer()),
        )

    def steps(self, state: State) -> Iterator[tuple[str, State, bool]]:
        """Every step of every process, and every kill."""
        for row in range(self.readers):
            yield from self._reader(state, row)
        yield from self._writer(state)

    def broken(self, state: State) -> str | None:
        """Check the promises."""
        if state.note:
            return state.note
        for row, reader in enumerate(state.readers):
            for version, slot in reader.held:
                if state.halves[slot] != (version, version):
                    found = "/".join(map(str, state.halves[slot]))
                    held = f"reader {row} holds version {version} in slot {slot}"
                    return f"{held}, and would read {found} there"
            if reader.tries > self.tries:
                return f"reader {row} has tried more than {self.tries} times: its pin is not bounded"
        if self.never_waits and state.writer.pc == WAIT:
            return f"the writer waits: it found none of {len(state.halves)} slots free"
        if self.bound is not None and len(state.halves) > self.bound:
            return f"memory is not bounded: {len(state.halves)} slots, expected at most {self.bound}"
        return None

    def finished(self, state: State) -> bool:
        """Nobody is ever done: publishing and reading continue."""
        return False

    def publishes(self, state: State) -> bool:
        """Return whether a new version can become visible now: the writer's progress."""
        return any(location == "latest" for location, _, _ in state.writer.buffer[:1])

    def key(self, state: State) -> Hashable:
        """Forget names: of versions keep the order, of slots who refers to them, of contents what counts.

        Slots are interchangeable, so a state is the bag of its slots, each described by everything that
        refers to it, and what is left of the processes. A version that nobody refers to any more can never
        be held again: as a slot's content it is 0, any old bytes.
        """
        latest, halves, words, helps, readers, writer, killed, note = state
        masks = [*words, writer.taken]  # every word with a bit per slot
        named: list[Latest] = [latest]  # every word that names one slot and its version
        loose: list[int] = [latest[0] + 1] if writer.pending >= 0 else []
        rest: list[Hashable] = [writer[:4], killed, note]
        for help_ in helps:
            rest.append(_keep(help_, named))
        for reader in readers:
            named += reader.held
            buffer: list[Hashable] = []
            for location, value, _ in reader.buffer:
                if location == "held":
                    masks.append(value)  # type: ignore[arg-type]
                    buffer.append("held")
                else:
                    buffer.append(_keep(value, named))
            # The last version that a process held matters only while an older one could still be pinned.
            lowest = latest[0] if reader.seen is None else min(latest[0], reader.seen[0])
            last = 0 if reader.last <= lowest else reader.last - lowest
            seen = _keep(reader.seen, named)
            rest.append((reader.pc, reader.tries, seen, len(reader.held), tuple(buffer), last))
        written: list[tuple[int, int, int]] = []
        for location, value, release in writer.buffer:
            if location == "latest":
                rest.append((_keep(value, named), release))
            else:
                written.append((*location, value))  # type: ignore[misc]
                loose.append(value)  # type: ignore[arg-type]
        rank = {v: i for i, v in enumerate(sorted({*loose, *(v for v, _ in named)}), start=1)}
        slots: list[list[int]] = []
        for slot in range(self.slots):
            bits = 0
            for mask in masks:
                bits = bits << 1 | mask >> slot & 1
            exists = slot < len(halves)
            a, b = halves[slot] if exists else (0, 0)
            slots.append([bits, rank.get(a, 0), rank.get(b, 0), exists, slot == writer.pending])
        for position, (version, slot) in enumerate(named):
            slots[slot] += (position, rank[version])
        for position, (slot, half, version) in enumerate(written):
            slots[slot] += (100 + position, half, rank[version])
        slots.sort()
        return tuple(map(tuple, slots)), tuple(rest)

    def show(self, state: State) -> dict[str, str]:
        """Name the parts of a state, for a trace."""
        version, slot = state.latest
        parts = {"latest": f"version {version} in slot {slot}"}
        parts |= {f"slot {s}": f"halves {a} {b}" for s, (a, b) in enumerate(state.halves)}
        for row, reader in enumerate(state.readers):
            held = ", ".join(f"version {v} in slot {s}" for v, s in reader.held) or "nothing"
            parts[f"row {row}"] = f"bits {self._bits(state.words[row])}, help {state.helps[row]}"
            parts[f"reader {row}"] = f"{reader.pc}, holds {held}, to memory: {_stores(reader.buffer)}"
        writer = state.writer
        parts["writer"] = f"{writer.pc} row {writer.row}, to memory: {_stores(writer.buffer)}"
        return parts

    # --- memory ---------------------------------------------------------------------------------------------

    def _drains(self, buffer: tuple[Store, ...]) -> Iterator[tuple[str, Store, tuple[Store, ...]]]:
        """Every store that may reach memory next, and the buffer without it."""
        for index, store in enumerate(buffer):
            if index and (self.memory != "pso" or store[2] or any(s[0] == store[0] for s in buffer[:index])):
                continue
            label = f"store {_stores((store,))} reaches memory"
            yield label, store, buffer[:index] + buffer[index + 1 :]

    def _stored(self, state: State, row: int, store: Store) -> State:
        """Memory after a store has reached it."""
        location, value, _ = store
        if location == "latest":
            return state._replace(latest=value)  # type: ignore[arg-type]
        if location == "held":
            return state._replace(words=_with(state.words, row, value))
        if location == "help":
            return state._replace(helps=_with(state.helps, row, value))
        slot, half = cast(tuple[int, int], location)
        content = _with(state.halves[slot], half, value)
        return state._replace(halves=_with(state.halves, slot, content))

    def _all_bits(self) -> int:
        return (1 << self.slots) - 1

    def _bits(self, word: int) -> str:
        return "".join("1" if word >> slot & 1 else "0" for slot in range(self.slots)) + " (slot 0 first)"

    # --- a reader -------------------------------------------------------------------------------------------

    def _reader(self, state: State, row: int) -> Iterator[tuple[str, State, bool]]:
        reader = state.readers[row]
        name = f"reader {row}"

        def goes(after: Reader, memory: State = state) -> State:
            return memory._replace(readers=_with(memory.readers, row, after))

        if reader.pc == DEAD:
            if not self._room(sum(other.pc != DEAD for other in state.readers)):
                return
            buffer: tuple[Store, ...] = (_held(0),) if self.attach_zeroes else ()
            if buffer and self.fallback == "help":
                buffer = (*buffer, ("help", None, True))
            zeroed = "zeroes its word" if self.attach_zeroes else "leaves its word as it is"
            yield f"a new {name} wins the row's lock and {zeroed}", goes(Reader(buffer=buffer)), False
            return
        if self.kills is None or state.killed < self.kills:
            memory = state._replace(killed=state.killed + (self.kills is not None))
            yield f"KILL {name}: the kernel releases its row's lock", goes(Reader(pc=DEAD), memory), True
        for label, store, rest in self._drains(reader.buffer):
            memory = self._stored(state, row, store)
            yield f"{name}'s {label}", goes(reader._replace(buffer=rest), memory), False

        if self.memory == "sc" and reader.buffer:
            return
        latest = state.latest
        fenced = not reader.buffer
        if reader.pc in (IDLE, AGAIN):
            # A version that this process holds already is shared inside it: one load, no step here.
            wants = reader.pc == AGAIN or len(reader.held) < self.held
            if wants and not self.tries:
                yield f"{name} goes straight to the fallback", goes(self._missed(reader)), False
            elif wants and latest not in reader.held:
                buffer = (*reader.buffer, _held(_mask((*reader.held, latest))))
                after = reader._replace(pc=CHECK, tries=reader.tries + 1, seen=latest, buffer=buffer)
                yield f"{name} loads latest = {_word(latest)} and stores its bit", goes(after), False
            elif reader.pc == AGAIN:
                raise AssertionError("latest went back to a version held already")
            if reader.pc == IDLE:
                for snapshot in reader.held:
                    held = tuple(h for h in reader.held if h != snapshot)
                    after = reader._replace(held=held, buffer=(*reader.buffer, _held(_mask(held))))
                    yield f"{name} releases {_word(snapshot)}: clears the bit", goes(after), False
        elif reader.pc == CHECK:
            if not self.second_load:
                assert reader.seen is not None
                yield f"{name} looks no second time", self._pinned(state, row, reader.seen), False
            elif latest == reader.seen and (fenced or not self.reader_fence):
                yield f"{name} loads latest again: unmoved, pinned", self._pinned(state, row, latest), False
            elif fenced or not self.reader_fence:
                after = self._missed(reader)
                yield f"{name} loads latest again: moved to {_word(latest)}", goes(after), False
        elif reader.pc == SETTLE and (fenced or not self.settle_fence):
            memory = self._pinned(state, row, latest)
            kept = memory.readers[row]
            mask = _mask(kept.held if self.keeps_older else (latest,))
            after = kept._replace(buffer=(*kept.buffer, _held(mask)))
            yield f"{name} loads latest = {_word(latest)} and keeps only that bit", goes(after, memory), False
        elif reader.pc == ASK and fenced:
            yield f"{name} loads latest = {_word(latest)}", goes(reader._replace(pc=TAKE, seen=latest)), False
        elif reader.pc == TAKE:
            answer = state.helps[row]
            asked = answer == REQUEST
            got = reader.seen if asked else answer
            assert isinstance(got, tuple)
            memory = self._pinned(state._replace(helps=_with(state.helps, row, got)), row, got)
            kept = memory.readers[row]
            stores = (_held(_mask(kept.held)), ("help", None, True))
            after = kept._replace(buffer=(*kept.buffer, *stores))
            how = "answers itself (CAS)" if asked else "finds its CAS beaten by the writer's answer"
            yield f"{name} {how}: pins {_word(got)} in its held word", goes(after, memory), False

    def _room(self, alive: int) -> bool:
        return self.alive is None or alive < self.alive

    def _missed(self, reader: Reader) -> Reader:
        """Latest moved between the two loads: try again, or fall back."""
        clear = _held(_mask(reader.held))
        if reader.tries < self.tries or self.fallback == "none":
            return reader._replace(pc=AGAIN, seen=None, buffer=(*reader.buffer, clear))
        if self.fallback == "help":
            buffer = (*reader.buffer, clear, ("help", REQUEST, self.ask_release))
            return reader._replace(pc=ASK, seen=None, buffer=buffer)
        return reader._replace(pc=SETTLE, seen=None, buffer=(*reader.buffer, clear, _held(self._all_bits())))

    def _pinned(self, state: State, row: int, snapshot: Latest) -> State:
        """The state in which this reader holds the snapshot."""
        reader = state.readers[row]
        back = snapshot[0] < reader.last
        note = f"reader {row} goes back from version {reader.last} to {snapshot[0]}" if back else ""
        held = tuple(sorted({*reader.held, snapshot}))
        after = reader._replace(pc=IDLE, tries=0, seen=None, held=held, last=snapshot[0])
        return state._replace(readers=_with(state.readers, row, after), note=note)

    # --- the writer -----------------------------------------------------------------------------------------

    def _scan(self, writer: Writer) -> Writer:
        """Turn to the first row."""
        return writer._replace(pc=self._first_word(), row=0, taken=0)

    def _first_word(self) -> str:
        return SCAN_HELP if self.fallback == "help" and self.help_first else SCAN

    def _next_row(self, writer: Writer) -> Writer:
        """Turn to the next row to reclaim, or scan again."""
        if writer.row + 1 < self.readers:
            return writer._replace(pc=RECLAIM, row=writer.row + 1)
        return self._scan(writer._replace(swept=True))

    def _writer(self, state: State) -> Iterator[tuple[str, State, bool]]:
        writer = state.writer

        def goes(after: Writer, memory: State = state) -> State:
            return memory._replace(writer=after)

        if writer.pc == DEAD:
            yield "a new writer wins the publisher's lock", goes(self._scan(Writer())), False
            return
        if self.kills is None:
            # The next writer will use the same version number: the writes of this one must not pass for it.
            halves = tuple(tuple(v if v <= state.latest[0] else 0 for v in pair) for pair in state.halves)
            after_kill = state._replace(halves=halves, writer=Writer(pc=DEAD))  # type: ignore[arg-type]
            yield "KILL writer: the kernel releases its lock", after_kill, True
        for label, store, rest in self._drains(writer.buffer):
            memory = self._stored(state, -1, store)
            yield f"writer's {label}", goes(writer._replace(buffer=rest), memory), False

        if self.memory == "sc" and writer.buffer:
            return
        row = writer.row
        fenced = not writer.buffer or row > 0 or not self.writer_fence
        if writer.pc in (SCAN_HELP, SCAN) and fenced:
            yield from self._look(state)
        elif writer.pc == RECLAIM:
            onward = goes(self._next_row(writer), self._zeroed(state, row))
            if self.reclaim == "stale":
                yield f"writer takes row {row} for stale and zeroes it", onward, False
            elif state.readers[row].pc != DEAD:
                yield f"writer does not get row {row}'s lock", goes(self._next_row(writer)), False
            elif self.reclaim == "ask":
                yield f"writer finds row {row}'s lock free", goes(writer._replace(pc=ZERO)), False
            else:
                yield f"writer wins row {row}'s lock, zeroes the row, unlocks", onward, False
        elif writer.pc == ZERO:
            onward = goes(self._next_row(writer), self._zeroed(state, row))
            yield f"writer zeroes row {row} without its lock", onward, False
        elif writer.pc == WAIT:
            yield "writer looks again", goes(self._scan(writer)), False

    def _zeroed(self, state: State, row: int) -> State:
        return state._replace(words=_with(state.words, row, 0), helps=_with(state.helps, row, None))

    def _look(self, state: State) -> Iterator[tuple[str, State, bool]]:
        """Load one word of one row."""
        writer = state.writer
        row = writer.row
        helped = writer.pc == SCAN_HELP
        if helped:
            given = state.helps[row]
            label = f"writer loads row {row}'s help word"
            if given == REQUEST:
                given = state.latest
                state = state._replace(helps=_with(state.helps, row, given))
                label += f" and answers (CAS) with {_word(given)}"
            bits = _mask((given,)) if isinstance(given, tuple) else 0
        else:
            bits = state.words[row]
            label = f"writer loads row {row}'s held word"
        writer = writer._replace(taken=writer.taken | bits)
        last_word = SCAN if self.help_first else SCAN_HELP
        if self.fallback == "help" and writer.pc != last_word:
            yield label, state._replace(writer=writer._replace(pc=last_word)), False
        elif row + 1 < self.readers:
            yield label, state._replace(writer=writer._replace(pc=self._first_word(), row=row + 1)), False
        else:
            yield from self._choose(state._replace(writer=writer), label)

    def _choose(self, state: State, label: str) -> Iterator[tuple[str, State, bool]]:
        """Every slot that the finished scan allows, or what to do if there is none."""
        writer = state.writer
        latest = state.latest
        for location, value, _ in writer.buffer:
            if location == "latest":
                latest = value  # type: ignore[assignment]  # a process sees its own stores
        spared = {latest[1]}
        if writer.pending >= 0:  # the mutant that scans first publishes only now
            spared = {writer.pending} | (spared if self.scan == "before, sparing both" else set())
            latest = (latest[0] + 1, writer.pending)
            published: tuple[Store, ...] = (("latest", latest, True),)
        else:
            published = ()
        free = [s for s in range(len(state.halves)) if s not in spared and not writer.taken >> s & 1]
        grown = state.halves
        if not free:
            may_grow = len(state.halves) < self.slots and (self.when_full == "grow" or writer.swept)
            if not may_grow:
                after = writer._replace(pc=WAIT if writer.swept else RECLAIM, row=0, taken=0, swept=False)
                yield f"{label}: no slot is free", state._replace(writer=after), False
                return
            free = [len(grown)]
            grown = (*grown, (0, 0))
        version = latest[0] + 1
        for slot in free:
            halves: tuple[Store, ...] = (((slot, 0), version, False), ((slot, 1), version, False))
            if self.scan == "after":
                stores = (*halves, ("latest", (version, slot), self.latest_release))
                after = self._scan(Writer(buffer=(*writer.buffer, *stores)))
            else:
                after = self._scan(Writer(buffer=(*writer.buffer, *published, *halves), pending=slot))
            yield f"{label}: chooses slot {slot}", state._replace(halves=grown, writer=after), False


def _with(items: tuple, index: int, item: object) -> tuple:  # type: ignore[type-arg]
    """A tuple with one item changed."""
    return (*items[:index], item, *items[index + 1 :])


def _keep(word: object, named: list[Latest]) -> object:
    """Move a word that names a slot to the list of such words; the remaining value marks its place."""
    if not isinstance(word, tuple):
        return word
    named.append(word)
    return "named"


def _mask(held: tuple[Latest, ...]) -> int:
    mask = 0
    for _, slot in held:
        mask |= 1 << slot
    return mask


def _held(word: int) -> Store:
    return ("held", word, True)


def _word(latest: Latest | None) -> str:
    assert latest is not None
    return f"(version {latest[0]}, slot {latest[1]})"


def _stores(buffer: tuple[Store, ...]) -> str:
    names = []
    for location, value, _ in buffer:
        name = f"slot {location[0]} half {location[1]}" if isinstance(location, tuple) else location
        names.append(f"{name} = {value:b}b" if location == "held" else f"{name} = {value}")
    return "; ".join(names) or "-"
