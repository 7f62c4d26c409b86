"""Write the numbers of each epoch as a line of a CSV file."""

from __future__ import annotations

import csv
import os
from pathlib import Path
from typing import IO, Any

from untorn.descriptors import opener
from untorn.train.callbacks.base import Callback, Logs

__all__ = ["CSVLogger"]

_MISSING = "NA"


class CSVLogger(Callback):
    """Write a line per epoch to a CSV file: the epoch, from 0, and all its logs, with their names in the first line.

    Each line is written when its epoch ends. A resumed training continues after the epoch of its checkpoint; lines of
    later epochs are removed first.

    Args:
        filename: the file; missing folders are made. An existing file is replaced, unless ``append`` is set or training
            resumes.
        separator: the character between the numbers.
        append: append to an existing file, whose first line then determines the columns. A number that an epoch does
            not have is NA.

    Raises:
        ValueError: separator is not one character; with append, the file's first line does not begin with "epoch".
        OSError: the file cannot be written.

    Example:
        >>> log = CSVLogger("runs/digits.csv", append=True)

    """

    def __init__(self, filename: str | os.PathLike[str], *, separator: str = ",", append: bool = False) -> None:
        if len(separator) != 1:
            raise ValueError(f"CSVLogger: separator={separator!r}: expected one character")
        self.filename: str = os.fspath(filename)
        self.separator = separator
        self.append = append
        self._names: list[str] | None = None
        self._nbytes = 0
        self._keep_from: int | None = None

    def on_train_begin(self, logs: Logs) -> None:
        """Make the folder."""
        path = Path(self.filename)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._nbytes = path.stat().st_size if self.append and path.exists() else 0
        self._names = self._keep_from = None

    def on_epoch_end(self, epoch: int, logs: Logs) -> None:
        """Write the epoch's line, and the names before the first."""
        first = self._names is None
        with open(self.filename, self._mode(), newline="", encoding="utf-8", opener=opener) as file:
            if first:
                self._begin(file, logs)
            assert self._names is not None
            row = [logs.get(name, _MISSING) for name in self._names]
            csv.writer(file, delimiter=self.separator).writerow([epoch, *row])
            file.flush()
            self._nbytes = file.seek(0, os.SEEK_END)

    def _mode(self) -> str:
        goes_on = self._names is not None or self.append or self._keep_from is not None
        return "a+" if goes_on else "w+"

    def _begin(self, file: IO[str], logs: Logs) -> None:
        """Take the names from the file's first line, or write it."""
        if self._keep_from is not None and file.seek(0, os.SEEK_END) > self._keep_from:
            file.truncate(self._keep_from)
        file.seek(0)
        found = next(csv.reader(file, delimiter=self.separator), None)
        file.seek(0, os.SEEK_END)
        if found is None:
            self._names = list(logs)
            csv.writer(file, delimiter=self.separator).writerow(["epoch", *self._names])
            return
        if found[:1] != ["epoch"]:
            raise ValueError(
                f"CSVLogger: {self.filename}: expected a first line that begins with 'epoch', found {found[:1]}; "
                "give another file, another separator, or append=False"
            )
        self._names = found[1:]

    def state_dict(self) -> dict[str, Any]:
        """Return the length of the file."""
        return {"nbytes": self._nbytes}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue after the last line of that time."""
        self._keep_from = int(state["nbytes"])
