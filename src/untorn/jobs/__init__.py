"""Recipes: everything that ``untorn train`` needs to know about a training.

A recipe is a value: the model, its initial parameters, the data and the settings. It does not depend on workers or
engines. ``untorn train`` finds a recipe in two ways:

- by name: the modules of this package that ``JOBS`` lists, each with a function ``job(seed) -> Recipe``;
- as ``FILE.py:NAME``: a ``Recipe``, or a callable that returns one, in a file of your own. The file is imported as a
  module under its own name, so that worker processes can import it too.
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

__all__ = ["JOBS", "Job", "Recipe", "load_job", "load_recipe"]

#: the names that `untorn train NAME` knows, and the module of each
JOBS: dict[str, str] = {"digits": "untorn.jobs.digits"}


@dataclass(frozen=True, eq=False)
class Recipe:
    """Everything that a training needs.

    Attributes:
        name: a short name.
        model: ``loss_and_grad(params, batch[, rng])``, or any other model that Trainer takes.
        params: a function of the seed that returns the initial parameters; None if the model has its own.
        data: the training examples as ``fit`` takes them, or a function without parameters that returns them.
        validation_data: held-out examples in the same form; None if there are none.
        optimizer: as Trainer takes it.
        epochs: the number of passes over the data.
        batch_size: the number of examples per step, for all workers together.
        shards: the number of parts that each batch is cut into; None leaves it to the Trainer.
        description: one line that says what is learned.

    Example:
        >>> import numpy as np
        >>> def loss_and_grad(params, batch):
        ...     x, y = batch
        ...     error = x @ params["w"] - y
        ...     return float(np.mean(error**2)), {"w": 2 * x.T @ error / len(y)}
        >>> x = np.eye(3)
        >>> start = lambda seed: {"w": np.zeros(3)}
        >>> recipe = Recipe("line", loss_and_grad, start, data=(x, x @ np.ones(3)), optimizer=None)
        >>> recipe.batch_size, recipe.load_data()[0].shape
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
        """Return the initial parameters; None if the model has its own."""
        return None if self.params is None else self.params(seed)

    def load_data(self) -> Any:
        """Return the training examples."""
        return self.data() if callable(self.data) else self.data

    def load_validation_data(self) -> Any:
        """Return the held-out examples; None if there are none."""
        return self.validation_data() if callable(self.validation_data) else self.validation_data


def load_recipe(spec: str, *, seed: int = 0) -> Recipe:
    """Find a recipe by its name, or as ``FILE.py:NAME``.

    Args:
        spec: a name in ``JOBS``; or a Python file and the name in it of a ``Recipe`` or of a callable that returns
            one. The callable is called with ``seed=seed`` if it has such a parameter. The file's folder is inserted at
            the front of ``sys.path`` and the file is imported under its stem, as worker processes do too.
        seed: the seed of random choices before training, such as the split of the data.

    Returns:
        The recipe.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the name is unknown, the file cannot be imported under its stem, or it has no such NAME.
        TypeError: NAME is neither a Recipe nor a callable that returns one.
        ImportError: a library that the recipe needs is not installed, or importing the file failed.

    Example:
        >>> load_recipe("digits", seed=0).batch_size
        64

    """
    if spec in JOBS:
        recipe = importlib.import_module(JOBS[spec]).job(seed)
        assert isinstance(recipe, Recipe)
        return recipe
    file, colon, name = spec.rpartition(":")
    if not colon:
        raise ValueError(_unknown(spec))
    if not name or not file.endswith(".py"):
        raise ValueError(f"{spec!r} is not a recipe: expected FILE.py:NAME, such as jobs/mine.py:job")
    path = Path(file)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {file!r} (looked for {path.absolute()})")
    return _recipe_in(_import_by_stem(path), name, spec=spec, seed=seed)


#: the former names
Job, load_job = Recipe, load_recipe


def _unknown(spec: str) -> str:
    known = ", ".join(sorted(JOBS))
    if spec.endswith(".py"):
        return f"{spec!r} lacks the name of the recipe in the file: expected {spec}:NAME"
    return f"no recipe is named {spec!r}; expected one of {known}, or FILE.py:NAME for one in a file of your own"


def _import_by_stem(path: Path) -> ModuleType:
    """Import a file as the module that worker processes will import, too."""
    path = path.resolve()
    stem = path.stem
    if not stem.isidentifier():
        raise ValueError(
            f"{path.name!r} cannot be imported by worker processes: {stem!r} is not a valid module name; "
            "rename the file, using letters, digits and underscores"
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
    """Return the line of the file at which importing failed; nothing for a syntax error, whose message has it."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if _is_file(frame.filename, path)]
    return f" (line {lines[-1]})" if lines else ""


def _is_file(origin: str | None, path: Path) -> bool:
    return origin is not None and Path(origin).resolve() == path


def _clash(path: Path, other: str | None) -> str:
    return (
        f"{path.name!r} cannot be imported as {path.stem!r}: another module has that name ({other or 'built in'}); "
        "rename the file"
    )


def _recipe_in(module: ModuleType, name: str, *, spec: str, seed: int) -> Recipe:
    try:
        found = getattr(module, name)
    except AttributeError:
        raise ValueError(f"{module.__file__} has no {name!r}; {_names_of(module)}") from None
    if isinstance(found, Recipe):
        return found
    if not callable(found) or isinstance(found, type):
        raise TypeError(
            f"{spec}: expected an untorn.jobs.Recipe, or a callable that returns one; found {_kind_of(found)}"
        )
    recipe = found(seed=seed) if _takes_seed(found) else found()
    if not isinstance(recipe, Recipe):
        raise TypeError(
            f"{spec}: expected the callable to return an untorn.jobs.Recipe; it returned {_kind_of(recipe)}"
        )
    return recipe


def _kind_of(value: object) -> str:
    return f"the class {value.__qualname__}" if isinstance(value, type) else f"a {type(value).__qualname__}"


def _takes_seed(function: Callable[..., Any]) -> bool:
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):  # a built-in function without a signature
        return False
    return "seed" in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())


def _names_of(module: ModuleType) -> str:
    """Return text that lists a module's recipes, and its functions, which might return one."""
    recipes = [name for name, value in vars(module).items() if isinstance(value, Recipe)]
    functions = [
        name
        for name, value in vars(module).items()
        if inspect.isfunction(value) and value.__module__ == module.__name__ and not name.startswith("_")
    ]
    if not recipes and not functions:
        return "it defines no Recipe and no function"
    return "; ".join(
        f"its {what}: {', '.join(names)}" for what, names in (("recipes", recipes), ("functions", functions)) if names
    )
