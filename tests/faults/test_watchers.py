"""Watchers that keep every version of the weights get an error that advises them; training continues."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest

import helpers
import networks
from untorn import SGD, CapacityError, Trainer, publish
from untorn.train import Callback

LINE = networks.data_of(60, 3)


def keep_everything(pipe, reader) -> None:
    kept, version = [], 0
    pipe.put("watching")
    try:
        while True:
            snapshot = reader.snapshot(newer_than=version, timeout_s=helpers.WATCHDOG_S)
            version = snapshot.version
            kept.append(snapshot.value["w"])
    except CapacityError as error:
        pipe.put((len(kept), str(error)))
    first = kept[0].copy()
    kept.clear()  # as the error advises
    del snapshot
    with reader.snapshot() as newest:
        pipe.put((newest.version >= version, bool((newest.value["w"] != first).any())))


class UntilTold(Callback):
    """Train until the watcher reports."""

    def __init__(self, child) -> None:
        self.child = child

    def on_epoch_end(self, epoch, logs):
        self.trainer.stop_training = self.child.pipe.poll(0)


@pytest.mark.parametrize("engine", ["serial", "processes"])
def test_training_goes_on(engine):
    arguments = {"workers": 1, "shards": 1} if engine == "processes" else {"engine": "serial", "shards": 1}
    with contextlib.ExitStack() as stack:
        trainer = Trainer(networks.line, networks.line_params(3), optimizer=SGD(0.001), **arguments)
        stack.enter_context(trainer)
        with helpers.start(keep_everything, trainer.subscriber()) as watcher:
            assert watcher.get() == "watching"
            trainer.fit(LINE, epochs=100_000, batch_size=10, callbacks=[UntilTold(watcher)])
            held, message = watcher.get()
            assert held >= 4
            assert f"this process holds {held} versions" in message
            assert "copy what is to be kept" in message
            trainer.fit(LINE, epochs=20, batch_size=10)  # more versions than there are slots
            assert watcher.get() == (True, True)
            assert watcher.join() == 0


# -- the rule


def hold(pipe, reader) -> None:
    held = []
    while True:
        pipe.get()
        held.append(reader.snapshot())
        pipe.put(held[-1].version)


def let_hold(child, channel, count: int) -> None:
    """Let another process hold ``count`` more versions."""
    for _ in range(count):
        channel.update(np.ones(4))
        child.put()
        assert child.get() == channel.version


def test_who_holds_many_leaves_the_reserve_alone():
    with publish(np.zeros(4), max_slots=12) as channel:
        channel._open().reserve_slots(3)
        reader, held = channel.subscriber(), []
        with helpers.start(hold, reader) as other:
            with pytest.raises(CapacityError, match=r"holds 8 versions, and the slots that are left are reserved"):
                while True:
                    held.append(reader.snapshot())
                    channel.update(np.ones(4))
            assert [snapshot.version for snapshot in held] == list(range(1, 9))
            for _ in range(20):
                channel.update(np.ones(4))
            let_hold(other, channel, 2)  # others hold a few, independent of this process
            for snapshot in held[:5]:
                snapshot.close()
            held.append(reader.snapshot())
            assert held[-1].version == channel.version
            for snapshot in held:
                snapshot.close()
        reader.close()


def test_what_the_dead_hold_is_free():
    with publish(np.zeros(4), max_slots=12) as channel:
        channel._open().reserve_slots(3)
        reader, held = channel.subscriber(), []
        with helpers.start(hold, reader) as other:
            let_hold(other, channel, 4)
            for _ in range(4):
                channel.update(np.ones(4))
                held.append(reader.snapshot())
            channel.update(np.ones(4))
            with pytest.raises(CapacityError, match="holds 4 versions"):
                reader.snapshot()
            other.kill()
            held.append(reader.snapshot())
        for snapshot in held:
            snapshot.close()
        reader.close()
