"""Whether a call of fit shows its progress: the argument ``verbose=``."""

from __future__ import annotations

import sys
import threading
from typing import Any

from untorn.train.callbacks.base import Callback
from untorn.train.callbacks.progress_bar import ProgressBar

__all__ = ["with_progress"]


def with_progress(callbacks: list[Callback], verbose: Any) -> list[Callback]:
    """Return the callbacks, with a ProgressBar at the end if ``verbose`` asks for one and there is none.

    None asks for one in the main thread of a program whose standard output and error are a terminal, and in a notebook.
    Raises TypeError or ValueError unless it is None, a bool, 0, 1 or 2.
    """
    if verbose is not None and not isinstance(verbose, int):
        raise TypeError(f"verbose: expected None, a bool, 0, 1 or 2, found {type(verbose).__name__}")
    if verbose not in (None, 0, 1, 2):
        raise ValueError(f"verbose: expected None, a bool, 0, 1 or 2, found {verbose}")
    if verbose == 0 or any(isinstance(callback, ProgressBar) for callback in callbacks):
        return callbacks
    notebook = _is_notebook()
    if verbose is None and not notebook and not _is_watched():
        return callbacks
    # in a notebook, standard error has a red background
    rich = False if notebook or verbose == 2 else None
    bar = ProgressBar(file=sys.stdout if notebook else None, rich=rich, rewrite=notebook and verbose != 2)
    return [*callbacks, bar]


def _is_watched() -> bool:
    """Return whether somebody watches a terminal, who would take silence for a program that hangs."""
    try:
        on_terminals = sys.stdout.isatty() and sys.stderr.isatty()
    except (AttributeError, OSError, ValueError):  # there is none, or it is closed
        return False
    return on_terminals and threading.current_thread() is threading.main_thread()


def _is_notebook() -> bool:
    """Return whether standard output is a cell of a notebook, which Jupyter's kernel writes to."""
    return any(cls.__module__.partition(".")[0] == "ipykernel" for cls in type(sys.stdout).__mro__)
