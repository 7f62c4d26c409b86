"""Workers start from a program in any place, started in any way."""

from __future__ import annotations

import importlib.util
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import types
import zipapp
from pathlib import Path

import cloudpickle
import numpy as np
import pytest

import networks
from untorn import SGD, Trainer
from untorn.engines import importable
from untorn.engines.importable import can_import

PLUGIN = """
import numpy as np

class Items:
    def __len__(self): return 32
    def __getitem__(self, index): return np.ones(3) * index / 32, float(index)

def line(params, batch):
    x, y = batch
    error = x @ params["w"] - y
    return float((error**2).mean()), {"w": 2 * x.T @ error / len(x) / 100}

def train(model, data):
    from untorn import SGD, Trainer
    with Trainer(model, {"w": np.zeros(3)}, optimizer=SGD(0.1), workers=1, shards=1) as trainer:
        return len(trainer.fit(data, epochs=1, batch_size=16))
"""
PROGRAM = PLUGIN + "\nif __name__ == '__main__':\n    print('trained', train(line, Items()))\n"

POOL = (
    PLUGIN
    + """
import multiprocessing, sys
if __name__ == "__main__":
    with multiprocessing.get_context(sys.argv[1]).Pool(1) as pool:
        print("trained", pool.apply(train, (line, Items())))
"""
)


def run(*arguments: str, cwd: Path, **more) -> subprocess.CompletedProcess:
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=120, check=False, **more)


# -- ways to start the program

IMPORTED = "print('trained', program.train(program.line, program.Items()))"
soak = pytest.mark.soak


@pytest.mark.parametrize(
    "arguments",
    [
        ["-m", "package"],
        ["program.pyz"],
        ["-m", "pdb", "-c", "continue", "-c", "quit", "program.py"],
        ["-W", "error", "-X", "dev", "-bb", "-P", "-I", "link"],
        pytest.param(["folder"], marks=soak),
        pytest.param(["-m", "package.command"], marks=soak),
        pytest.param(["-m", "cProfile", "-o", "profile", "program.py"], marks=soak),
        pytest.param(["-m", "trace", "--count", "-C", "covered", "program.py"], marks=soak),
        pytest.param(["-c", PROGRAM], marks=soak),
        pytest.param(["-c", "exec(open('program.py').read())"], marks=soak),
        pytest.param(["-c", "import runpy; runpy.run_path('program.py', run_name='__main__')"], marks=soak),
        pytest.param(["-c", f"import program; {IMPORTED}"], marks=soak),
        pytest.param(["-c", f"import os, program, untorn; os.chdir('/'); {IMPORTED}"], marks=soak),
        pytest.param(["-O", "program.py"], marks=soak),
        pytest.param(["-OO", "program.py"], marks=soak),
    ],
    ids=lambda arguments: " ".join(arguments)[:40].replace("\n", " "),
)  # fmt: skip
def test_a_program_trains_however_it_is_started(tmp_path, arguments):
    for file in ("program.py", "package/__main__.py", "package/command.py", "folder/__main__.py"):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text(PROGRAM)
    (tmp_path / "package/__init__.py").touch()
    (tmp_path / "link").symlink_to("program.py")
    zipapp.create_archive(tmp_path / "folder", tmp_path / "program.pyz")
    done = run(*arguments, cwd=tmp_path)
    assert "trained 1" in done.stdout, done.stderr
    assert "Traceback" not in done.stderr


def test_a_program_from_stdin_in_a_directory_that_is_gone(tmp_path):
    gone = tmp_path / "gone"
    gone.mkdir()
    program = f"import os; os.rmdir({str(gone)!r})\n" + PROGRAM
    done = run("-", cwd=gone, input=program)
    assert done.stdout == "trained 1\n", done.stderr


def test_a_program_that_has_emptied_its_arguments(tmp_path):
    (tmp_path / "program.py").write_text(
        PROGRAM.replace("'__main__':\n", "'__main__':\n    import sys; sys.argv.clear()\n")
    )
    done = run("program.py", cwd=tmp_path)
    assert done.stdout == "trained 1\n", done.stderr


def test_a_program_without_a_guard_is_one_error_that_says_so(tmp_path):
    (tmp_path / "program.py").write_text(PLUGIN + "\nprint('trained', train(line, Items()))\n")
    done = run("program.py", cwd=tmp_path)
    assert done.returncode == 1
    assert "trained" not in done.stdout
    assert "untorn.errors.WorkerError: worker 0 could not begin: MainProgramError: the main program" in done.stderr
    reported = done.stderr[done.stderr.index("untorn.errors.WorkerError") :]
    assert reported.count("  File ") == 2, "the program's own lines: the call of train(), and fit() in it"
    assert "put code that only the program itself should run under `if __name__ == '__main__':`" in done.stderr
    assert "trains again" in done.stderr


# -- places of the program


def train(workers: int = 1) -> int:
    data = networks.data_of(32, 3)
    with Trainer(networks.line, networks.line_params(3), optimizer=SGD(0.1), workers=workers, shards=2) as trainer:
        return len(trainer.fit(data, epochs=1, batch_size=16))


@pytest.mark.parametrize("method", ["fork", pytest.param("spawn", marks=soak)])
def test_in_the_task_of_a_pool(method, tmp_path):
    """The processes of a Pool are daemonic: multiprocessing starts no processes in them.

    Runs in its own program: libraries that other tests have imported here may have threads, which a fork does not copy.
    """
    (tmp_path / "program.py").write_text(POOL)
    ran = run("program.py", method, cwd=tmp_path)
    assert ran.stdout == "trained 1\n", ran.stderr


def tell_facts(params, batch):
    """Write facts of a worker into a file."""
    process = multiprocessing.current_process()
    facts = {
        "method": multiprocessing.get_start_method(allow_none=True),
        "name": process.name,
        "daemon": process.daemon,
        "key": process.authkey.hex(),
        "arguments": sys.argv,
        "path": sys.path,
        "threads": os.environ["OMP_NUM_THREADS"],
        "inspect": "PYTHONINSPECT" in os.environ,
        "masked": sorted(signal.pthread_sigmask(signal.SIG_BLOCK, ())),
        "files": [os.readlink(file.path) for file in os.scandir("/proc/self/fd") if os.path.lexists(file.path)],
    }
    Path(os.environ["FACTS"]).write_text(json.dumps(facts))
    return 0.0, {"w": np.zeros(1)}


def test_what_a_worker_has_of_its_server(tmp_path, monkeypatch):
    monkeypatch.setenv("FACTS", str(tmp_path / "facts"))
    monkeypatch.setenv("PYTHONINSPECT", "1")
    monkeypatch.setattr(sys, "argv", ["program", "--option"])
    before = multiprocessing.get_start_method(allow_none=True)
    multiprocessing.set_start_method("fork", force=True)
    fd = os.open(tmp_path / "file", os.O_CREAT | os.O_RDWR)
    os.set_inheritable(fd, True)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    try:
        settings = {"optimizer": SGD(0.1), "workers": 1, "shards": 1, "threads_per_worker": 2}
        with Trainer(tell_facts, {"w": np.zeros(1)}, **settings) as trainer:
            trainer.fit(np.zeros((2, 1)), epochs=1, batch_size=2)
    finally:
        os.close(fd)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR1})
        multiprocessing.set_start_method(before, force=True)
    found = json.loads((tmp_path / "facts").read_text())
    assert (found["method"], found["daemon"]) == (None, False)
    assert found["name"] == "untorn-worker-0"
    assert found["key"] == multiprocessing.current_process().authkey.hex()
    assert found["arguments"] == ["program", "--option"]
    assert found["path"] == importable.worker_path()
    assert (found["threads"], found["inspect"], found["masked"]) == ("2", False, [signal.SIGINT])
    assert str(tmp_path / "file") not in found["files"]


# -- objects that a worker cannot import


def loaded_by_path(path: Path, name: str) -> types.ModuleType:
    path.write_text(PLUGIN)
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def plugin(tmp_path):
    yield loaded_by_path(tmp_path / "plugin.py", "a_plugin_of_tests")
    del sys.modules["a_plugin_of_tests"]


class Wrapped:
    """A model whose class workers can import, unlike the class of an attribute."""

    def __init__(self, model) -> None:
        self.model = model

    def loss_and_grad(self, params, batch):
        return self.model(params, batch)


@pytest.mark.parametrize("gone", [False, True])
def test_a_module_that_was_loaded_by_path(plugin, gone):
    if gone:
        os.remove(plugin.__file__)
    assert plugin.train(Wrapped(plugin.line), plugin.Items()) == 1
    assert cloudpickle.list_registry_pickle_by_value() == set()


def test_without_cloudpickle_the_module_is_named(plugin, monkeypatch):
    monkeypatch.setitem(sys.modules, "cloudpickle", None)
    words = (
        r"model: it cannot be sent to worker processes \(a worker process cannot import the module "
        r"'a_plugin_of_tests': sys.path does not lead to its file .*plugin.py\); .* pip install 'untorn\[train\]'"
    )
    with pytest.raises(TypeError, match=words):
        plugin.train(plugin.line, (np.ones((32, 3)), np.ones(32)))
    with pytest.raises(TypeError, match=r"data: the dataset cannot be sent .*'a_plugin_of_tests'"):
        plugin.train(networks.line, plugin.Items())


def test_what_can_be_imported(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "one_of_tests").mkdir()
    for name in ("one_of_tests/__init__.py", "one_of_tests/part.py", "alone_of_tests.py"):
        (tmp_path / name).touch()
    names = ["one_of_tests", "one_of_tests.part", "alone_of_tests"]
    for name in names:
        importlib.import_module(name)
    try:
        known = ["numpy", "numpy.linalg", "untorn", "untorn._core", "json.decoder", "sys", "never_imported", "networks"]
        assert [name for name in known + names if not can_import(name)] == []
        os.remove(tmp_path / "one_of_tests/part.py")
        (tmp_path / "first").mkdir()
        (tmp_path / "first/alone_of_tests.py").touch()  # another of that name
        monkeypatch.syspath_prepend(tmp_path / "first")
        assert [name for name in names if can_import(name)] == ["one_of_tests"]
        sys.modules["made_of_tests"] = types.ModuleType("made_of_tests")
        assert not can_import("made_of_tests")
    finally:
        for name in [*names, "made_of_tests"]:
            sys.modules.pop(name, None)


@pytest.mark.parametrize(
    ("spec", "file", "expected"),
    [
        ("package.command", None, ("module", "package.command")),
        ("package.__main__", __file__, None),
        ("__main__", __file__, None),
        (None, __file__, ("path", __file__)),
        (None, "<stdin>", None),
        (None, None, None),
    ],
)
def test_the_main_program_that_a_worker_runs(monkeypatch, spec, file, expected):
    main = types.ModuleType("__main__")
    main.__spec__ = None if spec is None else importlib.util.spec_from_loader(spec, None)
    if file is not None:
        main.__file__ = file
    monkeypatch.setitem(sys.modules, "__main__", main)
    assert importable.main_program() == expected
    assert can_import("__main__") == (expected is not None)
