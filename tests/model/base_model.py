"""Versions that consist of the changes of an older one, their bases, and the thread that writes the next base
(`csrc/picking.c`, `share/table_writer.py`, `share/compaction.py`), as a model.

    publisher  scan: every slot that is the latest, held, reserved, or the base of one of these is taken; pick another
               one; write it; store latest; then give up the reservation of its base, if a thread wrote that
    thread     pin a version; reserve a slot; write the version there as a whole; unpin
    sweep      slots that the publisher claimed between two versions: give their space back
    reader     pin the latest; release it; or pin its base as well and release the version first

Pinning is one step here, and memory is sequentially consistent: `channel_model.py` is about that. Instead the checker
demands in every state that the latest version and each held one is complete, that its base is, and that it has all
changes since its base: it says of itself from which version on. A kill ends the publisher with its threads at any step;
the next one knows only what the slots say, and its first version is whole.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

Place: TypeAlias = tuple[int, int]
"""A version and its slot."""

PICK, WRITE, PUBLISH, UNRESERVE, DEAD = "pick", "write", "publish", "unreserve", "dead"
NONE, PINNED, RESERVED, WRITTEN = "none", "pinned", "reserved", "written"


class Content(NamedTuple):
    """What a slot has: nothing that can be used for version 0. `first`: the first version whose changes are in it."""

    version: int = 0
    base: Place | None = None
    first: int = 0


NOTHING = Content()


class Thread(NamedTuple):
    """A compaction: the version that it writes, its own slot, and the first change that is collected since."""

    pc: str = NONE
    version: int = 0
    pinned: int = -1  # a slot
    slot: int = -1
    first: int = 0


class Publisher(NamedTuple):
    """The publisher's own memory."""

    pc: str = PICK
    content: Content = NOTHING  # of the version that is being made
    slot: int = -1
    bases: tuple[int, ...] = ()  # by slot: the slot of its base, -1: none
    reserved: int = 0
    claimed: int = -1  # a slot whose space is given back
    thread: Thread = Thread()
    collects: int = 0  # the first version whose changes are kept since the base; 0: nothing is known


class State(NamedTuple):
    latest: Place
    slots: tuple[Content, ...]
    readers: tuple[tuple[tuple[int, Content], ...], ...]  # of each: (slot, what it had when it was pinned)
    publisher: Publisher
    kills: int


Step: TypeAlias = tuple[str, State, bool]


@dataclass(frozen=True, kw_only=True)
class Bases:
    """One configuration. Every option after `kills` that is not the default is a mutant."""

    slots: int = 5
    readers: int = 1
    versions: int = 5
    kills: int = 1
    holds: str = "taken"  # the bases that are taken: of the "taken", of the "latest" only, or "none"
    inherits: bool = True  # the next publisher reads the bases of what it finds
    reserves: bool = True  # the thread reserves its slot
    pins: bool = True  # the thread pins the version that it writes
    joins: bool = True  # the publisher uses the thread's base only when it is written
    unreserves: str = "after"  # "before" the version that refers to the base is the latest
    claims: str = "publisher"  # "sweep": the thread that gives space back looks for free slots itself
    collects: str = "at once"  # "late": changes since the pinned version are collected from the next but one on

    def initial(self) -> State:
        slots = (Content(1, None, 1), *(NOTHING,) * (self.slots - 1))
        publisher = Publisher(bases=(-1,) * self.slots, collects=2)
        return State((1, 0), slots, ((),) * self.readers, publisher, self.kills)

    def _free(self, state: State) -> list[int]:
        """Return the slots that a scan finds free."""
        me, latest = state.publisher, state.latest[1]
        taken = {latest, *(slot for held in state.readers for slot, _ in held)}
        taken |= {slot for slot in range(self.slots) if me.reserved >> slot & 1}
        taken |= {me.thread.pinned} if me.thread.pinned >= 0 and self.pins else set()
        of = {"taken": taken, "latest": {latest}, "none": set()}[self.holds]
        taken |= {me.bases[slot] for slot in of}
        return [slot for slot in range(self.slots) if slot not in taken]

    def steps(self, state: State) -> Iterator[Step]:
        me = state.publisher
        for index in range(self.readers):
            yield from self._read(state, index)
        if me.pc == DEAD:
            if state.latest[0] < self.versions:
                yield "the next publisher comes", state._replace(publisher=self._taking_over(state)), False
            return
        yield from self._publish(state, me)
        yield from self._compact(state, me)
        yield from self._sweep(state, me)
        if state.kills:
            dead = state._replace(publisher=Publisher(pc=DEAD, bases=(-1,) * self.slots), kills=state.kills - 1)
            yield "the publisher is killed", dead, True

    def _taking_over(self, state: State) -> Publisher:
        found = (content.base[1] if content.base and self.inherits else -1 for content in state.slots)
        return Publisher(bases=tuple(found))

    def _read(self, state: State, index: int) -> Iterator[Step]:
        held = state.readers[index]
        slot = state.latest[1]
        if not held:
            yield f"reader {index} pins the latest", _reading(state, index, ((slot, state.slots[slot]),)), False
        for pinned in held:
            rest = tuple(each for each in held if each != pinned)
            yield f"reader {index} releases slot {pinned[0]}", _reading(state, index, rest), False
            base = pinned[1].base
            if base is not None and len(held) == 1:
                both = (pinned, (base[1], Content(base[0], None, base[0])))
                yield f"reader {index} pins the base as well", _reading(state, index, both), False

    def _publish(self, state: State, me: Publisher) -> Iterator[Step]:
        version, thread = state.latest[0] + 1, me.thread
        if me.pc == PICK and version <= self.versions:
            made = [("whole", Content(version, None, version))]
            if me.collects:
                made.append(("changes", Content(version, self._base(state), me.collects)))
            if thread.pc == WRITTEN or (thread.pc == RESERVED and not self.joins):
                made.append(("changes of the new base", Content(version, (thread.version, thread.slot), thread.first)))
            for slot in self._free(state):
                for what, content in made:
                    picked = me._replace(pc=WRITE, slot=slot, content=content)
                    if self.unreserves == "before" and what.endswith("new base"):
                        picked = picked._replace(reserved=me.reserved & ~(1 << thread.slot))
                    yield f"the publisher picks slot {slot} for {what}", _with(state, picked, slot, NOTHING), False
        elif me.pc == WRITE:
            bases = list(me.bases)
            bases[me.slot] = me.content.base[1] if me.content.base else -1
            written = me._replace(pc=PUBLISH, bases=tuple(bases))
            yield "the publisher has written it", _with(state, written, me.slot, me.content), False
        elif me.pc == PUBLISH:
            moves = me.content.base is not None and me.content.base[1] == thread.slot
            ends = moves or me.content.base is None  # a whole version drops the compaction
            published = me._replace(pc=UNRESERVE if ends else PICK, collects=self._collected(me))
            latest = (me.content.version, me.slot)
            yield f"latest is version {latest[0]}", state._replace(latest=latest, publisher=published), False
        elif me.pc == UNRESERVE:
            mine = 1 << thread.slot if thread.slot >= 0 else 0
            idle = me._replace(pc=PICK, reserved=me.reserved & ~mine, thread=Thread())
            yield "the publisher gives up the reservation", state._replace(publisher=idle), False

    def _base(self, state: State) -> Place:
        """Return the base of the changes that follow the latest version."""
        return state.slots[state.latest[1]].base or state.latest

    def _collected(self, me: Publisher) -> int:
        return me.content.first if me.content.base else me.content.version + 1

    def _compact(self, state: State, me: Publisher) -> Iterator[Step]:
        thread = me.thread
        if thread.pc == NONE and me.pc == PICK and state.slots[state.latest[1]].base is not None:
            version, slot = state.latest
            begun = Thread(PINNED, version, slot, first=version + (1 if self.collects == "at once" else 2))
            yield f"a thread pins version {version}", state._replace(publisher=me._replace(thread=begun)), False
        elif thread.pc == PINNED:
            for slot in self._free(state):
                if slot == me.slot and me.pc in (WRITE, PUBLISH):
                    continue  # it has no space: a slot that was picked has
                reserved = me.reserved | 1 << slot if self.reserves else me.reserved
                claimed = me._replace(thread=thread._replace(pc=RESERVED, slot=slot), reserved=reserved)
                yield f"the thread reserves slot {slot}", _with(state, claimed, slot, NOTHING), False
        elif thread.pc == RESERVED and not state.slots[thread.pinned].version:
            broken = _with(state, me, thread.pinned, NOTHING)
            yield "the thread reads what is no version", broken._replace(latest=(0, 0)), False
        elif thread.pc == RESERVED:
            written = me._replace(thread=thread._replace(pc=WRITTEN, pinned=-1))
            content = Content(thread.version, None, thread.version)
            yield "the thread has written the base", _with(state, written, thread.slot, content), False

    def _sweep(self, state: State, me: Publisher) -> Iterator[Step]:
        if me.claimed >= 0:
            given = me._replace(claimed=-1, reserved=me.reserved & ~(1 << me.claimed))
            yield f"the space of slot {me.claimed} is gone", _with(state, given, me.claimed, NOTHING), False
        elif me.pc == PICK or self.claims == "sweep":
            for slot in self._free(state):
                claimed = me._replace(claimed=slot, reserved=me.reserved | 1 << slot)
                if state.slots[slot].version:
                    yield f"slot {slot} is claimed, to give its space back", state._replace(publisher=claimed), False

    def key(self, state: State) -> Hashable:
        return state

    def broken(self, state: State) -> str | None:
        """Check the promises."""
        version, slot = state.latest
        if not version:
            return "the thread would write what is no version"
        held = [(slot, state.slots[slot], f"the latest version {version}")]
        if state.slots[slot].version != version:
            return f"slot {slot} should have the latest version {version}"
        for index, pins in enumerate(state.readers):
            held += [(at, content, f"reader {index}'s version {content.version}") for at, content in pins]
        for at, content, what in held:
            if state.slots[at] != content:
                return f"{what} in slot {at} is not there any more"
            if content.base is None:
                continue
            if state.slots[content.base[1]] != Content(content.base[0], None, content.base[0]):
                return f"{what} has no base in slot {content.base[1]}"
            if content.first > content.base[0] + 1:
                return f"{what} lacks the changes of version {content.base[0] + 1}"
        return None

    def finished(self, state: State) -> bool:
        return True  # readers go on for ever, and a publisher without a free slot waits for them

    def show(self, state: State) -> dict[str, str]:
        parts = {"latest": str(state.latest)}
        parts |= {f"slot {i}": str(tuple(content)) for i, content in enumerate(state.slots)}
        parts |= {f"reader {i}": str([slot for slot, _ in held]) for i, held in enumerate(state.readers)}
        return parts | {"publisher": str(state.publisher)}


def _with(state: State, publisher: Publisher, slot: int, content: Content) -> State:
    slots = (*state.slots[:slot], content, *state.slots[slot + 1 :])
    return state._replace(publisher=publisher, slots=slots)


def _reading(state: State, index: int, held: tuple[tuple[int, Content], ...]) -> State:
    return state._replace(readers=(*state.readers[:index], held, *state.readers[index + 1 :]))
