"""Arrays that are the memory of a mapped file, as np.load(mmap_mode="r") and np.memmap make them: other processes map
the file themselves, and nothing is copied."""

from __future__ import annotations

import mmap
import os
import stat
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["MappedFile", "mapped_file"]


@dataclass(frozen=True)
class MappedFile:
    """A part of a file as an array: whoever has this can map the same bytes.

    Attributes:
        identity: device and inode, so that another file of that name is not mistaken for it.
        offset: of the array's first element in the file, in bytes.
    """

    path: str
    identity: tuple[int, int]
    offset: int
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def open(self) -> NDArray[Any]:
        """Return the array, read-only. Raises OSError if the file is gone, is another one now, or became shorter."""
        with open(self.path, "rb") as file:
            found = os.fstat(file.fileno())
            changed = (
                "replaced" if _identity(found) != self.identity else "cut short" if found.st_size < self._end else ""
            )
            if changed:
                raise OSError(
                    f"data file {self.path} was {changed} during training; leave it in place until fit returns"
                )
            mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        return np.ndarray(self.shape, self.dtype, mapping, self.offset, self.strides)

    @property
    def _end(self) -> int:
        """The offset in the file at which the last of its bytes ends."""
        last = sum((length - 1) * max(stride, 0) for length, stride in zip(self.shape, self.strides, strict=True))
        return self.offset + last + self.dtype.itemsize if 0 not in self.shape else 0


def mapped_file(array: NDArray[Any]) -> MappedFile | None:
    """Where the array lies, if its memory is a file's and stays so; None if it must be copied."""
    root: Any = array
    while isinstance(root.base, np.ndarray):
        root = root.base
    if type(root) is not np.memmap or root.mode == "c" or root.size == 0 or not isinstance(root.base, mmap.mmap):
        return None  # "c": what was written to it is not in the file
    if root.filename is None or type(array) not in (np.ndarray, np.memmap):
        return None
    path = os.path.abspath(os.fspath(root.filename))
    try:
        found = os.stat(path)
    except OSError:
        return None
    if not stat.S_ISREG(found.st_mode) or found.st_ino != _inode_at(root.ctypes.data):
        return None  # removed or replaced since
    offset = root.offset + array.ctypes.data - root.ctypes.data
    return MappedFile(path, _identity(found), offset, array.dtype, array.shape, array.strides)


def _identity(found: os.stat_result) -> tuple[int, int]:
    return found.st_dev, found.st_ino


def _inode_at(address: int) -> int:
    """The inode of the file that is mapped at this address; 0 for none."""
    with open("/proc/self/maps") as lines:
        for line in lines:
            place, _, _, _, inode, *_ = line.split(None, 5)
            start, _, stop = place.partition("-")
            if int(start, 16) <= address < int(stop, 16):
                return int(inode)
    return 0
