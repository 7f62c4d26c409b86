"""The operations of victims: every operation of share, its preparation, and the versions that may be the newest then.

An operation is a function of a Stage and of the result of its preparation. The stage keeps everything that either
opens, and closes it at the end, so that the sweep sees resources that the operation itself leaves open.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

import untorn
import untorn.adapters.python  # an import that fails in the middle of an operation is not what is looked for
from sweep.scenes import LARGE, NAME, SMALL, AnonymousScene, NamedScene, ReaderScene, Scene, payload, table, whole
from untorn.cli.gc import collect
from untorn.share import compaction, table_writer

__all__ = ["MISTAKES", "OPERATIONS", "Operation", "Stage"]


@dataclass
class Stage:
    """The place of a victim's work, and the objects that it has open."""

    folder: Path
    kept: list[Any] = field(default_factory=list)
    views: list[Any] = field(default_factory=list)

    def keep(self, opened: Any) -> Any:
        """Close this at the end, and not before."""
        self.kept.append(opened)
        return opened

    def publish(self, value: Any, **arguments: Any) -> untorn.Publisher:
        """Publish the channel of this stage."""
        return self.keep(untorn.publish(value, name=NAME, directory=self.folder, **arguments))

    def subscribe(self) -> untorn.Subscriber:
        """Read the channel of this stage."""
        return self.keep(untorn.subscribe(self.folder / NAME))

    def close(self) -> None:
        """Release all, the last first."""
        self.views.clear()
        while self.kept:
            self.kept.pop().close()


@dataclass(frozen=True)
class Operation:
    """One row of the sweep.

    Attributes:
        prepare: runs before, unwatched; ``work`` gets its result.
        versions: those that may be the newest after a kill; the last one is the newest when the work is done.
        follow_child: the child that the work forks is swept, not the process itself.
        message: for the scene, made from the result of ``prepare``.
    """

    name: str
    work: Callable[[Stage, Any], Any]
    prepare: Callable[[Stage], Any]
    scene: Callable[[Path], Scene]
    versions: tuple[Any, ...] = (3, 4)
    follow_child: bool = False
    message: Callable[[Any], Any] = lambda state: None


OPERATIONS: dict[str, Operation] = {}


#: operations that break a promise deliberately: a sweep must detect them
MISTAKES: dict[str, Operation] = {}


def operation(
    prepare: Callable[[Stage], Any],
    scene: Callable[[Path], Scene] = NamedScene,
    table: dict[str, Operation] = OPERATIONS,
    **rest: Any,
) -> Any:
    """Make an operation of the function below, under its name."""

    def add(work: Callable[[Stage, Any], Any]) -> Callable[[Stage, Any], Any]:
        name = work.__name__.removeprefix("_")
        table[name] = Operation(name, work, prepare, scene, **rest)
        return work

    return add


# -- what comes before


def nothing(stage: Stage) -> None:
    """There is no channel."""


def channel(stage: Stage, **arguments: Any) -> untorn.Publisher:
    """A channel of three small versions."""
    publisher = stage.publish(payload(1), **arguments)
    publisher.update(payload(2))
    publisher.update(payload(3))
    return publisher


def durable_channel(stage: Stage) -> untorn.Publisher:
    """The same, durable."""
    return channel(stage, durable=True)


def large_channel(stage: Stage) -> untorn.Publisher:
    """A channel whose versions are large."""
    publisher = stage.publish(payload(1, LARGE))
    for version in (2, 3):
        publisher.update(payload(version, LARGE))
    return publisher


def dead_channel(stage: Stage) -> None:
    """A channel whose publisher was killed."""
    in_a_killed_child(lambda: channel(stage))


def half(stage: Stage, missing: str) -> None:
    """A dead channel without one of its files."""
    dead_channel(stage)
    os.unlink(stage.folder / f"{NAME}.{missing}")


def without_nameless_files(stage: Stage) -> None:
    """Behave as on a file system that has no O_TMPFILE."""
    real = os.open

    def refusing(path: Any, flags: int, *args: Any, **rest: Any) -> int:
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
        return real(path, flags, *args, **rest)

    os.open = refusing  # this process is the victim, and ends as one


def held_by_the_dead(stage: Stage) -> untorn.Publisher:
    """Every slot is the newest, or held by a reader that was killed."""
    publisher = stage.publish(payload(1), max_slots=3)
    readers = [_holding_reader(stage)]  # the sweeper's own reader will have this one's row
    for version in (1, 2, 3):
        if version > 1:
            publisher.update(payload(version))
        readers.append(_holding_reader(stage))
    for pid in readers:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    return publisher


def _holding_reader(stage: Stage) -> int:
    """A child that holds a snapshot of the newest version until it is killed."""
    told, tell = os.pipe()
    pid = os.fork()
    if pid == 0:
        with exiting():
            held = untorn.subscribe(stage.folder / NAME).snapshot()
            os.write(tell, bytes([whole(held)]))
            signal.pause()
    os.close(tell)
    assert os.read(told, 1)
    os.close(told)
    return pid


def anonymous_channel(stage: Stage) -> untorn.Publisher:
    """An anonymous channel of three versions."""
    publisher = stage.keep(untorn.publish(payload(1)))
    publisher.update(payload(2))
    publisher.update(payload(3))
    return publisher


def with_views(stage: Stage) -> None:
    """A channel, and a reader of it in the same process that holds a snapshot and a view."""
    channel(stage)
    snapshot = stage.keep(stage.subscribe().snapshot())
    stage.views.append(snapshot.value["x"][5:])


def in_a_killed_child(work: Callable[[], Any]) -> None:
    """Do something in a child that is killed right after."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
        finally:
            os.kill(os.getpid(), signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL


# -- making a channel, and taking one over

new = partial(NamedScene, watched=False, may_vanish=True)
removed = partial(NamedScene, may_vanish=True)
unwatched = partial(NamedScene, watched=False)


@operation(nothing, new, versions=(0, 1))
def _create(stage: Stage, state: Any) -> None:
    stage.publish(payload(1))


@operation(nothing, new, versions=(0, 1))
def _create_durable(stage: Stage, state: Any) -> None:
    stage.publish(payload(1), durable=True)


@operation(without_nameless_files, new, versions=(0, 1))
def _create_without_nameless_files(stage: Stage, state: Any) -> None:
    stage.publish(payload(1))


@operation(dead_channel)
def _take_over(stage: Stage, state: Any) -> None:
    stage.publish(payload(4))


@operation(dead_channel)
def _take_over_durable(stage: Stage, state: Any) -> None:
    stage.publish(payload(4), durable=True)


@operation(partial(half, missing="data"), new, versions=(0, 1))
def _take_over_a_half(stage: Stage, state: Any) -> None:
    stage.publish(payload(1))


# -- writing


@operation(channel)
def _update(stage: Stage, publisher: untorn.Publisher) -> None:
    publisher.update(payload(4))


@operation(channel)
def _update_growing(stage: Stage, publisher: untorn.Publisher) -> None:
    publisher.update(payload(4, LARGE))


@operation(large_channel)
def _update_shrinking(stage: Stage, publisher: untorn.Publisher) -> None:
    publisher.update(payload(4, 10))


@operation(durable_channel)
def _update_durable(stage: Stage, publisher: untorn.Publisher) -> None:
    publisher.update(payload(4, 2 * SMALL))


@operation(held_by_the_dead)
def _update_reclaiming(stage: Stage, publisher: untorn.Publisher) -> None:
    publisher.update(payload(4), timeout_s=0)


@operation(channel)
def _patch(stage: Stage, publisher: untorn.Publisher) -> None:
    publisher.patch({"x": np.full(SMALL, 4, "i8"), "version": 4})


@operation(channel)
def _patch_restructuring(stage: Stage, publisher: untorn.Publisher) -> None:
    publisher.patch({"x": np.full(LARGE, 4, "i8"), "version": 4})


@operation(channel)
def _edit(stage: Stage, publisher: untorn.Publisher) -> None:
    with publisher.edit() as value:
        value["x"][:] = 4
        value["version"] = 4


@operation(channel)
def _edit_without_copy(stage: Stage, publisher: untorn.Publisher) -> None:
    with publisher.edit(copy=False) as value:
        value["x"][:] = 4
        value["version"] = 4


@operation(channel)
def _edit_restructuring(stage: Stage, publisher: untorn.Publisher) -> None:
    with publisher.edit() as value:
        value["x"] = np.full(LARGE, 4, "i8")
        value["version"] = 4


@operation(channel)
def _frozen_dict(stage: Stage, publisher: untorn.Publisher) -> None:
    table = untorn.FrozenDict({f"key {i}": i for i in range(30)})
    with untorn.publish({"table": table}) as other, other.subscriber() as reader:
        assert reader.snapshot().value["table"]["key 7"] == 7
    publisher.update(payload(4))


def table_channel(stage: Stage, **arguments: Any) -> untorn.Publisher:
    """A channel of a FrozenDict, whose second and third version are changes of the first."""
    publisher = stage.publish(table(1), **arguments)
    for version in (2, 3):
        publisher.patch(payload(version))
    return publisher


@operation(table_channel)
def _patch_table(stage: Stage, publisher: untorn.Publisher) -> None:
    publisher.patch(payload(4))


@operation(partial(table_channel, durable=True))
def _edit_table_durable(stage: Stage, publisher: untorn.Publisher) -> None:
    with publisher.edit() as entries:
        entries["more"] = 1
        del entries["more"], entries["x"]
        entries.update(payload(4))


@operation(table_channel)
def _compact_table(stage: Stage, publisher: untorn.Publisher) -> None:
    publisher.patch(payload(4, LARGE))


@operation(table_channel, versions=(3, 4, 5))
def _compact_table_and_go_on(stage: Stage, publisher: untorn.Publisher) -> None:
    publisher.patch(payload(4, LARGE))
    publisher.patch(payload(5))


class _InPlace(threading.Thread):
    """A thread whose work is done by start(), so that a sweep has one order of steps."""

    def start(self) -> None:
        self.run()

    def is_alive(self) -> bool:
        return False

    def join(self, timeout: float | None = None) -> None:
        pass


def large_table_channel(stage: Stage, **arguments: Any) -> untorn.Publisher:
    """A channel of a FrozenDict that is compacted in a thread, with the next version."""
    compaction.threading = SimpleNamespace(Thread=_InPlace, current_thread=threading.current_thread)
    table_writer._SMALL_NBYTES = table_writer._LARGE_NBYTES = 0
    return table_channel(stage, **arguments)


def _compact_beside(stage: Stage, publisher: untorn.Publisher) -> None:
    publisher.patch(payload(4, LARGE // 10))
    publisher.patch(payload(5))
    publisher.patch(payload(6))


operation(large_table_channel, versions=(3, 4, 5, 6))(_compact_beside)


@operation(partial(large_table_channel, durable=True), versions=(3, 4, 5, 6))
def _compact_beside_durable(stage: Stage, publisher: untorn.Publisher) -> None:
    _compact_beside(stage, publisher)


@operation(large_table_channel, versions=(3, 4, 5))
def _compact_beside_in_vain(stage: Stage, publisher: untorn.Publisher) -> None:
    publisher.patch(payload(4, LARGE // 10))
    publisher.update(table(5))


@operation(lambda stage: in_a_killed_child(lambda: table_channel(stage)))
def _take_over_a_table(stage: Stage, state: Any) -> None:
    stage.publish(table(4))


@operation(channel)
def _look_at_readers(stage: Stage, publisher: untorn.Publisher) -> None:
    _ = publisher.readers(), publisher.nbytes
    publisher.update(payload(4))


# -- ending


@operation(channel, versions=(3,))
def _close(stage: Stage, publisher: untorn.Publisher) -> None:
    publisher.close()


@operation(channel, removed, versions=(3,))
def _unlink(stage: Stage, publisher: untorn.Publisher) -> None:
    publisher.unlink()
    publisher.close()


@operation(dead_channel, partial(NamedScene, watched=False, may_vanish=True), versions=(3,))
def _gc(stage: Stage, state: Any) -> None:
    refused(collect(stage.folder))


@operation(dead_channel, versions=(3,))
def _gc_of_a_used_channel(stage: Stage, state: Any) -> None:
    collect(stage.folder)


@operation(partial(half, missing="data"), new, versions=(0,))
def _gc_of_control_alone(stage: Stage, state: Any) -> None:
    refused(collect(stage.folder))


@operation(partial(half, missing="control"), new, versions=(0,))
def _gc_of_data_alone(stage: Stage, state: Any) -> None:
    refused(collect(stage.folder))


def refused(outcomes: list[Any]) -> None:
    """gc does not raise: it says why it kept a channel."""
    for outcome in outcomes:
        if not outcome.removed:
            raise (untorn.CapacityError if " needs " in outcome.reason else untorn.UntornError)(outcome.reason)


# -- anonymous channels

subscriber_of = untorn.Publisher.subscriber


@operation(anonymous_channel, AnonymousScene, message=subscriber_of)
def _anonymous_update(stage: Stage, publisher: untorn.Publisher) -> None:
    publisher.update(payload(4))


@operation(anonymous_channel, AnonymousScene, message=subscriber_of)
def _anonymous_cycle(stage: Stage, publisher: untorn.Publisher) -> None:
    with untorn.publish(payload(1, LARGE)) as other, other.subscriber() as reader:
        assert whole(reader.snapshot()) == 1
        other.update(payload(2))
        assert whole(reader.snapshot()) == 2
    publisher.update(payload(4))


# -- reading


def attached(stage: Stage) -> untorn.Subscriber:
    """A reader that is attached already."""
    reader = stage.subscribe()
    whole(reader.snapshot())
    return reader


@operation(nothing, ReaderScene)
def _attach_read_close(stage: Stage, state: Any) -> None:
    with stage.subscribe() as reader, reader.snapshot() as snapshot:
        view = snapshot.value["x"]
        assert whole(snapshot) == view[0]


@operation(attached, ReaderScene)
def _read(stage: Stage, reader: untorn.Subscriber) -> None:
    with reader.snapshot() as one, reader.snapshot() as other:
        assert whole(one) == whole(other)


@operation(attached, ReaderScene)
def _wait(stage: Stage, reader: untorn.Subscriber) -> None:
    with contextlib.suppress(TimeoutError):
        reader.wait(1000, timeout_s=0.01)


@operation(with_views)
def _wait_for_a_thread(stage: Stage, state: Any) -> None:
    publisher, reader, _ = stage.kept
    errors: list[Exception] = []

    def write() -> None:
        try:
            publisher.update(payload(4))
        except Exception as error:
            errors.append(error)
            publisher.close()  # this ends the wait

    writer = threading.Thread(target=write)
    writer.start()
    try:
        assert reader.wait(3) == 4
    except untorn.BrokenChannelError:
        writer.join()
        raise errors.pop() from None
    finally:
        writer.join()


def with_a_loop(prepare: Callable[[Stage], Any], stage: Stage) -> Any:
    """The same with an event loop; failures to create one are errors of Python."""
    state = prepare(stage)
    stage.keep(asyncio.new_event_loop())
    return state


@operation(partial(with_a_loop, with_views))
def _wait_async(stage: Stage, state: Any) -> None:
    publisher, reader, *_ = stage.kept

    async def wait() -> None:
        waiting = asyncio.create_task(reader.snapshot_async(newer_than=3, timeout_s=30))
        await asyncio.sleep(0)
        try:
            publisher.update(payload(4))
        except BaseException:
            waiting.cancel()
            raise
        assert whole(await waiting) == 4

    stage.kept[-1].run_until_complete(wait())


@operation(partial(with_a_loop, attached), ReaderScene)
def _wait_async_in_vain(stage: Stage, reader: untorn.Subscriber) -> None:
    with contextlib.suppress(TimeoutError):
        stage.kept[-1].run_until_complete(reader.wait_async(1000, timeout_s=0.01))


# -- fork


def fork_and_look(stage: Stage, state: Any) -> None:
    """Fork with a snapshot and a view; the child looks at both, reads, and ends; the parent continues publishing."""
    publisher, reader, snapshot = stage.kept
    pid = os.fork()
    if pid == 0:
        with exiting():
            assert np.array_equiv(stage.views[0], 3)
            assert whole(snapshot) == 3
            with contextlib.suppress(untorn.UntornError, OSError):  # without its own row it can look no further
                assert whole(reader.snapshot()) in (3, 4)
    publisher.update(payload(4))
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    # SIGABRT: without the memory for its own mappings a child could do harm alone, and nobody could be told
    assert status in (0, -signal.SIGKILL, -signal.SIGABRT), f"the child ended with {status}"


@contextlib.contextmanager
def exiting() -> Iterator[None]:
    """End a forked child after the block, with status 1 if the block raised."""
    status = 1
    try:
        yield
        status = 0
    finally:
        os._exit(status)


@operation(with_views)
def _fork_with_views(stage: Stage, state: Any) -> None:
    fork_and_look(stage, state)


@operation(with_views, follow_child=True)
def _forked_child_with_views(stage: Stage, state: Any) -> None:
    fork_and_look(stage, state)


# -- mistakes


@operation(channel, table=MISTAKES)
def _writing_over_the_newest(stage: Stage, publisher: untorn.Publisher) -> None:
    attachment = publisher._attachment
    for _, offset, *_ in attachment.slots():
        os.pwrite(attachment.data_fd, bytes(100), offset + 1000)
    publisher.update(payload(4))


@operation(channel, table=MISTAKES)
def _removing_first(stage: Stage, publisher: untorn.Publisher) -> None:
    os.unlink(stage.folder / f"{NAME}.control")
    stage.publish(payload(4))


@operation(nothing, new, versions=(0, 1), table=MISTAKES)
def _making_a_file_under_its_name(stage: Stage, state: Any) -> None:
    (stage.folder / f"{NAME}.control").write_bytes(bytes(8192))
    (stage.folder / f"{NAME}.control").unlink()
    stage.publish(payload(1))


@operation(dead_channel, versions=(3,), table=MISTAKES)
def _keeping_a_descriptor(stage: Stage, state: Any) -> None:
    stage.views.append(os.open(stage.folder, os.O_RDONLY))  # a descriptor that nobody closes
