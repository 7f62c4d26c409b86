"""load_job: names, files of one's own, and a clear error for everything else."""

from __future__ import annotations

import importlib.util
import itertools
import pickle
import sys
from pathlib import Path

import pytest

from untorn.jobs import JOBS, Job, load_job

_numbers = itertools.count()

JOB = """
from untorn.jobs import Job

def loss_and_grad(params, batch):
    return 0.0, params

job = Job("mine", loss_and_grad, lambda seed: {"w": seed}, data=([1], [2]), optimizer=None)
number = 3

def with_seed(seed):
    return Job(f"seed {seed}", loss_and_grad, None, data=None, optimizer=None)

def without_seed():
    return job

def with_anything(**more):
    return Job(f"more {more}", loss_and_grad, None, data=None, optimizer=None)

def wrong():
    return 7

def _private():
    return job
"""


@pytest.fixture(autouse=True)
def modules_and_path(monkeypatch):
    """What is imported here is forgotten again."""
    monkeypatch.setattr(sys, "path", sys.path.copy())
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if name.startswith("job_of_test_"):
            del sys.modules[name]


@pytest.fixture
def write(tmp_path: Path):
    """Writes a file under a stem that no other test uses, and returns its path."""

    def write(text: str = JOB, stem: str | None = None) -> Path:
        path = tmp_path / f"{stem or f'job_of_test_{next(_numbers)}'}.py"
        path.write_text(text)
        return path

    return write


def test_every_known_name_has_a_module():
    for name, module in JOBS.items():
        assert importlib.util.find_spec(module) is not None, name


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"'digit'.*digits.*FILE.py:NAME"):
        load_job("digit")


def test_a_job_in_a_file(write):
    job = load_job(f"{write()}:job", seed=3)
    assert (job.name, job.initial_params(3), job.load_data()) == ("mine", {"w": 3}, ([1], [2]))
    assert job.load_validation_data() is None


def test_a_relative_path(write, monkeypatch):
    path = write()
    monkeypatch.chdir(path.parent)
    assert load_job(f"{path.name}:job").name == "mine"


def test_a_callable_gets_the_seed_if_it_takes_one(write):
    path = write()
    assert load_job(f"{path}:with_seed", seed=11).name == "seed 11"
    assert load_job(f"{path}:without_seed", seed=11).name == "mine"
    assert load_job(f"{path}:with_anything", seed=11).name == "more {'seed': 11}"


def test_the_file_is_imported_once_under_its_stem_so_that_workers_find_it(write):
    path = write()
    model = load_job(f"{path}:job").model
    assert sys.modules[path.stem].loss_and_grad is model
    assert pickle.loads(pickle.dumps(model)) is model
    assert load_job(f"{path}:job").model is model
    assert str(path.parent.resolve()) in sys.path


def test_a_file_may_import_its_neighbours(write):
    neighbour = write("value = 5\n")
    path = write(f"import {neighbour.stem}\n" + JOB.replace('"mine"', f"str({neighbour.stem}.value)"))
    assert load_job(f"{path}:job").name == "5"


def test_data_may_be_a_function(write):
    job = Job("lazy", None, None, data=lambda: "x", validation_data=lambda: "v", optimizer=None)
    assert (job.load_data(), job.load_validation_data(), job.initial_params(0)) == ("x", "v", None)


def test_repr_does_not_show_the_data():
    assert "xyz" not in repr(Job("j", None, None, data="xyz", validation_data="xyz", optimizer=None))


def test_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="gone.py"):
        load_job(f"{tmp_path}/gone.py:job")


def test_a_folder_is_no_file(tmp_path):
    (tmp_path / "folder.py").mkdir()
    with pytest.raises(FileNotFoundError, match="folder.py"):
        load_job(f"{tmp_path}/folder.py:job")


@pytest.mark.parametrize("spec", ["mine.py", "mine.py:", "mine:job", "mine.txt:job", ":job", ":", ""])
def test_a_spec_that_is_neither(spec):
    with pytest.raises(ValueError, match="NAME"):
        load_job(spec)


def test_a_missing_name_lists_those_that_there_are(write):
    with pytest.raises(ValueError, match=r"'jobb'.*jobs: job.*functions: .*with_seed") as raised:
        load_job(f"{write()}:jobb")
    assert "_private" not in str(raised.value)


def test_a_file_without_jobs_says_so(write):
    with pytest.raises(ValueError, match="no Job and no function"):
        load_job(f"{write('x = 1')}:x_")


@pytest.mark.parametrize(("name", "found"), [("number", "int"), ("wrong", "int"), ("Job", "class Job")])
def test_something_else_under_the_name(write, name, found):
    with pytest.raises(TypeError, match=rf"Job.*{found}"):
        load_job(f"{write()}:{name}")


@pytest.mark.parametrize("stem", ["random", "sys", "numpy", "antigravity"])
def test_a_stem_that_belongs_to_another_module(write, stem):
    path = write(stem=stem)
    with pytest.raises(ValueError, match=rf"{stem}.*rename the file"):
        load_job(f"{path}:job")


def test_a_stem_that_another_file_has_taken(write, tmp_path):
    path = write()
    load_job(f"{path}:job")
    (tmp_path / "other").mkdir()
    other = path.rename(tmp_path / "other" / path.name)
    with pytest.raises(ValueError, match="rename the file"):
        load_job(f"{other}:job")


@pytest.mark.parametrize("stem", ["my-job", "my job", "2nd", "a.b"])
def test_a_stem_that_is_no_module_name(write, stem):
    with pytest.raises(ValueError, match="letters, digits and underscores"):
        load_job(f"{write(stem=stem)}:job")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1\nx / 0\n", r"ZeroDivisionError.*line 2"),
        ("x = = 1", "SyntaxError.*line 1"),
        ("import no_such_x", "no_such_x"),
    ],
)
def test_a_file_that_fails_says_where(write, text, message):
    with pytest.raises(ImportError, match=message) as raised:
        load_job(f"{write(text)}:job")
    assert raised.value.__cause__ is not None


def test_without_scikit_learn_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ImportError, match=r"untorn\[digits\]"):
        load_job("digits")
