"""The channel's steps as `csrc/channel.c`, `fork.c`, `attachment.c` and `futex.h` have them, on the machine of C11
(`weak_memory.py`), each with its order by name.

    pin      one writer, one or two readers: pin, read, unpin, pin again
    fork     a reader that forks and lets go; the child holds on; the writer scans meanwhile
    grow     the writer gives slots' space back, punches the hole, and finds them other space
    wait     sleepers and the waker

`ORDERS` are the code's. ``weaker`` names those that are taken away: an acquire or a release becomes relaxed, a fence or
a look is left out. The number of versions is limited: each one more costs a factor.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from weak_memory import ACQUIRE, BOTH, RELAXED, RELEASE, Machine, Registers, Thread

ORDERS = {
    "latest, load": ACQUIRE,
    "latest, store": RELEASE,
    "held, set": RELEASE,
    "held, clear": RELEASE,
    "held, scan": ACQUIRE,
    "high, raise": RELEASE,
    "high, load": ACQUIRE,
    "handoffs, first load": ACQUIRE,
    "handoffs, second load": ACQUIRE,
    "handoffs, add": BOTH,
    "extent, store": RELEASE,
    "extent, load": ACQUIRE,
    "sleepers, swap": BOTH,
}
#: parts that can be left out
STEPS = (
    "fence of the pin",
    "fence of all bits",
    "second look at latest",
    "fence of the scan",
    "handoffs",
    "second look at handoffs",
    "fence of the sleeper",
    "second look of the sleeper",
    "fence of the waker",
)


@dataclass(frozen=True, kw_only=True)
class Channel:
    """One configuration. `tries`: of a pin, before it sets all bits."""

    versions: int = 2  # that the writer publishes
    slots: int = 3
    readers: int = 1
    pins: int = 1  # of each reader
    tries: int = 1
    weaker: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        assert self.weaker <= {*ORDERS, *STEPS}, self.weaker

    def order(self, name: str) -> str:
        return RELAXED if name in self.weaker else ORDERS[name]

    def has(self, step: str) -> bool:
        return step not in self.weaker

    # -- the four machines

    def pin(self) -> Machine:
        readers = [self._reader(row) for row in range(1, self.readers + 1)]
        return Machine(self._words(self.readers), [self._writer(rows=self.readers), *readers])

    def fork(self) -> Machine:
        words = self._words(2) | {"high": 1, "row 1": 1, "forked": 0}
        return Machine(words, [self._writer(rows=2), self._parent(), self._child()])

    def grow(self) -> Machine:
        """Slot 0 has version 1 in place 0, slot 1 has space that is too small; a place is as large as a version."""
        words = self._words(self.readers)
        for slot in range(self.slots):
            words |= {f"offset {slot}": slot, f"capacity {slot}": int(slot < 2)}
        readers = [self._reader(row, grows=True) for row in range(1, self.readers + 1)]
        return Machine(words, [self._writer(rows=self.readers, grows=True), *readers])

    def wait(self) -> Machine:
        sleepers = [self._sleeper(number) for number in range(self.readers)]
        return Machine({"latest": 0, "sleepers": 0}, [self._waker(), *sleepers])

    def _words(self, rows: int) -> dict[str, Any]:
        words: dict[str, Any] = {"latest": (1, 0), "high": 0, "handoffs": 0}
        words |= {f"row {row}": 0 for row in range(1, rows + 1)}
        return words | {f"place {slot} {half}": int(slot == 0) for slot in range(self.slots) for half in "ab"}

    # -- the writer: channel_held, pick_locked, channel_publish

    def _writer(self, *, rows: int, grows: bool = False) -> Thread:
        me = Thread("writer")
        me.let("latest", (1, 0))
        me.let("places", (0, 1, *[None] * (self.slots - 2)))  # by slot; a thread knows the words that only it writes
        for version in range(2, self.versions + 2):
            if self.has("fence of the scan"):
                me.fence()
            self._scan(me, rows, f"scan {version}")
            me.jump("full", lambda r: not self._free(r))
            me.choose("slot", self._free)
            if grows:
                self._find_space(me)
            for half in "ab":
                me.store(lambda r, half=half: f"place {_place(r, grows)} {half}", version, RELAXED)
            me.let("latest", lambda r, version=version: (version, r["slot"]))
            me.store("latest", lambda r: r["latest"], self.order("latest, store"))
        me.label("full")
        return me

    def _scan(self, me: Thread, rows: int, label: str) -> None:
        me.label(label)
        me.load("handoffs", "handoffs", self.order("handoffs, first load"))
        me.load("high", "high", self.order("high, load"))
        me.let("held", 0)
        for row in range(1, rows + 1):
            me.jump(f"{label}, end", lambda r, row=row: r["high"] < row)
            me.load("row", f"row {row}", self.order("held, scan"))
            me.let("held", lambda r: r["held"] | r["row"])
        me.label(f"{label}, end")
        if self.has("second look at handoffs"):
            me.load("again", "handoffs", self.order("handoffs, second load"))
            me.jump(label, lambda r: r["again"] != r["handoffs"])
        for register in ("row", "again", "handoffs", "high"):
            me.let(register, 0)  # unused values need not distinguish states

    def _free(self, registers: Registers) -> list[int]:
        taken = registers["held"] | 1 << registers["latest"][1]
        return [slot for slot in range(self.slots) if not taken >> slot & 1]

    def _find_space(self, me: Thread) -> None:
        """Each version is larger than the slot: give its space back, and find it a gap."""
        me.store(lambda r: f"capacity {r['slot']}", 0, self.order("extent, store"))
        me.jump("no hole", lambda r: r["places"][r["slot"]] is None)
        for half in "ab":
            me.store(lambda r, half=half: f"place {r['places'][r['slot']]} {half}", 0, RELAXED)
        me.label("no hole")
        me.let("places", self._moved)
        me.store(lambda r: f"offset {r['slot']}", lambda r: r["places"][r["slot"]], self.order("extent, store"))
        me.store(lambda r: f"capacity {r['slot']}", 1, self.order("extent, store"))

    def _moved(self, registers: Registers) -> tuple[int | None, ...]:
        places, slot = list(registers["places"]), registers["slot"]
        places[slot] = None
        places[slot] = min(place for place in range(self.slots) if place not in places)
        return tuple(places)

    # -- a reader: row_take, channel_pin, slot_map, channel_unpin

    def _reader(self, row: int, *, grows: bool = False) -> Thread:
        me = Thread(f"reader {row}")
        me.update("high", "high", lambda high, _: row if high < row else None, self.order("high, raise"))
        me.let("high", 0)
        for number in range(self.pins):
            self._pin(me, f"row {row}", f"pinned {number}")
            if grows:
                for part in ("offset", "capacity"):
                    order = self.order("extent, load")
                    me.load(part, lambda r, part=part: f"{part} {r['latest'][1]}", order)
                me.jump(f"has space {number}", lambda r: r["capacity"] == 1)
                me.fail("a pinned slot has no space")
                me.label(f"has space {number}")
            for half in "ab":
                me.check(
                    lambda r, half=half: f"place {r['offset'] if grows else r['latest'][1]} {half}",
                    lambda r: r["latest"][0],
                    f"half {half} of its version",
                )
            me.store(f"row {row}", 0, self.order("held, clear"))
        return me

    def _pin(self, me: Thread, row: str, pinned: str) -> None:
        for _ in range(self.tries):
            me.load("latest", "latest", self.order("latest, load"))
            me.store(row, lambda r: 1 << r["latest"][1], self.order("held, set"))
            if self.has("fence of the pin"):
                me.fence()
            if self.has("second look at latest"):
                me.load("again", "latest", self.order("latest, load"))
                me.jump(pinned, lambda r: r["again"] == r["latest"])
            else:
                me.jump(pinned)
        me.store(row, (1 << self.slots) - 1, self.order("held, set"))
        if self.has("fence of all bits"):
            me.fence()
        me.load("latest", "latest", self.order("latest, load"))
        me.store(row, lambda r: 1 << r["latest"][1], self.order("held, set"))
        me.label(pinned)
        me.let("again", 0)

    # -- fork: fork_prepare_one, attachment_unpin in the parent, the child

    def _parent(self) -> Thread:
        """It holds version 1, in slot 0."""
        me = Thread("parent")
        me.check("place 0 a", 1, "half a of its version")
        me.update("high", "high", lambda high, _: 2 if high < 2 else None, self.order("high, raise"))
        me.store("row 2", 1, self.order("held, set"))
        if self.has("handoffs"):
            me.update("handoffs", "handoffs", lambda count, _: count + 1, self.order("handoffs, add"))
        me.store("forked", 1, RELEASE)  # by the kernel: the child sees all stores from before the fork
        me.store("row 1", 0, self.order("held, clear"))
        return me

    def _child(self) -> Thread:
        me = Thread("child")
        me.load("forked", "forked", ACQUIRE)
        me.jump("not yet", lambda r: not r["forked"])
        for half in "ab":
            me.check(f"place 0 {half}", 1, f"half {half} of its version")
        me.store("row 2", 0, self.order("held, clear"))
        me.label("not yet")
        return me

    # -- futex_sleep and futex_wake

    def _sleeper(self, number: int) -> Thread:
        """Until it has seen the last version."""
        me = Thread(f"sleeper {number}")
        me.label("look")
        me.load("latest", "latest", self.order("latest, load"))
        me.jump("done", lambda r: r["latest"] == self.versions)
        me.label("announce")
        me.load("ticket", "sleepers", RELAXED)
        me.jump("announced", lambda r: r["ticket"] % 2 == 1)
        me.update("found", "sleepers", _if_still_ticket, self.order("sleepers, swap"))
        me.jump("announce", lambda r: r["found"] != r["ticket"])
        me.label("announced")
        me.let("ticket", lambda r: r["ticket"] | 1)
        if self.has("fence of the sleeper"):
            me.fence()
        if self.has("second look of the sleeper"):
            me.load("again", "latest", self.order("latest, load"))
            me.jump("look", lambda r: r["again"] != r["latest"])
        me.sleep("sleepers", lambda r: r["ticket"])
        me.jump("look")
        me.label("done")
        return me

    def _waker(self) -> Thread:
        me = Thread("waker")
        for version in range(1, self.versions + 1):
            me.store("latest", version, self.order("latest, store"))
            if self.has("fence of the waker"):
                me.fence()
            me.label(f"look {version}")
            me.load("ticket", "sleepers", RELAXED)
            me.jump(f"nobody {version}", lambda r: r["ticket"] % 2 == 0)
            me.update("found", "sleepers", _if_still_ticket, self.order("sleepers, swap"))
            me.jump(f"look {version}", lambda r: r["found"] != r["ticket"])
            me.wake()
            me.label(f"nobody {version}")
        return me


def _place(registers: Registers, grows: bool) -> int:
    return registers["places"][registers["slot"]] if grows else registers["slot"]


def _if_still_ticket(sleepers: int, registers: Registers) -> int | None:
    return sleepers + 1 if sleepers == registers["ticket"] else None
