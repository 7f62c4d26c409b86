"""Workers that a fork server starts are like those that are spawned, whatever the program has done before."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import random
import resource
import select
import signal
import sys
from pathlib import Path

import numpy as np
import pytest

import helpers
from untorn import SGD, Trainer
from untorn.engines import fork_servers, forked_worker
from untorn.engines.child import WorkerHandle
from untorn.engines.fork_servers import fork_server_resources, launch_worker
from untorn.engines.processes import worker_variables
from untorn.engines.worker_logs import LogReceiver

METHODS = ("forkserver", "spawn")

pytestmark = pytest.mark.usefixtures("no_fork_servers")


def launched(logs: LogReceiver, function, *arguments, modules=(), method="forkserver") -> WorkerHandle:
    return launch_worker(
        "untorn-worker-0",
        (function, arguments),
        environment=worker_variables(1),
        logs=logs.fd,
        modules=[__name__, *modules],
        start_method=method,
    )


def exitcode_of(worker: WorkerHandle) -> int | None:
    try:
        assert worker.join(helpers.WATCHDOG_S)
        return worker.exitcode
    finally:
        worker.end()


def answer_of(logs: LogReceiver, tmp_path: Path, function, *arguments, **more) -> dict:
    file = tmp_path / "answer"
    assert exitcode_of(launched(logs, function, str(file), *arguments, **more)) == 0
    return json.loads(file.read_text())


# -- what a worker begins with


def tell_all(file: str, problem: Exception | None) -> None:
    """Write what a worker has of its program."""
    process = multiprocessing.current_process()
    status = Path("/proc/self/status").read_text().splitlines()
    lines = (
        "Umask",
        "SigBlk",
        "SigIgn",
        "SigCgt",
        "SigPnd",
        "Threads",
        "NSpgid",
        "NSsid",
        "Cpus_allowed",
        "Cap",
        "Name",
    )
    main = sys.modules["__main__"]
    answer = {
        "status": [line for line in status if line.startswith(lines)],
        "limits": Path("/proc/self/limits").read_text(),
        "cgroup": Path("/proc/self/cgroup").read_text(),
        "environment": {key: value for key, value in os.environ.items() if key != "PYTEST_CURRENT_TEST"},
        "test": os.environ["PYTEST_CURRENT_TEST"],
        "arguments": sys.argv,
        "path": sys.path,
        "directory": os.getcwd(),
        "parent": os.getppid(),
        "process": [process.name, process.daemon, process.authkey.hex()],
        "main": [main.__name__, main.__file__, sys.modules["__mp_main__"] is main],
        "files": sorted(each for each in helpers.descriptors().values() if not each.startswith("/proc/")),
        "nice": os.getpriority(os.PRIO_PROCESS, 0),
        "handlers": [str(signal.getsignal(each)) for each in sorted(signal.valid_signals())],
        "handlers of logs": [str(type(each)) for each in logging.root.handlers],
        "streams": [[each.line_buffering, each.encoding, each.errors] for each in (sys.stdout, sys.stderr)],
        "problem": str(problem),
    }
    Path(file).write_text(json.dumps(answer))


def test_a_fork_has_what_a_spawned_worker_has(logs, tmp_path, monkeypatch):
    monkeypatch.setenv("A_VARIABLE", "of this test")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["program", "--option"])
    before_mask, before_limit = os.umask(0o027), resource.getrlimit(resource.RLIMIT_CORE)
    before_handler = signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_CORE, (0, before_limit[1]))
    fd = os.open(tmp_path / "file", os.O_CREAT | os.O_RDWR)
    os.set_inheritable(fd, True)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    try:
        forked, again, spawned = (
            answer_of(logs, tmp_path, tell_all, method=method) for method in ("forkserver", "forkserver", "spawn")
        )
    finally:
        os.umask(before_mask)
        resource.setrlimit(resource.RLIMIT_CORE, before_limit)
        signal.signal(signal.SIGUSR2, before_handler)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR1})
        os.close(fd)
    assert len(fork_server_resources()[0]) == 1, "it was not forked"
    assert forked == spawned
    assert again == spawned
    assert forked["parent"] == os.getpid()
    assert forked["directory"] == str(tmp_path)
    assert not [each for each in forked["files"] if each == str(tmp_path / "file")]


def tell_where_output_goes(file: str, problem: Exception | None) -> None:
    print("from the worker")
    answer = {"output": os.readlink("/proc/self/fd/1"), "errors": os.readlink("/proc/self/fd/2")}
    Path(file).write_text(json.dumps(answer))


def test_a_worker_writes_to_what_is_the_standard_output_when_it_starts(logs, tmp_path):
    for name in ("first", "second"):
        fd, kept = os.open(tmp_path / name, os.O_CREAT | os.O_RDWR), os.dup(1)
        os.dup2(fd, 1)
        try:
            answer = answer_of(logs, tmp_path, tell_where_output_goes)
        finally:
            os.dup2(kept, 1)
            os.close(kept)
            os.close(fd)
        assert answer["output"] == str(tmp_path / name)
        assert (tmp_path / name).read_text() == "from the worker\n"
    (pid,) = fork_server_resources()[0]
    assert [os.readlink(f"/proc/{pid}/fd/{each}") for each in range(3)] == [os.devnull] * 3


# -- how a worker ends


def end_in_some_way(way: str, problem: Exception | None) -> None:
    if way == "error":
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115
        raise ValueError("of this test")
    if way.startswith("SIG"):
        os.kill(os.getpid(), getattr(signal, way))
    sys.exit(int(way))


@pytest.mark.parametrize(
    ("way", "expected"), [("0", 0), ("7", 7), ("error", 1), ("SIGKILL", -9), ("SIGTERM", -15), ("SIGSEGV", -11)]
)
def test_exit_codes_and_signals_are_those_of_a_child(logs, way, expected):
    for _ in range(2):
        worker = launched(logs, end_in_some_way, way)
        assert exitcode_of(worker) == expected
    assert len(fork_server_resources()[0]) == 1


def say_goodbye(file: str) -> None:
    Path(file).write_text("{}")


def register_at_exit(file: str, problem: Exception | None) -> None:
    import atexit

    atexit.register(say_goodbye, file)


def test_a_fork_does_at_its_exit_what_it_has_registered(logs, tmp_path):
    assert answer_of(logs, tmp_path, register_at_exit) == {}


# -- random numbers


def tell_random(file: str, problem: Exception | None) -> None:
    answer = {"random": random.random(), "numpy": np.random.random()}
    if "torch" in sys.modules:
        answer["torch"] = sys.modules["torch"].rand(1).item()
    Path(file).write_text(json.dumps(answer))


def module_of(tmp_path: Path, monkeypatch, content: str) -> str:
    """Make a module that workers can import. Return its name."""
    name = f"module_of_a_test_{len(list(tmp_path.glob('*.py')))}"
    (tmp_path / f"{name}.py").write_text(content)
    monkeypatch.syspath_prepend(tmp_path)
    return name


def import_and_tell_random(file: str, name: str, problem: Exception | None) -> None:
    __import__(name)
    tell_random(file, problem)


SEEDS = "import random\nimport numpy as np\nimport torch\nrandom.seed(3)\nnp.random.seed(4)\ntorch.manual_seed(5)\n"


def test_generators_that_a_module_seeds_are_the_same_in_each_worker(logs, tmp_path, monkeypatch):
    name = module_of(tmp_path, monkeypatch, SEEDS + "random.random(); np.random.random(); torch.rand(1)\n")
    arguments = (tmp_path, import_and_tell_random, name)
    forked, again, spawned = (
        answer_of(logs, *arguments, modules=[name], method=method) for method in ("forkserver", "forkserver", "spawn")
    )
    assert len(fork_server_resources()[0]) == 1
    assert forked == again == spawned


def test_other_generators_are_different_in_each_worker(logs, tmp_path, monkeypatch):
    name = module_of(tmp_path, monkeypatch, "import random, torch, numpy\nrandom.random(), numpy.random.rand(2000)\n")
    one, other = (answer_of(logs, tmp_path, tell_random, modules=[name]) for _ in range(2))
    assert len(fork_server_resources()[0]) == 1
    assert all(one[each] != other[each] for each in ("random", "numpy", "torch"))


# -- modules that a fork must not share


def tell_attribute(file: str, name: str, problem: Exception | None) -> None:
    module = sys.modules.get(name) or __import__(name)
    Path(file).write_text(json.dumps({"value": module.value, "pid": os.getpid(), "problem": str(problem)}))


UNFIT = {
    "it has 2 threads": "import threading\nthreading.Thread(target=threading.Event().wait, daemon=True).start()",
    "threads (python": (  # of BLAS
        "import numpy, threadpoolctl\nlimits = threadpoolctl.threadpool_limits(2)\na = numpy.ones((300, 300))\na @ a"
    ),
    "its modules have started a process": (
        "import atexit, subprocess, sys\np = subprocess.Popen([sys.executable, '-ISc', 'input()'], stdin=-1)\n"
        "import os; stdin = p.stdin; os.set_inheritable(stdin.fileno(), False)"
    ),
    "its modules have opened /": "file = open(__file__)",
    "its modules have mapped memory": "import mmap\nmemory = mmap.mmap(-1, 4096)",
    "has made a random generator without a seed": "import numpy\nrng = numpy.random.default_rng()",
    "made a random generator without": "import random\nrng = random.Random()",
    "has asked for the id of its process": "from os import getpid\npid = getpid()",
    "has made a random identifier": "import uuid\nrun = uuid.uuid4()",
    "_0 has made a random identifier": "import secrets\nrun = secrets.token_hex()",
    "has registered a function to call at exit": "import atexit\natexit.register(print, end='')",
    "its modules have left a finalizer": "import weakref\nf = weakref.finalize(weakref.WeakSet, lambda: None)",
    "which would be that of all forks": "import tempfile\nfolder = tempfile.TemporaryDirectory()",
    "its modules have set a timer": "import signal\nsignal.setitimer(signal.ITIMER_VIRTUAL, 1000)",
    "cannot be imported (ZeroDivisionError": "import sys\nif 'fork' in str(sys.argv): pass\n1 / 0",
}


@pytest.mark.parametrize("reason", UNFIT)
def test_what_must_not_be_forked_is_a_worker_itself(logs, tmp_path, monkeypatch, caplog, reason):
    caplog.set_level(logging.INFO)
    name = module_of(tmp_path, monkeypatch, "value = 1\n" + UNFIT[reason])
    if "1 / 0" in UNFIT[reason]:
        answer_of(logs, tmp_path, tell_random, modules=[name])
    else:
        assert answer_of(logs, tmp_path, tell_attribute, name, modules=[name])["value"] == 1
    found = [each.getMessage() for each in caplog.records if each.name == forked_worker.__name__]
    assert len(found) == 1, found
    assert reason in found[0], found


def test_several_workers_of_a_server_that_must_not_be_forked(logs, tmp_path, monkeypatch):
    name = module_of(tmp_path, monkeypatch, "value = 1\n" + UNFIT["it has 2 threads"])
    files = [str(tmp_path / str(number)) for number in range(2)]
    workers = [launched(logs, tell_attribute, file, name, modules=[name]) for file in files]
    assert [exitcode_of(each) for each in workers] == [0, 0]
    assert len({json.loads(Path(file).read_text())["pid"] for file in files}) == 2
    assert not fork_server_resources()[0]
    worker = launched(logs, tell_attribute, files[0], name, modules=[name])  # spawned at once
    assert not fork_server_resources()[0]
    assert exitcode_of(worker) == 0


# -- what has changed between two workers


def test_a_file_that_has_changed_is_read_again(logs, tmp_path, monkeypatch):
    (tmp_path / "data.json").write_text('"old data"')
    name = module_of(
        tmp_path, monkeypatch, f"import json\nvalue = [1, json.load(open({str(tmp_path / 'data.json')!r}))]\n"
    )
    arguments = (tmp_path, tell_attribute, name)
    assert answer_of(logs, *arguments, modules=[name])["value"] == [1, "old data"]
    (tmp_path / "data.json").write_text('"new data"')
    assert answer_of(logs, *arguments, modules=[name])["value"] == [1, "new data"]
    source = (tmp_path / f"{name}.py").read_text()
    (tmp_path / f"{name}.py").write_text(source.replace("[1,", "[2222,"))
    assert answer_of(logs, *arguments, modules=[name])["value"] == [2222, "new data"]
    assert len(fork_server_resources()[0]) == 1


def tell_variable(file: str, problem: Exception | None) -> None:
    Path(file).write_text(json.dumps({"value": os.environ.get("A_VARIABLE"), "directory": os.getcwd()}))


def test_what_the_program_has_changed_is_so_in_the_next_worker(logs, tmp_path, monkeypatch):
    for value in ("one", "two", "three", "four"):  # more than servers are kept
        monkeypatch.setenv("A_VARIABLE", value)
        (tmp_path / value).mkdir()
        monkeypatch.chdir(tmp_path / value)
        found = answer_of(logs, tmp_path, tell_variable)
        assert found == {"value": value, "directory": str(tmp_path / value)}
    assert len(fork_server_resources()[0]) <= 3


# -- the life of a server


def pidfds() -> list[int]:
    return [os.pidfd_open(pid) for pid in fork_server_resources()[0]]


def ends(pidfd: int) -> bool:
    try:
        return bool(select.select([pidfd], [], [], helpers.WATCHDOG_S)[0])
    finally:
        os.close(pidfd)


def line(params, batch):
    x, y = batch
    error = x @ params["w"] - y
    return float((error**2).mean()), {"w": 2 * x.T @ error / len(x) / 100}


def fit(**settings) -> bytes:
    x = np.random.default_rng(0).normal(size=(32, 3))
    given = {"workers": 2, "shards": 2, "start_method": "forkserver"} | settings
    with Trainer(line, {"w": np.zeros(3)}, optimizer=SGD(0.1), **given) as trainer:
        trainer.fit((x, x.sum(1)), epochs=1, batch_size=16)
        return trainer.params["w"].tobytes()


def test_trainers_share_a_server_until_it_is_idle(monkeypatch):
    monkeypatch.setattr(fork_servers, "IDLE_S", 0.2)
    first = fit()
    (pidfd,) = pidfds()
    assert ends(pidfd)
    monkeypatch.setattr(fork_servers, "IDLE_S", 600.0)
    assert fit() == first
    before = fork_server_resources()[0]
    assert fit() == first
    assert fork_server_resources()[0] == before
    assert fit(start_method="spawn") == first
    assert fork_server_resources()[0] == before


def test_a_server_is_not_idle_while_a_trainer_is_open(monkeypatch):
    monkeypatch.setattr(fork_servers, "IDLE_S", 0.01)
    x = np.ones((32, 3))
    given = {"workers": 1, "shards": 1, "start_method": "forkserver"}
    with Trainer(line, {"w": np.zeros(3)}, optimizer=SGD(0.1), **given) as trainer:
        trainer.fit((x, x.sum(1)), epochs=1, batch_size=16)
        (pidfd,) = pidfds()
        assert fit() == fit()  # these open and close
        assert not select.select([pidfd], [], [], 0.1)[0]
    assert ends(pidfd)


def test_the_start_method_is_checked():
    with pytest.raises(ValueError, match="start_method: expected 'forkserver' or 'spawn', found 'fork'"):
        fit(start_method="fork")
