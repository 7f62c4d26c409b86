"""Jobs: everything that ``untorn train`` needs to know about one training, under a name.

A job is a value: the model function, how its parameters begin, its data and its settings. It knows nothing of workers
and engines. Two kinds are found:

- by name: the modules of this package that ``JOBS`` lists, each with a function ``job(seed) -> Job``;
- ``FILE.py:NAME``: a ``Job``, or a callable that returns one, in a file of your own. The file is imported as a module
  under its own name, so that worker processes can import it again.
"""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

__all__ = ["JOBS", "Job", "load_job"]

#: what `untorn train NAME` knows by name, and the module that has it
JOBS: dict[str, str] = {"digits": "untorn.jobs.digits"}


@dataclass(frozen=True, eq=False)
class Job:
    """One training, ready to be run.

    Attributes:
        name: a short name.
        model: ``loss_and_grad(params, batch[, rng])``, or any other model that Trainer takes.
        params: called with the seed, gives the parameters that training starts from; None for a model that has its
            own.
        data: the training examples as ``fit`` takes them, or a function without parameters that gives them.
        validation_data: held-out examples in the same form; None for none.
        optimizer: as Trainer takes it.
        epochs: how many passes over the data.
        batch_size: examples per step, over all workers together.
        shards: into how many parts each batch is cut; None leaves it to the Trainer.
        description: one line that says what is learnt.

    Example:
        >>> import numpy as np
        >>> def loss_and_grad(params, batch):
        ...     x, y = batch
        ...     error = x @ params["w"] - y
        ...     return float(np.mean(error**2)), {"w": 2 * x.T @ error / len(y)}
        >>> x = np.eye(3)
        >>> job = Job("line", loss_and_grad, lambda seed: {"w": np.zeros(3)}, data=(x, x @ np.ones(3)), optimizer=None)
        >>> job.batch_size, job.load_data()[0].shape
        (64, (3, 3))

    """

    name: str
    model: Any
    params: Callable[[int], Any] | None
    data: Any = field(repr=False)
    optimizer: Any
    validation_data: Any = field(default=None, repr=False)
    epochs: int = 20
    batch_size: int = 64
    shards: int | None = None
    description: str = ""

    def initial_params(self, seed: int) -> Any:
        """The parameters that training starts from; None when the model has its own."""
        return None if self.params is None else self.params(seed)

    def load_data(self) -> Any:
        """The training examples."""
        return self.data() if callable(self.data) else self.data

    def load_validation_data(self) -> Any:
        """The held-out examples; None for none."""
        return self.validation_data() if callable(self.validation_data) else self.validation_data


def load_job(spec: str, *, seed: int = 0) -> Job:
    """Find a job by its name, or as ``FILE.py:NAME``.

    Args:
        spec: a name out of ``JOBS``; or a Python file and a name in it, of a ``Job`` or of a callable that returns
            one. The callable gets ``seed=seed`` if it has such a parameter. The file's folder goes to the front of
            ``sys.path``, and the file is imported under its stem, as ``import`` would: worker processes do the same.
        seed: for what the job draws at random before training: its split of the data.

    Returns:
        The job.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: an unknown name, a file that cannot be imported under its stem, or a NAME that it does not have.
        TypeError: NAME is neither a Job nor a callable that returns one.
        ImportError: something that the job needs is not installed, or the file failed while it was imported.

    Example:
        >>> load_job("digits", seed=0).batch_size
        64

    """
    if spec in JOBS:
        job = importlib.import_module(JOBS[spec]).job(seed)
        assert isinstance(job, Job)
        return job
    file, colon, name = spec.rpartition(":")
    if not colon:
        raise ValueError(_unknown(spec))
    if not name or not file.endswith(".py"):
        raise ValueError(f"{spec!r} is not a job: expected FILE.py:NAME, such as jobs/mine.py:job")
    path = Path(file)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {file!r} (looked for {path.absolute()})")
    return _job_in(_import_by_stem(path), name, spec=spec, seed=seed)


def _unknown(spec: str) -> str:
    known = ", ".join(sorted(JOBS))
    if spec.endswith(".py"):
        return f"{spec!r} lacks the name of the job in the file: expected {spec}:NAME"
    return f"there is no job named {spec!r}; known are {known}, and FILE.py:NAME takes one from a file of yours"


def _import_by_stem(path: Path) -> ModuleType:
    """Import a file as the module that worker processes will import too."""
    path = path.resolve()
    stem = path.stem
    if not stem.isidentifier():
        raise ValueError(
            f"{path.name!r} cannot be imported by worker processes: {stem!r} is no module name; "
            "rename the file to letters, digits and underscores"
        )
    known = sys.modules.get(stem)
    if known is not None:
        if _is_file(getattr(known, "__file__", None), path):
            return known
        raise ValueError(_clash(path, getattr(known, "__file__", None)))
    if stem in sys.stdlib_module_names:
        raise ValueError(_clash(path, "the standard library"))
    folder = str(path.parent)
    if sys.path[:1] != [folder]:
        sys.path.insert(0, folder)
    importlib.invalidate_caches()
    found = importlib.util.find_spec(stem)
    if found is None or not _is_file(found.origin, path):
        raise ValueError(_clash(path, None if found is None else found.origin))
    try:
        return importlib.import_module(stem)
    except Exception as error:
        raise ImportError(
            f"{path} cannot be imported: {type(error).__name__}: {error}{_line_in(path, error)}"
        ) from error


def _line_in(path: Path, error: BaseException) -> str:
    """Where in the file an import failed; nothing for a syntax error, whose message says so."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if _is_file(frame.filename, path)]
    return f" (line {lines[-1]})" if lines else ""


def _is_file(origin: str | None, path: Path) -> bool:
    return origin is not None and Path(origin).resolve() == path


def _clash(path: Path, other: str | None) -> str:
    return (
        f"{path.name!r} cannot be imported as {path.stem!r}: that name belongs to another module "
        f"({other or 'built in'}); rename the file"
    )


def _job_in(module: ModuleType, name: str, *, spec: str, seed: int) -> Job:
    try:
        found = getattr(module, name)
    except AttributeError:
        raise ValueError(f"{module.__file__} has no {name!r}; {_names_of(module)}") from None
    if isinstance(found, Job):
        return found
    if not callable(found) or isinstance(found, type):
        raise TypeError(f"{spec}: expected an untorn.jobs.Job or a callable that returns one, found {_kind_of(found)}")
    job = found(seed=seed) if _takes_seed(found) else found()
    if not isinstance(job, Job):
        raise TypeError(f"{spec}: calling it should have given an untorn.jobs.Job, but gave {_kind_of(job)}")
    return job


def _kind_of(value: object) -> str:
    return f"the class {value.__qualname__}" if isinstance(value, type) else f"a {type(value).__qualname__}"


def _takes_seed(function: Callable[..., Any]) -> bool:
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):  # a builtin without a signature
        return False
    return "seed" in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())


def _names_of(module: ModuleType) -> str:
    """The jobs of a module, and its functions, which might return one."""
    jobs = [name for name, value in vars(module).items() if isinstance(value, Job)]
    functions = [
        name
        for name, value in vars(module).items()
        if inspect.isfunction(value) and value.__module__ == module.__name__ and not name.startswith("_")
    ]
    if not jobs and not functions:
        return "it defines no Job and no function"
    return "; ".join(
        f"its {what}: {', '.join(names)}" for what, names in (("jobs", jobs), ("functions", functions)) if names
    )
