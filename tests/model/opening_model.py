"""A model of opening a channel (`opening.py` and `storage.py` of `src/untorn/share`): two names, one channel, before
any process is attached.

    reader      open control; open data; compare the ids: equal, it is attached; else it begins again
    publisher   open control; lock; check its name; open data; compare; check both names
                  no control: make both files, locked; link control; remove a data file that was left; link data; open
                  no data, or another's while the names were being given: remove both names, begin again
    publisher   unlinks (check the control name; remove data; remove control), closes
    cleaner     removes one of the names at any time, as RemoveIPC and cleaning tools do

Each of these is a system call, and a step here. Any process may be killed before each: the kernel releases its lock.
`untorn gc` does what a publisher does that takes a channel over and unlinks it. Channels are made without limit; the
key forgets their names. The contents do not matter: the promise is that no process is ever attached to the control file
of one channel and the data file of another, and that after any kills the name can be published again.

`Numbers` is the same for an anonymous channel, whose place is two descriptor numbers of a process that closes files and
opens others.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

IDLE, OPEN_DATA, COMPARE, ATTACHED = "idle", "open data", "compare", "attached"
LOCK, LOOK, MIXED, LOOK_AGAIN, PUBLISHING = "lock", "look", "mixed", "look again", "publishing"
LINK_CONTROL, REMOVE_STALE, LINK_DATA, SAY_OPEN, UNDO = "link control", "remove stale", "link data", "say open", "undo"
CLEAR_DATA, CLEAR_CONTROL, UNLINK_DATA, UNLINK_CONTROL = "clear data", "clear control", "unlink data", "unlink control"


class Process(NamedTuple):
    """The step it is at, and the channels whose control and data file it has open."""

    pc: str = IDLE
    control: int | None = None
    data: int | None = None


class Channel(NamedTuple):
    """The contents of a channel's control file."""

    locked: bool = True
    naming: bool = True


class State(NamedTuple):
    """The two names, the control files, and everybody."""

    control: int | None
    data: int | None
    channels: tuple[tuple[int, Channel], ...]
    publishers: tuple[Process, ...]
    reader: Process
    cleanings: int
    note: str = ""


Step: TypeAlias = tuple[str, State, bool]


@dataclass(frozen=True, kw_only=True)
class Names:
    """One configuration. The options from `compares` on are mutants: a line of the code each.

    strict: promise too that no living publisher loses a name to another, and that none meets a mixed pair whose
    publisher was not killed among the names. Where there are two publishers, a cleaner can break these.
    """

    publishers: int = 2
    cleanings: int = 0
    strict: bool = True
    compares: bool = True  # a reader
    publisher_compares: bool = True
    locks_first: bool = True  # and opens the data file then
    looks: bool = True  # whether the name still leads to the file, once it has the lock
    knows_naming: bool = True  # that the names were being given, when the publisher was killed
    unlinks_data_first: bool = True

    def initial(self) -> State:
        return State(None, None, (), (Process(),) * self.publishers, Process(), self.cleanings)

    def steps(self, state: State) -> Iterator[Step]:
        for label, after in self._read(state):
            yield f"reader {label}", after, False
        for index, process in enumerate(state.publishers):
            for label, changed, me in self._publish(state, process):
                yield f"publisher {index} {label}", _with(changed, index, me), False
            if process.pc != IDLE:
                yield f"publisher {index} is KILLED", _with(_released(state, process), index, Process()), True
        if state.cleanings:
            left = state._replace(cleanings=state.cleanings - 1)
            if state.control is not None:
                yield "cleaner removes the control name", left._replace(control=None), True
            if state.data is not None:
                yield "cleaner removes the data name", left._replace(data=None), True

    def _read(self, state: State) -> Iterator[tuple[str, State]]:
        me = state.reader
        if me.pc == IDLE and state.control is not None:
            yield "opens control", state._replace(reader=Process(OPEN_DATA, state.control))
        elif me.pc == OPEN_DATA:
            found = Process() if state.data is None else me._replace(pc=COMPARE, data=state.data)
            yield "opens data", state._replace(reader=found)
        elif me.pc == COMPARE:
            same = me.control == me.data or not self.compares
            yield "compares the ids", state._replace(reader=me._replace(pc=ATTACHED) if same else Process())
        elif me.pc == ATTACHED:
            yield "detaches", state._replace(reader=Process())

    def _publish(self, state: State, me: Process) -> Iterator[tuple[str, State, Process]]:
        if me.pc == IDLE:
            yield self._begin(state, me)
        elif me.pc in (LINK_CONTROL, REMOVE_STALE, LINK_DATA, SAY_OPEN, UNDO):
            yield self._give_names(state, me)
        elif me.pc == PUBLISHING:
            yield "closes", _released(state, me), Process()
            if state.control == me.control:
                first = UNLINK_DATA if self.unlinks_data_first else UNLINK_CONTROL
                yield "is about to unlink: the control name is its own", state, me._replace(pc=first)
        elif me.pc in (UNLINK_DATA, UNLINK_CONTROL, CLEAR_DATA, CLEAR_CONTROL):
            yield self._remove(state, me)
        else:
            yield self._take_over(state, me)

    def _begin(self, state: State, me: Process) -> tuple[str, State, Process]:
        if state.control is not None:
            after = LOCK if self.locks_first else OPEN_DATA
            return "opens control", state, Process(after, state.control)
        new = 1 + max([number for number, _ in state.channels], default=0)
        made = state._replace(channels=(*state.channels, (new, Channel())))
        return "finds no control; makes both files", made, Process(LINK_CONTROL, new, new)

    def _take_over(self, state: State, me: Process) -> tuple[str, State, Process]:
        channel, there = _channel(state, me), state.control == me.control
        if me.pc == LOCK:
            if channel.locked:
                return "finds the lock taken", state, Process()
            after = LOOK if self.looks else (OPEN_DATA if self.locks_first else COMPARE)
            return "has the lock", _changed(state, me, channel._replace(locked=True)), me._replace(pc=after)
        if me.pc == LOOK:
            if not there:
                return "sees that the name leads elsewhere", _released(state, me), Process()
            return "sees that the name is its own", state, me._replace(pc=OPEN_DATA if self.locks_first else COMPARE)
        if me.pc == OPEN_DATA:
            if state.data is None:
                return "finds no data", state, me._replace(pc=CLEAR_DATA)
            return "opens data", state, me._replace(pc=COMPARE if self.locks_first else LOCK, data=state.data)
        if me.pc == COMPARE:
            if me.control != me.data and self.publisher_compares:
                return "sees two ids", state, me._replace(pc=MIXED)
            return "sees one id", _changed(state, me, channel._replace(naming=False)), me._replace(pc=LOOK_AGAIN)
        if me.pc == MIXED:
            if not there:
                return "sees that the name leads elsewhere", _released(state, me), Process()
            if channel.naming and self.knows_naming:
                return "sees that the names were being given", state, me._replace(pc=CLEAR_DATA)
            note = "a publisher is told of a mixed pair that nobody made by hand"
            return "gives up", _released(state, me)._replace(note=note if self.strict else ""), Process()
        if there and (state.data == me.data or not self.publisher_compares):
            return "sees that both names are its own, and publishes", state, me._replace(pc=PUBLISHING)
        return "sees that a name leads elsewhere", _released(state, me), Process()

    def _give_names(self, state: State, me: Process) -> tuple[str, State, Process]:
        if me.pc == LINK_CONTROL:
            if state.control is not None:
                return "finds the control name taken", _released(state, me), Process()
            return "links control", state._replace(control=me.control), me._replace(pc=REMOVE_STALE)
        if me.pc == REMOVE_STALE:
            return "removes data that was left over", state._replace(data=None), me._replace(pc=LINK_DATA)
        if me.pc == LINK_DATA:
            if state.data is not None:
                return "finds the data name taken", state, me._replace(pc=UNDO)
            return "links data", state._replace(data=me.data), me._replace(pc=SAY_OPEN)
        if me.pc == UNDO:
            undone = state._replace(control=None) if state.control == me.control else state
            return "takes its control name back", _released(undone, me), Process()
        named = _changed(state, me, _channel(state, me)._replace(naming=False))
        return "says that it is open, and publishes", named, me._replace(pc=PUBLISHING)

    def _remove(self, state: State, me: Process) -> tuple[str, State, Process]:
        if me.pc == CLEAR_DATA:
            return "removes data", self._removed(state, me, "data"), me._replace(pc=CLEAR_CONTROL)
        if me.pc == CLEAR_CONTROL:
            return "removes control, begins again", _released(self._removed(state, me, "control"), me), Process()
        last = me.pc == (UNLINK_CONTROL if self.unlinks_data_first else UNLINK_DATA)
        name, other = ("data", UNLINK_CONTROL) if me.pc == UNLINK_DATA else ("control", UNLINK_DATA)
        return f"removes {name}", self._removed(state, me, name), me._replace(pc=PUBLISHING if last else other)

    def _removed(self, state: State, me: Process, name: str) -> State:
        """Without one of the names, whosever it is: where all go by the rules, the lock protects it."""
        victim = state.control if name == "control" else state.data
        after = state._replace(**{name: None})  # type: ignore[arg-type]
        alive = {p.control for p in state.publishers if p.pc in (PUBLISHING, LINK_DATA, SAY_OPEN)} - {me.control}
        if victim in alive and self.strict and not state.note:
            return after._replace(note=f"the {name} name of a living publisher's channel is removed")
        return after

    def broken(self, state: State) -> str | None:
        if state.note:
            return state.note
        if state.reader.pc == ATTACHED and state.reader.control != state.reader.data:
            return "a reader is attached to the control file of one channel and the data file of another"
        for process in state.publishers:
            if process.pc == PUBLISHING and process.control != process.data:
                return "a publisher has the control file of one channel and the data file of another"
        return None

    def finished(self, state: State) -> bool:
        """Nobody is ever done."""
        return False

    def published(self, state: State) -> bool:
        """Progress: somebody publishes, and readers find it."""
        return any(p.pc == PUBLISHING and state.control == p.control == state.data for p in state.publishers)

    def key(self, state: State) -> Hashable:
        """Channels are interchangeable: they are numbered as they are met. Unreferenced channels are forgotten."""
        met: dict[int | None, int] = {None: 0}
        everybody = (*state.publishers, state.reader)
        for number in (state.control, state.data, *(n for p in everybody for n in (p.control, p.data))):
            met.setdefault(number, len(met))
        channels = tuple(sorted((met[number], channel) for number, channel in state.channels if number in met))
        processes = tuple((p.pc, met[p.control], met[p.data]) for p in everybody)
        return met[state.control], met[state.data], channels, processes, state.cleanings, state.note

    def show(self, state: State) -> dict[str, str]:
        shown = {"control": f"channel {state.control}", "data": f"channel {state.data}"}
        for index, process in enumerate((*state.publishers, state.reader)):
            name = "reader" if index == len(state.publishers) else f"publisher {index}"
            shown[name] = f"{process.pc}, has {process.control}/{process.data}"
        return shown


def _with(state: State, index: int, process: Process) -> State:
    return state._replace(publishers=(*state.publishers[:index], process, *state.publishers[index + 1 :]))


def _channel(state: State, process: Process) -> Channel:
    return next(channel for number, channel in state.channels if number == process.control)


def _changed(state: State, process: Process, channel: Channel) -> State:
    others = tuple(item for item in state.channels if item[0] != process.control)
    return state._replace(channels=tuple(sorted((*others, (process.control, channel)))))  # type: ignore[type-var]


def _released(state: State, process: Process) -> State:
    """The state without this process's lock: it has one from having the lock to the end."""
    unlocked = process.pc in (IDLE, LOCK) or (process.pc == OPEN_DATA and not _channel(state, process).locked)
    return state if unlocked else _changed(state, process, _channel(state, process)._replace(locked=False))


# -- an anonymous channel


class Slots(NamedTuple):
    """The file that each of the two descriptor numbers leads to, (part, channel) or None; and those the reader has."""

    numbers: tuple[tuple[str, int] | None, tuple[str, int] | None]
    reader: tuple[str, tuple[str, int] | None, tuple[str, int] | None]


@dataclass(frozen=True, kw_only=True)
class Numbers:
    """Another process closes and opens files as it likes; the reader wants channel 1 by its two numbers."""

    checks: tuple[str, ...] = ("control", "data")

    def initial(self) -> Slots:
        return Slots((("control", 1), ("data", 1)), (IDLE, None, None))

    def steps(self, state: Slots) -> Iterator[tuple[str, Slots, bool]]:
        first, second = state.numbers
        files = [(part, channel) for part in ("control", "data") for channel in (1, 2)]
        for file in (None, *files):
            what = "is closed" if file is None else f"leads to the {file[0]} file of channel {file[1]}"
            yield f"the first number {what}", state._replace(numbers=(file, second)), False
            yield f"the second number {what}", state._replace(numbers=(first, file)), False
        pc, control, data = state.reader
        if pc == IDLE:
            yield "reader opens the first", state._replace(reader=(OPEN_DATA, first, None)), False
        elif pc == OPEN_DATA:
            yield "reader opens the second", state._replace(reader=(COMPARE, control, second)), False
        elif pc == COMPARE:
            found = {"control": control == ("control", 1), "data": data == ("data", 1)}
            good = control is not None and data is not None and all(found[part] for part in self.checks)
            yield (
                "reader compares",
                state._replace(reader=(ATTACHED, control, data) if good else (IDLE, None, None)),
                False,
            )
        else:
            yield "reader detaches", state._replace(reader=(IDLE, None, None)), False

    def broken(self, state: Slots) -> str | None:
        pc, control, data = state.reader
        if pc == ATTACHED and (control, data) != (("control", 1), ("data", 1)):
            return f"a reader that wants channel 1 is attached to {control} and {data}"
        return None

    def finished(self, state: Slots) -> bool:
        return False

    def key(self, state: Slots) -> Hashable:
        return state

    def show(self, state: Slots) -> dict[str, str]:
        return {"numbers": str(state.numbers), "reader": str(state.reader)}
