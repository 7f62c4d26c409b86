"""Names that are created and removed while others open them: no process ever attaches to halves of two channels.

There are two tests. One moves names from channel to channel as fast as the system can, in the order in which publishers
create and remove them, so that most openings come in the middle of a change. The other has real publishers that create,
take over, unlink and are killed, with `untorn gc` among them, and readers that check that their snapshots are whole.
"""

import contextlib
import os
import signal
import time

import numpy as np
import pytest

import untorn
from helpers import start
from untorn import BusyError, ChannelNotFoundError, _core
from untorn.cli.gc import collect
from untorn.share import opening
from untorn.share.storage_errors import MixedError

OPENS = 3_000
#: of the soak
SOAK_OPENS = int(os.environ.get("UNTORN_CHURN_OPENS", "10_000_000"))
CHANNELS = 4
#: the lifetime of a name, in rounds of an empty loop: an opener finds it most of the time
PAUSE = 3_000
#: every such opening yields the processor between its two steps, so that names certainly change there
YIELD_EVERY = 100
READS = 250


@pytest.fixture
def folder(tmp_path_factory):
    """Return a folder in memory, where names change fastest."""
    folder = f"/dev/shm/untorn-churn-{os.getpid()}-{os.urandom(4).hex()}"
    os.mkdir(folder, 0o700)
    yield folder
    for name in os.listdir(folder):
        os.unlink(f"{folder}/{name}")
    os.rmdir(folder)


# -- names that move as fast as possible


def _move_names(pipe, folder):
    """Give the names to one channel after another, until told to stop."""
    moves = 0
    while not pipe.has_message():
        for _ in range(100):
            channel = f"{folder}/channel-{moves % CHANNELS}"
            os.rename(f"{channel}.control", f"{folder}/c.control")
            os.rename(f"{channel}.data", f"{folder}/c.data")
            for _ in range(PAUSE):
                pass
            os.rename(f"{folder}/c.data", f"{channel}.data")
            os.rename(f"{folder}/c.control", f"{channel}.control")
            moves += 1
    pipe.put(moves)
    pipe.get()


class Counts:
    """The counts of the openers: attached pairs, mixed pairs among these, and refused pairs."""

    def __init__(self) -> None:
        self.opened = self.mixed = self.refused = self.data_files = 0


@pytest.fixture
def counts(monkeypatch):
    """Return the counts; every YIELD_EVERY-th opening of a data file lets others run first."""
    counts, real_open, real_attach = Counts(), opening.open_path, opening.attach

    def yielding(path, flags):
        if path.endswith(".data"):
            counts.data_files += 1
            if counts.data_files % YIELD_EVERY == 0:
                os.sched_yield()
        return real_open(path, flags)

    def counting(*args, **kwargs):
        try:
            return real_attach(*args, **kwargs)
        except MixedError:
            counts.refused += 1
            raise

    monkeypatch.setattr(opening, "open_path", yielding)
    monkeypatch.setattr(opening, "attach", counting)
    return counts


def run(folder, counts: Counts, count: int) -> float:
    """Open the name with the code of subscribe() until it was found ``count`` times. Return the rate per second."""
    for number in range(CHANNELS):
        untorn.publish(number, name=f"channel-{number}", directory=folder).close()
    places = ((f"{folder}/c.control", f"{folder}/c.data"),)
    pairs = {
        os.stat(f"{folder}/channel-{number}.control").st_ino: os.stat(f"{folder}/channel-{number}.data").st_ino
        for number in range(CHANNELS)
    }
    with start(_move_names, folder) as mover:
        begin = time.monotonic()
        while counts.opened < count:
            try:
                attachment = opening.open_channel(places, "c", _core.READER)
            except ChannelNotFoundError:
                continue
            counts.opened += 1
            counts.mixed += pairs[os.fstat(attachment.control_fd).st_ino] != os.fstat(attachment.data_fd).st_ino
        rate = count / (time.monotonic() - begin)
        mover.put()
        assert mover.get() > 0
    return rate


def test_no_pair_is_mixed(folder, counts, monkeypatch):
    monkeypatch.setattr("test_churn.YIELD_EVERY", 10)
    run(folder, counts, OPENS)
    assert counts.mixed == 0 < counts.refused


@pytest.mark.soak
def test_no_pair_is_mixed_in_ten_million(folder, counts, capsys):
    """UNTORN_CHURN_OPENS sets another number."""
    rate = run(folder, counts, SOAK_OPENS)
    with capsys.disabled():
        print(f"{SOAK_OPENS:,} opens, {rate:,.0f} a second; {counts.refused:,} mixed pairs met, {counts.mixed} taken")
    assert counts.mixed == 0 < counts.refused


# -- real publishers


def _publish(pipe, folder, seed):
    """Create, take over, publish, close and unlink, also after a publisher that was killed."""
    rng = np.random.default_rng(seed)
    while not pipe.has_message():
        with contextlib.suppress(BusyError):
            publisher = untorn.publish(_value(rng), name="c", directory=folder, slots=2, max_slots=8)
            for _ in range(rng.integers(6)):
                publisher.update(_value(rng))
            if rng.random() < 0.5:
                publisher.unlink()
            if rng.random() < 0.5:
                publisher.close()
            del publisher


def _killed(pipe, folder, seed):
    """Run publishers one after another, and kill each at a random moment."""
    rng = np.random.default_rng(seed)
    kills = 0
    while not pipe.has_message():
        pid = os.fork()
        if pid == 0:
            with contextlib.suppress(BaseException):
                while True:
                    with (
                        contextlib.suppress(BusyError),
                        untorn.publish(_value(rng), name="c", directory=folder) as made,
                    ):
                        made.update(_value(rng))
                        made.unlink()
            os._exit(1)
        for _ in range(rng.integers(20_000)):  # some moment
            pass
        os.kill(pid, signal.SIGKILL)
        kills += os.waitpid(pid, 0)[1] == signal.SIGKILL
    pipe.put(kills)
    pipe.get()


def _collect(pipe, folder, _):
    while not pipe.has_message():
        collect(folder)


def _value(rng) -> dict:
    return {"x": np.full(2000, rng.integers(1 << 60), "i8")}


def read(folder, count: int) -> None:
    """Take ``count`` snapshots, each of a newly opened channel, and check each one again a moment later."""
    taken = 0
    while taken < count:
        try:
            snap = untorn.subscribe(f"{folder}/c").snapshot()
        except ChannelNotFoundError:
            continue
        first = snap.value["x"].copy()
        assert (first == first[0]).all()
        with contextlib.suppress(ChannelNotFoundError):
            untorn.subscribe(f"{folder}/c")  # time passes
        assert (snap.value["x"] == first).all()
        taken += 1


def churn(folder, rng, count: int) -> None:
    with contextlib.ExitStack() as stack:
        children = [
            stack.enter_context(start(target, folder, rng.randrange(1 << 32)))
            for target in (_publish, _publish, _killed, _collect)
        ]
        read(folder, count)
        for child in children:
            if child.pipe.poll():
                raise AssertionError(child.get())  # its traceback
            child.put()
        assert children[2].get() > 0
        for child in children:
            assert child.join() == 0
    collect(folder)
    assert os.listdir(folder) == []


def test_snapshots_of_names_that_come_and_go_are_whole(folder, rng):
    churn(folder, rng, READS)


@pytest.mark.soak
def test_snapshots_of_names_that_come_and_go_are_whole_for_long(folder, rng):
    churn(folder, rng, 200 * READS)
