"""Snapshots, waiting, lifetimes, and how a subscriber travels to other processes."""

import gc
import math
import multiprocessing
import os
import pickle
import signal
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import untorn
from helpers import WATCHDOG_S, descriptors, start
from untorn import BrokenChannelError, ChannelNotFoundError, ClosedError

METHODS = ["fork", "spawn", "forkserver"]


@pytest.fixture
def weights():
    with untorn.publish({"w": np.arange(6.0), "n": 1}) as publisher:
        yield publisher


# -- snapshots


def test_a_snapshot_is_the_newest_version(weights):
    reader = weights.subscriber()
    before = time.time()
    snap = reader.snapshot()
    assert snap.version == reader.version == 1
    assert snap.value["w"].tolist() == [0, 1, 2, 3, 4, 5] and snap.value["n"] == 1
    assert before - 60 < snap.published_at <= time.time()
    assert snap.nbytes > 48
    weights.update("next")
    assert reader.snapshot().value == "next"
    assert snap.version == 1 and snap.value["n"] == 1


def test_the_value_is_made_once(weights):
    snap = weights.subscriber().snapshot()
    assert snap.value is snap.value


def test_views_are_read_only_for_good(weights):
    array = weights.subscriber().snapshot().value["w"]
    with pytest.raises(ValueError, match="read-only"):
        array[0] = 1
    with pytest.raises(ValueError, match="WRITEABLE"):
        array.flags.writeable = True
    for view in (array[1:], array.view("i8"), array.reshape(2, 3), np.asarray(memoryview(array))):
        assert not view.flags.writeable
    base = array
    while isinstance(base, np.ndarray):
        base = base.base
    assert memoryview(base).readonly


def test_the_mapping_of_the_data_is_read_only(name):
    with untorn.publish(np.zeros(100), name=name) as publisher, start(_show_maps, name, method="spawn") as child:
        control, data = child.get()
        assert data == ["r--s"]
        assert control == ["r--s", "rw-s"]  # the publisher's page, and the reader rows
        publisher.unlink()


def _show_maps(pipe, name):
    snapshot = untorn.subscribe(name).snapshot()
    lines = [line.split() for line in Path("/proc/self/maps").read_text().splitlines() if f"/{name}." in line]
    child_data = sorted({line[1] for line in lines if line[5].endswith(".data")})
    pipe.put((sorted({line[1] for line in lines if line[5].endswith(".control")}), child_data))
    assert snapshot.version == 1


def test_a_snapshot_closes_and_its_views_live_on(weights):
    reader = weights.subscriber()
    with reader.snapshot() as snap:
        view = snap.value["w"][2:4]
    for use in (lambda: snap.value, lambda: snap.published_at, lambda: snap.nbytes, snap.__enter__):
        with pytest.raises(ClosedError, match="version 1 is closed"):
            use()
    snap.close()
    assert snap.version == 1 and "closed" in repr(snap)
    for i in range(500):
        weights.update({"w": np.full(6, -1.0), "n": i})
    assert view.tolist() == [2, 3]
    assert weights.readers()[0].versions == (1,)
    del view
    assert weights.readers()[0].versions == ()


def test_views_outlive_snapshot_subscriber_and_publisher():
    publisher = untorn.publish([np.full(100_000, 7.0)])
    reader = publisher.subscriber()
    view = reader.snapshot().value[0][::2]
    view2 = view.reshape(-1, 10).T
    reader.close()
    publisher.close()
    del reader, publisher
    gc.collect()
    assert (view == 7).all() and (view2 == 7).all()


def test_views_outlive_the_names_of_the_files(name):
    publisher = untorn.publish(np.full(1000, 7.0), name=name)
    view = untorn.subscribe(name).snapshot().value
    publisher.unlink()
    publisher.close()
    assert (view == 7).all()


def test_many_snapshots_of_one_version_are_one_pin(weights):
    reader = weights.subscriber()
    snaps = [reader.snapshot() for _ in range(1000)]
    weights.update(0)
    assert weights.readers()[0].versions == (1,)
    del snaps[1:]
    assert weights.readers()[0].versions == (1,)
    del snaps
    assert weights.readers()[0].versions == ()


# -- waiting


def test_newer_than_is_satisfied_at_once_by_what_is_there(weights):
    reader = weights.subscriber()
    assert reader.snapshot(newer_than=0).version == 1
    assert reader.wait(0) == 1
    weights.update(0)
    assert reader.wait(0, timeout_s=0) == 2


@pytest.mark.parametrize("timeout_s", [0, -1, 0.001, 0.15])
def test_a_timeout_names_the_version(weights, timeout_s):
    reader = weights.subscriber()
    for wait in (lambda: reader.wait(1, timeout_s), lambda: reader.snapshot(newer_than=1, timeout_s=timeout_s)):
        with pytest.raises(TimeoutError, match="newer than version 1"):
            wait()


def test_a_timeout_must_be_a_number(weights):
    reader = weights.subscriber()
    for wait in (
        lambda timeout_s: reader.wait(1, timeout_s),
        lambda timeout_s: untorn.subscribe("no-such-channel", timeout_s=timeout_s),
    ):
        with pytest.raises(TypeError, match="timeout_s: expected a number of seconds, found str"):
            wait("1")
        with pytest.raises(ValueError, match="timeout_s: expected a number of seconds, found nan"):
            wait(math.nan)


def test_a_snapshot_stays_in_its_process(weights):
    with pytest.raises(TypeError, match="send the Subscriber"):
        pickle.dumps(weights.subscriber().snapshot())


def test_newer_than_must_be_a_version(weights):
    with pytest.raises(TypeError, match="newer_than"):
        weights.subscriber().snapshot(newer_than="1")


def test_a_waiting_thread_gets_the_next_version(weights):
    reader = weights.subscriber()
    got = []
    thread = threading.Thread(target=lambda: got.append(reader.snapshot(newer_than=1).value))
    thread.start()
    weights.update("news")
    thread.join(WATCHDOG_S)
    assert got == ["news"]


def test_versions_go_back_and_forth_between_processes():
    with untorn.publish(0) as ours, start(_echo_back, ours.subscriber()) as child:
        back = child.get()
        assert back.snapshot().value == 0
        for i in range(1, 2000):
            ours.update(i)
            assert back.snapshot(newer_than=i, timeout_s=WATCHDOG_S).value == i
        ours.close()
        assert child.get() == "done"


def _echo_back(pipe, inbox):
    with untorn.publish(inbox.snapshot().value) as outbox:
        seen = inbox.version
        pipe.put(outbox.subscriber())
        while True:
            try:
                snap = inbox.snapshot(newer_than=seen)
            except BrokenChannelError:
                break
            seen = snap.version
            outbox.update(snap.value)
        pipe.put("done")


def test_iteration_gives_growing_versions_and_ends_on_close(weights):
    reader = weights.subscriber()
    seen = []
    for snap in reader:
        seen.append(snap.version)
        if snap.version < 5:
            weights.update(snap.version)
        else:
            weights.close()
    assert seen == [1, 2, 3, 4, 5]


def test_iteration_skips_what_it_missed(weights):
    versions = iter(weights.subscriber())
    assert next(versions).version == 1
    for i in range(10):
        weights.update(i)
    assert next(versions).version == 11


def test_a_closed_channel_can_be_read_but_not_waited_for(weights):
    reader = weights.subscriber()
    assert reader.version == 1
    weights.close()
    assert reader.snapshot().value["n"] == 1
    with pytest.raises(BrokenChannelError, match="closed it"):
        reader.wait(1)
    with pytest.raises(BrokenChannelError):
        reader.snapshot(newer_than=1, timeout_s=WATCHDOG_S)


def _publish_and_wait(pipe):
    with untorn.publish([np.ones(1000)]) as publisher:
        pipe.put(publisher.subscriber())
        pipe.get()


def test_a_killed_anonymous_publisher_is_a_broken_channel():
    with start(_publish_and_wait) as child:
        reader = child.get()
        snap = reader.snapshot()
        child.kill()
        for timeout_s in (None, WATCHDOG_S):
            with pytest.raises(BrokenChannelError, match="is dead"):
                reader.wait(1, timeout_s)
        with pytest.raises(BrokenChannelError):
            list(iter(reader))
        assert (snap.value[0] == 1).all() and (reader.snapshot().value[0] == 1).all()


def test_a_signal_handler_runs_while_a_reader_waits(weights):
    reader = weights.subscriber()

    def on_alarm(signum, frame):
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGALRM, on_alarm)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.02)
        with pytest.raises(KeyboardInterrupt):
            reader.wait(1)
    finally:
        signal.signal(signal.SIGALRM, previous)


# -- closing


def test_a_closed_subscriber_does_nothing(weights):
    reader = weights.subscriber()
    with reader:
        snap = reader.snapshot()
    reader.close()
    for use in (reader.snapshot, lambda: reader.version, lambda: reader.wait(0)):
        with pytest.raises(ClosedError, match="subscribe again"):
            use()
    with pytest.raises(ClosedError):
        next(iter(reader))
    assert "closed" in repr(reader) and snap.value["n"] == 1


def test_the_row_goes_back_with_the_last_user(weights):
    one, two = weights.subscriber(), weights.subscriber()
    snap = one.snapshot()
    assert two.version == 1 and len(weights.readers()) == 1
    one.close()
    two.close()
    assert len(weights.readers()) == 1
    del snap
    assert weights.readers() == []


# -- one attachment per process


def test_all_subscribers_of_a_process_are_one_attachment(name):
    with untorn.publish(1, name=name) as publisher:
        readers = [publisher.subscriber(), untorn.subscribe(name), untorn.subscribe(publisher)]
        readers += [untorn.subscribe(f"/dev/shm/untorn-{os.geteuid()}/{name}")]
        readers += [pickle.loads(pickle.dumps(reader)) for reader in readers]
        before = len(descriptors())
        assert [reader.snapshot().value for reader in readers] == [1] * 8
        assert len(publisher.readers()) == 1
        assert len(descriptors()) == before
        publisher.unlink()


def test_a_pickle_is_small(weights, name):
    with untorn.publish(np.zeros(100_000), name=name) as named:
        for publisher in (weights, named):
            for reader in (publisher.subscriber(), untorn.subscribe(publisher)):
                reader.snapshot()
                assert len(pickle.dumps(reader)) < 600
                again = pickle.loads(pickle.dumps(pickle.loads(pickle.dumps(reader))))
                assert len(pickle.dumps(again)) < 600
        named.unlink()


def test_a_pickle_of_a_channel_that_is_gone(weights):
    text = pickle.dumps(weights.subscriber())
    weights.close()
    gc.collect()
    reader = pickle.loads(text)  # an error here would end the worker of a pool, and hang the pool
    for _ in range(2):
        with pytest.raises(ChannelNotFoundError):
            reader.snapshot()


def test_a_pickle_whose_descriptors_lead_elsewhere_now():
    publisher = untorn.publish(1)
    text = pickle.dumps(publisher.subscriber())
    numbers = publisher._attachment.control_fd, publisher._attachment.data_fd
    publisher.close()
    gc.collect()
    reading, writing = os.pipe()
    try:
        for made in (reading, writing):
            if made not in numbers:
                pytest.skip("the numbers were not used again")
        with pytest.raises(ChannelNotFoundError):
            pickle.loads(text).attach()
    finally:
        os.close(reading)
        os.close(writing)


def test_threads_share_one_subscriber(weights):
    reader = weights.subscriber()
    stop = threading.Event()
    failures = []
    weights.update(np.full(1000, 2))

    def read():
        while not stop.is_set():
            with reader.snapshot() as snap:
                if not (snap.value == snap.version).all():
                    failures.append(snap.version)

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for version in range(3, 3000):
        weights.update(np.full(1000, version))
    stop.set()
    for thread in threads:
        thread.join()
    assert not failures
    assert weights.readers()[0].versions == ()


# -- to other processes


def _read_and_wait(pipe, reader):
    snap = reader.snapshot()
    pipe.put(float(snap.value["w"].sum()))
    pipe.put(reader.snapshot(newer_than=snap.version, timeout_s=WATCHDOG_S).value)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("used", [False, True])
def test_as_an_argument_of_a_process(weights, method, used):
    reader = weights.subscriber()
    if used:
        reader.snapshot()
    with start(_read_and_wait, reader, method=method) as child:
        assert child.get() == 15
        weights.update("second")
        assert child.get() == "second"
        assert child.join() == 0


def _sum(reader):
    return os.getpid(), float(reader.snapshot().value["w"].sum())


_given = None


def _give(reader):
    global _given  # noqa: PLW0603 (a pool's initializer has no other place)
    _given = reader


def _sum_of_given(_):
    return _given.snapshot().value["w"].sum()


@pytest.mark.parametrize("method", METHODS)
def test_in_a_pool(weights, method):
    reader = weights.subscriber()
    with multiprocessing.get_context(method).Pool(2, _give, (reader,)) as pool:
        results = pool.map(_sum, [reader] * 10, chunksize=1)
        assert [total for _, total in results] == [15] * 10
        assert pool.map(_sum_of_given, range(4)) == [15] * 4
        # (a forked child of a process that reads has its own row before it reads)
        assert {pid for pid, _ in results} <= {info.pid for info in weights.readers()}
        assert len({info.pid for info in weights.readers()}) == len(weights.readers())
        pool.close()
        pool.join()


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_in_a_process_pool_executor(weights, method):
    reader = weights.subscriber()
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context(method)) as pool:
        assert [total for _, total in pool.map(_sum, [reader] * 10)] == [15] * 10


def test_through_a_queue(weights):
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    queue.put(weights.subscriber())
    assert queue.get().snapshot().value["n"] == 1
    queue.close()


def _hand_on(pipe, reader):
    pipe.put(pickle.loads(pickle.dumps(reader)))
    pipe.get()


def test_handed_on_by_a_reader_of_a_reader(weights):
    with start(_hand_on, weights.subscriber(), method="spawn") as child:
        again = child.get()
        assert again.snapshot().value["n"] == 1
