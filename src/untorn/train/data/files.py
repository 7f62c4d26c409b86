"""Arrays over a mapped file, such as those from np.load(mmap_mode="r") and np.memmap. Other processes map the file
themselves, so nothing is copied."""

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
    """The place of an array in a file, with which any process can map it.

    Attributes:
        identity: the file's device and inode, which tell it from another file of that name.
        offset: the position of the array's first element in the file, in bytes.
    """

    path: str
    identity: tuple[int, int]
    offset: int
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def open(self) -> NDArray[Any]:
        """Return the array, read-only. Raises OSError if the file was removed, replaced or shortened."""
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
        """The position in the file after the array's last byte."""
        last = sum((length - 1) * max(stride, 0) for length, stride in zip(self.shape, self.strides, strict=True))
        return self.offset + last + self.dtype.itemsize if 0 not in self.shape else 0


def mapped_file(array: NDArray[Any]) -> MappedFile | None:
    """Return the array's place if its memory is a mapped file; None if it must be copied."""
    root: Any = array
    while isinstance(root.base, np.ndarray):
        root = root.base
    if type(root) is not np.memmap or root.mode == "c" or root.size == 0 or not isinstance(root.base, mmap.mmap):
        return None  # with mode "c", writes to the array are not in the file
    if root.filename is None or type(array) not in (np.ndarray, np.memmap):
        return None
    path = os.path.abspath(os.fspath(root.filename))
    try:
        found = os.stat(path)
    except OSError:
        return None
    if not stat.S_ISREG(found.st_mode) or found.st_ino != _inode_at(root.ctypes.data):
        return None  # the file was removed or replaced
    offset = root.offset + array.ctypes.data - root.ctypes.data
    return MappedFile(path, _identity(found), offset, array.dtype, array.shape, array.strides)


def _identity(found: os.stat_result) -> tuple[int, int]:
    return found.st_dev, found.st_ino


def _inode_at(address: int) -> int:
    """Return the inode of the file that is mapped at this address; 0 if there is none."""
    with open("/proc/self/maps") as lines:
        for line in lines:
            place, _, _, _, inode, *_ = line.split(None, 5)
            start, _, stop = place.partition("-")
            if int(start, 16) <= address < int(stop, 16):
                return int(inode)
    return 0
