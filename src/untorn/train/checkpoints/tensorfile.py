"""Read a safetensors file without trusting its contents.

::

    u64: nbytes of the header | header: JSON | data
                                  ├── "__metadata__": {name: text}
                                  └── name: {"dtype": "F32", "shape": [2, 3], "data_offsets": [begin, end]}

Every number is checked against the file's size before it is used, so that a damaged file cannot ask for more memory
than its size. The safetensors library is not used for reading: its errors depend on its version, and it maps the file,
so that a file which is truncated meanwhile would raise a signal.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from untorn.descriptors import keep
from untorn.errors import FormatError
from untorn.share.lowlevel import MALFORMED, count_of, items_of, name_of

__all__ = ["Tensor", "TensorFile", "opened"]

#: the same limit as in the library
_MAX_HEADER_NBYTES = 100_000_000
_LENGTH_NBYTES = 8
#: the dtypes that NumPy has
_DTYPES = {
    "BOOL": "|b1",
    **{f"{letter}{bits}": f"<{kind}{bits // 8}" for letter, kind in ("Uu", "Ii") for bits in (8, 16, 32, 64)},
    **{f"F{bits}": f"<f{bits // 8}" for bits in (16, 32, 64)},
    "C64": "<c8",
}


class Tensor(NamedTuple):
    """The checked entry of one tensor in the header.

    Attributes:
        dtype: the dtype of its elements.
        shape: the lengths of its axes.
        start: the position of its first byte in the file.
        nbytes: its size in bytes.
    """

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    start: int
    nbytes: int


@dataclass(frozen=True)
class TensorFile:
    """An open file whose header was read and checked.

    Attributes:
        path: its path.
        metadata: the texts in its metadata, by name.
        tensors: the tensors by name. They fill the file without gaps, up to its end.
    """

    path: Path
    metadata: dict[str, str]
    tensors: dict[str, Tensor]
    _fd: int

    def read(self, name: str) -> NDArray[np.uint8]:
        """Return a copy of the bytes of one tensor. Raises FormatError if the file has become shorter."""
        tensor = self.tensors[name]
        made = np.empty(tensor.nbytes, np.uint8)
        if _read_into(self._fd, made, tensor.start) < tensor.nbytes:
            raise FormatError(f"{self.path} is damaged: it ends inside {name}")
        return made


@contextlib.contextmanager
def opened(path: Path) -> Iterator[TensorFile]:
    """Open a file for the block. Raises FormatError, which says what is wrong with the file, and OSError."""
    if not stat.S_ISREG(path.stat().st_mode):  # before opening, which for a pipe would wait for a writer
        raise FormatError(f"{path} is {'a folder' if path.is_dir() else 'not a regular file'}; expected a checkpoint")
    fd = keep(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK))
    try:
        try:
            found = TensorFile(path, *_read_header(fd, os.fstat(fd).st_size), fd)
        except MALFORMED as error:
            if os.pread(fd, 2, 0) == b"PK":
                raise FormatError(
                    f"{path} is a zip archive, as torch.save writes them, and no checkpoint; give its weights to "
                    "the trainer by trainer.params = ..., or load them into the module before TorchModel takes it"
                ) from error
            raise FormatError(f"{path} is damaged, or not a safetensors file: {error}") from error
        yield found
    finally:
        os.close(fd)


def _read_header(fd: int, file_nbytes: int) -> tuple[dict[str, str], dict[str, Tensor]]:
    length = _read(fd, 0, min(_LENGTH_NBYTES, file_nbytes))
    start = _LENGTH_NBYTES + int.from_bytes(length, "little")
    if len(length) < _LENGTH_NBYTES or start > min(file_nbytes, _MAX_HEADER_NBYTES):
        raise ValueError(f"its header ends at byte {start}, but the file has {file_nbytes} bytes")
    header = json.loads(_read(fd, _LENGTH_NBYTES, start - _LENGTH_NBYTES).decode())
    if not isinstance(header, dict):
        raise TypeError(f"its header is a {type(header).__name__}")
    metadata = header.pop("__metadata__", {})
    texts = {name: name_of(text) for name, text in metadata.items()}
    tensors = {name: _tensor(name, said, start) for name, said in header.items()}
    end = start
    for name, tensor in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].nbytes)):
        if tensor.start != end:
            raise ValueError(f"{name} begins at byte {tensor.start}, but the tensor before it ends at {end}")
        end += tensor.nbytes
    if end != file_nbytes:
        raise ValueError(f"its tensors end at byte {end}, but the file has {file_nbytes} bytes")
    return texts, tensors


def _tensor(name: str, said: Any, data_start: int) -> Tensor:
    known = _DTYPES.get(name_of(said["dtype"]))
    if known is None:
        raise ValueError(f"{name} has the dtype {said['dtype']}, which untorn never writes")
    dtype, shape = np.dtype(known), tuple(map(count_of, items_of(said["shape"])))
    begin, end = map(count_of, items_of(said["data_offsets"]))
    if end - begin != dtype.itemsize * math.prod(shape):
        raise ValueError(f"{name} is {said['dtype']} of shape {list(shape)}, but has {end - begin} bytes")
    return Tensor(dtype, shape, data_start + begin, end - begin)


def _read(fd: int, start: int, nbytes: int) -> bytes:
    made = np.empty(nbytes, np.uint8)
    return made[: _read_into(fd, made, start)].tobytes()


def _read_into(fd: int, array: NDArray[np.uint8], start: int) -> int:
    """Read the file from this position into the array. Returns the number of bytes read."""
    memory, done = array.data, 0
    while done < array.size:
        count = os.preadv(fd, [memory[done:]], start + done)
        if count == 0:
            break
        done += count
    return done
