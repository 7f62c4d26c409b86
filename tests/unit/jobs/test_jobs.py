"""load_job: known names, files of one's own, and every way to get it wrong."""

from __future__ import annotations

import pickle
import subprocess
import sys
from multiprocessing import get_context
from pathlib import Path

import pytest

from untorn.jobs import JOBS, Job, load_job

SOURCE = """
import numpy as np
from untorn.jobs import Job
from untorn.train.optim.fused import SGD

def model(params, batch):
    x, y = batch
    error = x @ params["w"] - y
    return float(np.mean(error**2)), {"w": 2 * x.T @ error / len(y)}

def start(seed):
    return {"w": np.full(3, float(seed))}

def make(seed):
    x = np.eye(3)
    return Job("made", model, start, data=lambda: (x, x @ np.ones(3)), optimizer=SGD(0.1), description=f"seed {seed}")

def plain():
    return Job("plain", model, start, data=(np.eye(3), np.ones(3)), optimizer=SGD(0.1))

def not_a_job():
    return 42

value = plain()
number = 42
_hidden = 1
"""


@pytest.fixture
def file(tmp_path, monkeypatch):
    """A job's file under its own name; the import leaves no trace."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    path = tmp_path / "job_of_mine.py"
    path.write_text(SOURCE)
    yield path
    for name in set(sys.modules) - before:
        if getattr(sys.modules[name], "__file__", None) and str(tmp_path) in str(sys.modules[name].__file__):
            del sys.modules[name]


def test_known_names():
    pytest.importorskip("sklearn")
    for name in JOBS:
        job = load_job(name, seed=1)
        assert job.name == name
        assert job.description
        assert pickle.loads(pickle.dumps(job.model)) is job.model


def test_a_job_in_a_file(file):
    job = load_job(f"{file}:value")
    assert job.name == "plain"
    assert job.load_data()[0].shape == (3, 3)
    assert job.load_validation_data() is None


def test_a_callable_gets_the_seed_if_it_takes_it(file):
    made = load_job(f"{file}:make", seed=5)
    assert made.description == "seed 5"
    assert made.load_data()[0].shape == (3, 3)
    assert made.initial_params(5)["w"].tolist() == [5.0] * 3
    assert load_job(f"{file}:plain", seed=5).name == "plain"


def test_twice_is_one_module(file):
    assert load_job(f"{file}:value").model is load_job(f"{file}:value").model


def test_a_relative_path(file, monkeypatch):
    monkeypatch.chdir(file.parent)
    assert load_job(f"{file.name}:value").name == "plain"


def test_spawned_processes_import_it_too(file):
    model = load_job(f"{file}:value").model
    assert model.__module__ == "job_of_mine"
    with get_context("spawn").Pool(1) as pool:
        loss, _ = pool.apply(
            model, ({"w": 0 * load_job(f"{file}:value").load_data()[1]}, load_job(f"{file}:value").data)
        )
    pool.join()
    assert loss == 1.0


def test_job_is_frozen():
    job = Job("a", None, None, data=(), optimizer=None)
    with pytest.raises(AttributeError):
        job.name = "b"
    assert job.initial_params(0) is None


@pytest.mark.parametrize(
    ("spec", "error", "words"),
    [
        ("digit", ValueError, r"no recipe is named 'digit'; expected one of digits, or FILE.py:NAME"),
        ("job_of_mine.py", ValueError, r"expected job_of_mine.py:NAME"),
        ("missing.py:job", FileNotFoundError, r"no file 'missing.py'"),
        ("notes.txt:job", ValueError, "FILE.py:NAME"),
        ("job_of_mine.py:", ValueError, "FILE.py:NAME"),
        ("", ValueError, "no recipe is named"),
    ],
)
def test_bad_specs(file, monkeypatch, spec, error, words):
    monkeypatch.chdir(file.parent)
    with pytest.raises(error, match=words):
        load_job(spec)


def test_a_missing_name_lists_those_there_are(file):
    with pytest.raises(ValueError, match=r"no 'other'.*recipes: value; its functions: model, start, make, plain"):
        load_job(f"{file}:other")


@pytest.mark.parametrize(
    ("name", "words"),
    [("number", "found a int|found an int"), ("not_a_job", "returned"), ("Job", "found the class Recipe")],
)
def test_wrong_types(file, name, words):
    with pytest.raises(TypeError, match=words):
        load_job(f"{file}:{name}")


@pytest.mark.parametrize("stem", ["random", "numpy", "json", "pytest"])
def test_a_name_that_is_taken(file, stem):
    clash = file.with_name(f"{stem}.py")
    clash.write_text(SOURCE)
    with pytest.raises(ValueError, match=f"cannot be imported as '{stem}'.*rename"):
        load_job(f"{clash}:value")
    assert str(file.parent) not in sys.path


def test_a_name_that_is_no_name(file):
    odd = file.with_name("my-job.py")
    odd.write_text(SOURCE)
    with pytest.raises(ValueError, match="'my-job' is not a valid module name"):
        load_job(f"{odd}:value")


def test_importing_jobs_needs_no_scikit_learn():
    code = "import sys, untorn.jobs; sys.exit('sklearn' in sys.modules or 'matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_an_error_in_the_file_says_where(file):
    broken = Path(file).with_name("broken_job.py")
    broken.write_text("raise RuntimeError('mine')")
    with pytest.raises(ImportError, match=r"broken_job.py cannot be imported: RuntimeError: mine \(line 1\)"):
        load_job(f"{broken}:job")
