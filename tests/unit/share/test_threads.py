"""Threads of one process that share a Publisher, a Subscriber, or what a snapshot gave; with the GIL and without."""

import contextlib
import itertools
import signal
import sys
import sysconfig
import threading
import traceback

import numpy as np
import pytest

import untorn

ROUNDS = 300


def together(*tasks, rounds=ROUNDS):
    """Each task in its own thread, over and over; the first error ends them all."""
    errors = []
    start = threading.Barrier(len(tasks))

    def work(task):
        start.wait()
        try:
            for _ in range(rounds):
                if errors:
                    return
                task()
        except BaseException:
            errors.append(traceback.format_exc())

    threads = [threading.Thread(target=work, args=(task,)) for task in tasks]
    switching = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(switching)
    assert not errors, errors[0]


@pytest.mark.skipif(not sysconfig.get_config_var("Py_GIL_DISABLED"), reason="this build of Python has the GIL")
def test_a_free_threaded_build_stays_one():
    assert not sys._is_gil_enabled()


def test_writers_take_turns_and_readers_see_whole_versions():
    numbers = itertools.count(1)
    with untorn.publish({"a": np.zeros(1000), "n": 0}) as publisher:
        reader = publisher.subscriber()

        def update():
            number = next(numbers)
            publisher.update({"a": np.full(1000, number), "n": number})

        def edit():
            with publisher.edit() as tree:
                tree["n"] = next(numbers)
                tree["a"][:] = tree["n"]

        def patch():
            number = next(numbers)
            publisher.patch({"a": np.full(1000, number), "n": number})

        def read():
            value = reader.snapshot().value
            assert (value["a"] == value["n"]).all()

        together(update, edit, patch, read, read)
        assert publisher.version == 1 + 3 * ROUNDS


def test_more_structures_than_are_remembered():
    """The oldest of what a process knows of a channel's structures is forgotten, by whichever thread comes first."""
    structures = itertools.count()
    with untorn.publish({"0": 0}) as publisher:
        reader = publisher.subscriber()

        def update():
            number = next(structures)
            publisher.update({str(number): number})

        def read():
            ((name, number),) = reader.snapshot().value.items()
            assert name == str(number)

        together(update, read, read, read)


def test_one_iterator_gives_each_entry_once():
    entries = {str(i): [i] for i in range(3 * ROUNDS)}
    iterator = iter(untorn.FrozenDict(entries).items())
    seen = []
    together(*[lambda: seen.append(next(iterator))] * 3)
    assert dict(seen) == entries and len(seen) == len(entries)
    assert next(iterator, None) is None


def test_a_dict_that_changes_while_it_is_built_from():
    changing = {i: [i] for i in range(200)}
    numbers = itertools.count()

    def build():
        with contextlib.suppress(RuntimeError):  # as a dict says it
            untorn.FrozenDict(changing)

    def change():
        number = next(numbers) * 7 % 400
        if changing.pop(number, None) is None:
            changing[number] = [number] * (number % 3)

    together(build, change, change)


def test_private_memory_is_one_for_all_threads():
    with untorn.publish(np.arange(1000)) as publisher:
        hold = publisher.subscriber()._attached.pin()
        addresses = set()
        together(*[lambda: addresses.add(np.frombuffer(hold.private(), np.uint8).ctypes.data)] * 3)
        assert len(addresses) == 1


def test_closing_while_others_write_and_read():
    for _ in range(ROUNDS // 10):
        publisher = untorn.publish({"a": np.zeros(10)})
        reader = publisher.subscriber()
        reader.attach()

        def use(publisher=publisher, reader=reader):
            with contextlib.suppress(untorn.ClosedError):
                publisher.update({"a": np.ones(10)})
                assert reader.snapshot().value["a"].size == 10

        together(use, use, lambda publisher=publisher: publisher.close(), reader.close, rounds=3)


def test_closing_in_a_signal_handler():
    publishers = []
    before = signal.signal(signal.SIGALRM, lambda *_: publishers[-1].close())
    try:
        for number in range(30):
            publishers.append(untorn.publish({"a": np.zeros(2000)}))
            signal.setitimer(signal.ITIMER_REAL, 0.0005 + number * 1e-5)
            with pytest.raises(untorn.ClosedError, match="is closed"):
                while True:
                    publishers[-1].update({"a": np.ones(2000)})
    finally:
        signal.signal(signal.SIGALRM, before)


def test_closing_inside_an_edit_publishes_nothing():
    publisher = untorn.publish({"n": 1})
    reader = publisher.subscriber()
    reader.attach()
    with pytest.raises(untorn.ClosedError, match="is closed"), publisher.edit() as tree:
        tree["n"] = 2
        publisher.close()
    assert reader.snapshot().value == {"n": 1}
