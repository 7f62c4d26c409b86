"""Log records of what happens inside a call: a channel that grows, and what the dead leave. Processes are killed."""

import itertools
import logging
import threading

import numpy as np
import pytest

import untorn
from helpers import start

LOGGER = "untorn.share.journal"


@pytest.fixture
def told(caplog):
    """The messages and the facts since the last call."""
    caplog.set_level(logging.INFO, "untorn")

    def take():
        records = [record for record in caplog.records if record.name == LOGGER]
        caplog.clear()
        assert all(record.levelno == logging.INFO for record in records)
        return [(record.getMessage(), record.args) for record in records]

    return take


def hold(pipe, subscriber):
    snapshot = subscriber.snapshot()
    pipe.put(snapshot.version)
    pipe.get()


def take_and_put(pipe, queue):
    """Have an item that is not finished, a view of another one, and a slot that is being written."""
    view, item = queue.get(), queue.take()
    with queue.reserve(like=np.zeros(6000)):
        pipe.put((view.tolist(), item.value))
        pipe.get()


def changed(publisher, way, value):
    if way == "update":
        return publisher.update({"w": value})
    if way == "patch":
        return publisher.patch({"w": value})
    with publisher.edit() as tree:
        tree["w"][:] = value
    return publisher.version


@pytest.mark.parametrize("way", ["update", "patch", "edit"])
def test_growth_and_the_slots_of_a_dead_reader(told, way):
    value = np.zeros(1000)
    with untorn.publish({"w": value}) as publisher:
        mine = publisher.subscriber().snapshot()  # this process has a row, so it does not get the dead reader's
        mine.close()
        for _ in range(3):
            changed(publisher, way, value)
        assert told() == []  # two slots take turns
        with start(hold, publisher.subscriber()) as reader:
            assert reader.get() == 4
            for _ in range(3):
                changed(publisher, way, value)
            grown = f"channel 'anonymous': grew to 3 slots of at most 64; bytes: {publisher.nbytes}"
            assert told() == [(grown, ("anonymous", 3, 64, publisher.nbytes))]
            pid, nbytes = reader.pid, publisher.nbytes // 3
            reader.kill()
        kept = [publisher.subscriber().snapshot()]
        while not (records := told()):  # until the dead reader's slot is needed
            assert changed(publisher, way, value) == kept[-1].version + 1
            kept.append(publisher.subscriber().snapshot())
        dead = f"channel 'anonymous': reader {pid} is dead; slots that it held: 1, bytes: {nbytes}"
        assert records == [(dead, ("anonymous", pid, 1, nbytes))]
        del kept


def test_a_value_that_grows_with_each_version_fills_no_log(told):
    with untorn.publish(np.zeros(1)) as publisher:
        for pages in range(1, 201):
            publisher.update(np.zeros(pages * 512))
        assert publisher.version == 201
        sizes = [args[-1] for _, args in told()]
    assert 5 < len(sizes) < 30
    assert all(after * 4 >= before * 5 for before, after in itertools.pairwise(sizes))


def test_a_reader_that_gets_the_row_of_a_dead_one(told):
    with untorn.publish({"w": np.zeros(1000)}, max_readers=1) as publisher:
        with start(hold, publisher.subscriber()) as reader:
            assert reader.get() == 1
            pid = reader.pid
            reader.kill()
        with publisher.subscriber().snapshot() as snapshot:
            assert snapshot.version == 1
        ((message, args),) = told()
    assert message.startswith(f"channel 'anonymous': reader {pid} is dead")
    assert args[1:3] == (pid, 1)


def test_many_dead_readers(told):
    """More than the journal has room for are counted."""
    readers = 40
    with untorn.publish(0, max_slots=2, max_readers=64) as publisher:
        children = [start(hold, publisher.subscriber()) for _ in range(readers)]
        assert {child.get() for child in children} == {1}
        pids = {child.pid for child in children}
        for child in children:
            child.kill()
        publisher.update(1)
        publisher.update(2)
        *dead, (lost, _) = told()
    assert len(dead) + int(lost.split()[-4]) == readers
    assert lost == f"channel 'anonymous': and {readers - len(dead)} more such events"
    assert {args[1] for _, args in dead} < pids


@pytest.mark.parametrize("way", ["get", "take", "wait", "put"])
def test_what_a_dead_process_had_of_a_queue(told, way):
    with untorn.queue(8, nbytes=1 << 16) as queue:
        queue.put(np.zeros(4))
        queue.put("taken")
        if way == "get":  # the short way, by a plan
            queue.put("first")
        with start(take_and_put, queue) as child:
            assert child.get() == ([0] * 4, "taken")
            if way == "get":
                assert queue.get() == "first"
            assert told() == []
            pid = child.pid
            child.kill()
        if way == "put":
            queue.put(np.zeros(4000))  # there is no room for both
            assert queue.get() == "taken"
            assert queue.get().size == 4000
        elif way == "take":
            with queue.take() as item:
                assert item.value == "taken"
        else:
            assert queue.get(timeout_s=None if way == "wait" else 60) == "taken"
        message = (
            f"queue 'anonymous': process {pid} is dead; items that are in the queue again: 1, "
            "slots that are free again: 2"
        )
        assert told() == [(message, ("anonymous", pid, 1, 2))]
        assert queue.empty()


def test_a_handler_may_use_the_channel(told):
    """It runs without the lock, so it may even wait for another thread that publishes."""
    answers = []

    class Handler(logging.Handler):
        def emit(self, record):
            thread = threading.Thread(target=lambda: answers.append(publisher.update(np.zeros(1))))
            thread.start()
            thread.join(60)
            answers.append(thread.is_alive())

    handler = Handler()
    logger = logging.getLogger(LOGGER)
    with untorn.publish(np.zeros(1)) as publisher:
        publisher.update(np.zeros(1))
        logger.addHandler(handler)
        try:
            assert publisher.update(np.zeros(9000)) == 3
        finally:
            logger.removeHandler(handler)
        assert publisher.version == 4
    assert answers == [4, False]
