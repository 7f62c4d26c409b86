"""Arrays over a mapped file, such as those from np.load(mmap_mode="r") and np.memmap. Other processes map the file
themselves, so nothing is copied.

On this machine the file is known by its device and inode. Another machine, or another container, has its own numbers
for a shared file, or a copy of it: there the file is known by its size and by samples of its bytes.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import socket
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["MappedFile", "mapped_file"]

#: the samples of a file's bytes, and the size of each
_SAMPLES, _SAMPLE_NBYTES = 32, 16384


@dataclass(frozen=True)
class MappedFile:
    """The place of an array in a file, with which any process can map it.

    Attributes:
        place: the machine and the mount name space that the identity means something in.
        identity: the file's device and inode, which tell it from another file of that name.
        size: the size of the file, in bytes.
        sample: the SHA-256 of its size and of samples of its bytes.
        offset: the position of the array's first element in the file, in bytes.
    """

    path: str
    place: tuple[str, int]
    identity: tuple[int, int]
    size: int
    sample: str
    offset: int
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def open(self) -> NDArray[Any]:
        """Return the array, read-only. Raises OSError if the file was removed, replaced or shortened, or if this
        machine has another file at its path."""
        with open(self.path, "rb") as file:
            found = os.fstat(file.fileno())
            if _place() != self.place:
                self._check_copy(file.fileno(), found)
            elif _identity(found) != self.identity or found.st_size < self._end:
                changed = "replaced" if _identity(found) != self.identity else "cut short"
                raise OSError(
                    f"data file {self.path} was {changed} during training; leave it in place until fit returns"
                )
            mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        return np.ndarray(self.shape, self.dtype, mapping, self.offset, self.strides)

    def _check_copy(self, fd: int, found: os.stat_result) -> None:
        if found.st_size == self.size and _sample(fd, found.st_size) == self.sample:
            return
        differs = (
            f"it has {found.st_size:,} bytes, not {self.size:,}" if found.st_size != self.size else "its bytes differ"
        )
        raise OSError(
            f"data file {self.path} on {socket.gethostname()} is another one than the driver's: {differs}; give all "
            "machines the same file at this path, or a file system that they share"
        )

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
    try:
        with open(path, "rb") as file:
            sample = _sample(file.fileno(), found.st_size)
    except OSError:
        return None
    return MappedFile(
        path, _place(), _identity(found), found.st_size, sample, offset, array.dtype, array.shape, array.strides
    )


def _place() -> tuple[str, int]:
    """Return what tells this machine, and what this process sees of its file systems, from others."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip(), os.stat("/proc/self/ns/mnt").st_ino


def _sample(fd: int, size: int) -> str:
    """Return the SHA-256 of the size, the first and the last bytes of a file, and of some between them."""
    digest = hashlib.sha256(str(size).encode())
    last = max(0, size - _SAMPLE_NBYTES)
    for at in sorted({last * index // (_SAMPLES - 1) for index in range(_SAMPLES)}):
        digest.update(os.pread(fd, _SAMPLE_NBYTES, at))
    return digest.hexdigest()


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
