"""Fixtures of every test: a printed seed, and the check that the test left nothing behind.

``UNTORN_SEED=<the printed seed>`` repeats a failing run. Tests marked ``soak`` run only with ``-m soak``. Files marked
``early`` begin before all others: they take long, and one that began last would run alone at the end.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import gc
import os
import random
import re
import shutil
import signal
import struct
import sys
import tempfile
import time
from multiprocessing import forkserver, resource_tracker
from pathlib import Path

# Tests run more processes than there are processors. A thread of OpenMP or OpenBLAS that spins while it waits takes the
# processor from the thread that it waits for, and a square root of torch can take a millisecond. Libraries read these
# when they are loaded, and child processes inherit them.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "4")

import pytest
from hypothesis.configuration import set_hypothesis_home_dir

import helpers
import virtual_nodes
from helpers import descriptors, untorn_mappings
from untorn.engines.fork_servers import end_fork_servers, fork_server_resources
from untorn.engines.worker_logs import LogReceiver
from untorn.share.attached import drop_dead_attachments
from untorn.share.queue_files import drop_lonely

SEED = int(os.environ.get("UNTORN_SEED") or random.SystemRandom().randrange(2**32))
os.environ["UNTORN_SEED"] = str(SEED)  # one seed for all processes that `pytest -n` starts
SHM = Path(f"/dev/shm/untorn-{os.geteuid()}")
RETRIES = 50
_JAX_RUNS = pytest.StashKey[bool]()
_FIGURE = re.compile(r"(?!UNTORN_SEED=|BROKEN)\S.*\d")


_HYPOTHESIS_HOME = tempfile.mkdtemp(prefix="untorn-hypothesis-")
set_hypothesis_home_dir(_HYPOTHESIS_HOME)  # it needs to keep nothing: seeds say all
atexit.register(shutil.rmtree, _HYPOTHESIS_HOME, ignore_errors=True)


def pytest_report_header() -> str:
    return f"untorn: UNTORN_SEED={SEED}"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--figures", action="store_true", help="print at the end what the tests that passed counted")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Collect the numbers of kills, errors, states and openings that the tests printed: `make proof` shows them.

    A figure is a line with a number that is not indented. Indented lines are the counterexamples of deliberate mistakes
    of a model."""
    if not config.option.figures:
        return
    terminalreporter.section("figures")
    for report in terminalreporter.stats.get("passed", []):
        lines = [line for line in report.capstdout.splitlines() if _FIGURE.match(line)]
        if lines:
            terminalreporter.write_line(report.nodeid)
            for line in lines:
                terminalreporter.write_line(f"    {line}")


def pytest_configure() -> None:
    """Spawned processes run their parent's main program first. Let them not run pytest's, which does nothing for them
    and takes a third of their start."""
    main = sys.modules["__main__"]
    main.__spec__, main.__file__ = None, helpers.__file__
    # a script's background jobs ignore Ctrl-C, which many tests press
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_finish(session: pytest.Session) -> None:
    """Libraries that test modules import stay. Looking through what they made of themselves at every collection of
    garbage, here and in every forked child, would take more time than many tests do."""
    gc.collect()
    gc.freeze()
    session.stash[_JAX_RUNS] = "jax" in sys.modules and bool(sys.modules["jax"]._src.xla_bridge._backends)


@pytest.fixture
def jax_ran_at_collection(request: pytest.FixtureRequest) -> bool:
    """Whether a test module computed with JAX when it was imported."""
    return request.session.stash[_JAX_RUNS]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.get_closest_marker("early") is None)
    if "soak" in config.option.markexpr:
        return
    soak = [item for item in items if item.get_closest_marker("soak")]
    if soak:
        config.hook.pytest_deselected(items=soak)
        items[:] = [item for item in items if item not in soak]


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    """This test's own seed, from the run's seed and the test's name; shown when the test fails."""
    own = random.Random(f"{SEED} {request.node.nodeid}").randrange(2**32)
    print(f"UNTORN_SEED={SEED}, seed of this test {own}")
    return own


@pytest.fixture
def rng(seed: int) -> random.Random:
    """A random number generator of this test's own."""
    return random.Random(seed)


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    """A channel name that no other test, and no other run, uses."""
    return f"test-{os.getpid()}-{random.SystemRandom().randrange(2**40):x}"


@pytest.fixture(scope="session")
def virtual_nodes_work() -> None:
    """Skip the test, with the reason, where there can be no virtual nodes."""
    if reason := virtual_nodes.missing():
        pytest.skip(reason)


_FAILED = pytest.StashKey[bool]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item):
    report = yield
    if report.failed:
        item.stash[_FAILED] = True
    return report


@pytest.fixture(autouse=True)
def nothing_is_left(request: pytest.FixtureRequest):
    """After each test that passed: no child process, no new descriptor, no new mapping, no new channel file."""
    before = _Traces()
    yield
    if _FAILED in request.node.stash:
        return  # its traceback keeps what its frames had
    left = before.left()
    for _ in range(RETRIES):
        if not left:
            return
        drop_dead_attachments()
        drop_lonely()
        gc.collect()
        time.sleep(0.02)  # the kernel takes a moment with the dead; this waits for nothing that a test does
        left = before.left()
    if left:
        pytest.fail("left behind:\n  " + "\n  ".join(left))


class _Traces:
    """The resources that this process has in the system."""

    def __init__(self) -> None:
        self.descriptors = descriptors()
        self.mappings = len(untorn_mappings())
        self.files = _channel_files()
        self.children = _children()

    def left(self) -> list[str]:
        """Return the resources that exist now and did not exist before."""
        spared = _helpers_descriptors()
        found = [
            f"descriptor {fd} -> {target}"
            for fd, target in descriptors().items()
            if self.descriptors.get(fd) != target and fd not in spared
        ]
        if len(descriptors().keys() - spared) <= len(self.descriptors.keys() - spared):
            found = []  # the same ones under other numbers
        mappings = untorn_mappings()
        if len(mappings) > self.mappings:
            found += [f"mapping {line}" for line in mappings]
        # by pid only: a child that had just been forked then still had its parent's command line
        found += [f"process {pid}: {what}" for pid, what in _children().items() if pid not in self.children]
        found += [f"file {file}" for file in sorted(_channel_files() - self.files) if not _is_in_use(file)]
        return found


def _helpers_descriptors() -> set[int]:
    """multiprocessing keeps its resource tracker and its fork server for the life of the process, and untorn its fork
    servers for the next trainer."""
    tracker, server = resource_tracker._resource_tracker, forkserver._forkserver
    return {fd for fd in (tracker._fd, server._forkserver_alive_fd) if fd is not None} | fork_server_resources()[1]


#: processes that are not children of this one; a number of them is not given again between two looks
_strangers: set[int] = set()


def _children() -> dict[int, str]:
    """Processes that have this one as their parent, zombies too."""
    spared = {resource_tracker._resource_tracker._pid, forkserver._forkserver._forkserver_pid}
    spared |= fork_server_resources()[0]
    found = {}
    there = set(map(int, filter(str.isdigit, os.listdir("/proc"))))
    _strangers.intersection_update(there)
    for pid in there - _strangers - spared:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            parent = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1]
            if int(parent) == os.getpid():
                found[pid] = Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")[:200]
            else:
                _strangers.add(pid)
    return found


def _channel_files() -> set[Path]:
    return set(SHM.iterdir()) if SHM.is_dir() else set()


def _is_in_use(file: Path) -> bool:
    """Return whether a living process holds a lock on this channel. If so, it belongs to another run on this machine,
    which shares the directory: our children are dead by now, and our own descriptors are closed."""
    control = file.with_suffix(".control")
    try:
        with open(control, "rb+") as opened:
            lock = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
            return struct.unpack("hhqqi4x", fcntl.fcntl(opened, fcntl.F_OFD_GETLK, lock))[0] != fcntl.F_UNLCK
    except OSError:
        return not file.exists()


@pytest.fixture
def logs():
    """Where workers send their log records to."""
    with contextlib.closing(LogReceiver()) as receiver:
        yield receiver


@pytest.fixture
def no_fork_servers():
    """No fork server of another test is used, and none is left to other tests."""
    end_fork_servers()
    yield
    end_fork_servers()


@pytest.fixture
def one_torch_thread():
    """Compute with one thread of torch, and restore the state of its random numbers afterwards."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.random.fork_rng(devices=[]):
        yield
    torch.set_num_threads(before)
