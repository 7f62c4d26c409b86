"""One checkpoint: a file that holds a training, so that going on from it gives the same bits as never having stopped.

A safetensors file with one tensor per array, and what is not an array as JSON in the file's own metadata::

    step-000000000120.safetensors
    ├── params/...        the weights, by their paths in the tree
    ├── optimizer/...     the optimizer's state (momentum/..., ...)
    ├── records           what each step of the running epoch measured: examples, loss, metrics
    └── metadata          "untorn": step, epoch, seed, shards, ..., history, checksums;  "sha256": of that text

One file, because one rename then makes it whole: it is written aside, flushed, renamed, and the folder is flushed. A
process killed at any moment leaves the checkpoints before, and at most a hidden folder ``.NAME.writing`` beside them,
which the next one to write there removes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import json
import math
import os
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

import numpy as np
from numpy.typing import NDArray

from untorn.descriptors import keep, standard_streams
from untorn.errors import FormatError
from untorn.share.lowlevel import MALFORMED, count_of, flatten, items_of, name_of, read_dtype
from untorn.train.checkpoints import tensorfile
from untorn.train.digest import weights_sha256
from untorn.train.history import History
from untorn.trees import paths

__all__ = ["Checkpoint", "Progress", "check_installed", "named_arrays", "read", "read_progress", "scratch_of", "write"]

FORMAT = 1
_KEY = "untorn"
_RECORDS = "records"
_KNOWN = {"bool", "complex64", *(f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64))}
_KNOWN |= {"float16", "float32", "float64"}


@dataclass(frozen=True)
class Progress:
    """Where a training stands, but for its arrays.

    Attributes:
        step: steps since training began.
        epoch: the epoch that runs, or comes next.
        step_in_epoch: how many of its steps are done; 0 between epochs.
        late: in async mode, the batches of the epoch that others have overtaken: the steps were made of the first
            ``step_in_epoch + len(late)`` batches, without these.
        seconds: what these took.
        rate_of_epoch: the learning rate that was set when the running epoch began, as Rate.changed. What was set since
            then, for the next epoch, is in the settings.
        settings: what must be the same for the same bits: seed, shards, optimizer, ...
        history: as History.to_dict() gives it, of all epochs that are over.
        metrics: the names of the records' columns, from the third.
        callbacks: their states.
        score: val_loss or loss at the end of an epoch, by which the best is kept; None in between.
        sha256: of the weights, as weights_sha256() counts it.
    """

    step: int
    epoch: int
    step_in_epoch: int = 0
    late: list[int] = field(default_factory=list)
    seconds: float = 0.0
    rate_of_epoch: float | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    history: dict[str, Any] = field(default_factory=dict)
    metrics: list[str] = field(default_factory=list)
    callbacks: dict[str, Any] = field(default_factory=dict)
    score: float | None = None
    sha256: str = ""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that was read, and is whole.

    Attributes:
        path: where it is.
        progress: where the training stood.
        records: float64, a row per step of the running epoch.
        tensors: weights and optimizer state by name.
    """

    path: Path
    progress: Progress
    records: NDArray[np.float64]
    tensors: dict[str, NDArray[Any]]

    def fill(self, params: Any, state: Any) -> None:
        """Copy the arrays into two writable trees of the trainer's. Raises ValueError, and changes nothing, where the
        checkpoint has another structure, shape or dtype."""
        targets = named_arrays("params", params) | named_arrays("optimizer", state)
        for name in sorted(targets.keys() ^ self.tensors.keys()):
            there, here = ("no", "one") if name in targets else ("one", "none")
            raise ValueError(
                f"checkpoint {self.path}: it has {there} {name}, and this trainer has {here}; give Trainer the "
                "parameters and the optimizer that the checkpoint was made with"
            )
        for name, target in targets.items():
            found = self.tensors[name]
            if (found.dtype, found.shape) != (target.dtype, target.shape):
                raise ValueError(
                    f"checkpoint {self.path}: {name} is {found.dtype} of shape {found.shape}, and this trainer's is "
                    f"{target.dtype} of shape {target.shape}"
                )
        for name, target in targets.items():
            np.copyto(target, self.tensors[name])


# -- writing


def write(path: Path, progress: Progress, *, params: Any, state: Any, records: NDArray[np.float64]) -> None:
    """Write a checkpoint, replacing one of that name at once and whole. Blocks until it is on the disk.

    Raises OSError naming the file, such as for a full disk; what was there before is as it was.
    """
    from safetensors.numpy import save_file

    tensors = named_arrays("params", params) | named_arrays("optimizer", state)
    progress = dataclasses.replace(progress, sha256=weights_sha256(params))
    tensors[_RECORDS] = records
    document = dataclasses.asdict(progress)
    if not progress.late:
        del document["late"]  # so that versions that do not know of late batches can read it
    text = json.dumps({"format": FORMAT, **document, "tensors": _contents(tensors)})
    metadata = {_KEY: text, "sha256": hashlib.sha256(text.encode()).hexdigest()}
    scratch = scratch_of(path)
    with _named_errors(path):
        remove_scratch(scratch)
        scratch.mkdir()
        try:
            with standard_streams():  # or a stray message may get into the file
                save_file({name: _storable(array) for name, array in tensors.items()}, scratch / "new", metadata)
            os.chmod(scratch / "new", 0o666 & ~_umask())
            _flush(scratch / "new")
            os.replace(scratch / "new", path)
        finally:
            remove_scratch(scratch)
        _flush(path.parent)


def scratch_of(path: Path) -> Path:
    """The folder in which a checkpoint is made; safetensors puts temporary files of its own beside what it writes."""
    return path.with_name(f".{path.name}.writing")


def remove_scratch(scratch: Path) -> None:
    """Remove what an earlier write left, as far as that can be done. Not shutil.rmtree(): where close() fails it closes
    the number again, and raises the error of that in place of the true one."""
    with contextlib.suppress(OSError):
        if scratch.is_dir():
            for left in scratch.iterdir():
                left.unlink()
            scratch.rmdir()
        else:
            scratch.unlink()


def _storable(array: NDArray[Any]) -> NDArray[Any]:
    """In C order, since save_file writes what lies in memory, whatever the strides; of a dtype that safetensors does
    not know, or of another byte order, the bytes."""
    array = np.asarray(array, order="C")
    return array if array.dtype.name in _KNOWN and array.dtype.isnative else array.reshape(-1).view(np.uint8)


def _contents(tensors: dict[str, NDArray[Any]]) -> dict[str, list[Any]]:
    """What a reader must find: dtype, shape and checksum of each tensor."""
    return {
        name: [array.dtype.str, list(array.shape), _checksum(np.asarray(array, order="C"))]
        for name, array in tensors.items()
    }


def _checksum(array: NDArray[Any]) -> int:
    """It finds damage, not forgery, and takes a fraction of the time of a digest."""
    data: Any = array.reshape(-1).view(np.uint8)
    return zlib.crc32(data)


def _flush(path: Path) -> None:
    fd = keep(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _umask() -> int:
    """os.umask() would have to change it, for all threads, to tell it."""
    found = re.search(r"^Umask:\s*([0-7]+)$", Path("/proc/self/status").read_text(), re.MULTILINE)
    return int(found[1], 8) if found else 0o077


@contextlib.contextmanager
def _named_errors(path: Path) -> Iterator[None]:
    """Errors of the library and of the kernel as OSErrors that say which checkpoint could not be written."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, SafetensorError) as error:
        number = error.errno if isinstance(error, OSError) else None
        said = re.search(r"os error (\d+)", str(error))  # all that the library lets through
        if number is None and said is not None:
            number = int(said[1])
        reason = str(error) if number is None else os.strerror(number)
        raise OSError(
            number or errno.EIO, f"checkpoint {path} could not be written: {reason}; the ones before are as they were"
        ) from error


# -- reading


def read(path: Path) -> Checkpoint:
    """Read a checkpoint and compare all of it with its checksums; the arrays are copies.

    Raises FormatError for a file that is damaged or is no checkpoint, ValueError for one of another version of untorn,
    FileNotFoundError and other OSErrors.
    """
    with tensorfile.opened(path) as file:
        progress, contents = _parse(file)
        if file.tensors.keys() != contents.keys():
            raise FormatError(f"checkpoint {path} is damaged: it has not the tensors that it should have")
        tensors = {}
        for name, (dtype, shape, checksum) in contents.items():
            _check_stored(path, name, file.tensors[name], dtype, shape)
            data = file.read(name)
            if _checksum(data) != checksum:
                raise FormatError(f"checkpoint {path} is damaged: {name} has not the checksum that was written with it")
            tensors[name] = data.view(dtype).reshape(shape)
    records = tensors.pop(_RECORDS, None)
    if records is None or records.dtype != np.float64 or records.ndim != 2:
        raise FormatError(f"checkpoint {path} is damaged: it has not the records that it should have")
    return Checkpoint(path, progress, records, tensors)


def read_progress(path: Path) -> Progress:
    """What a checkpoint says of itself; its arrays are neither read nor checked. Raises as read()."""
    with tensorfile.opened(path) as file:
        return _parse(file)[0]


def _parse(file: tensorfile.TensorFile) -> tuple[Progress, dict[str, tuple[np.dtype[Any], tuple[int, ...], int]]]:
    path, text = file.path, file.metadata.get(_KEY)
    if text is None:
        raise FormatError(f"{path} is no checkpoint of untorn: a safetensors file without its metadata")
    try:
        if hashlib.sha256(text.encode()).hexdigest() != file.metadata.get("sha256"):
            raise ValueError("its metadata has not the digest that was written with it")
        document = json.loads(text)
        found = document.pop("format")
        if type(found) is not int:
            raise TypeError(f"its format is {found!r}")
        contents = _read_contents(document.pop("tensors")) if found == FORMAT else {}
        progress = _read_progress(document) if found == FORMAT else None
    except MALFORMED as error:
        raise FormatError(f"checkpoint {path} is damaged: {error}") from error
    if progress is None:
        raise ValueError(
            f"checkpoint {path}: expected format {FORMAT}, found {found}: another version of untorn wrote it"
        )
    return progress, contents


def _read_contents(tensors: dict[str, Any]) -> dict[str, tuple[np.dtype[Any], tuple[int, ...], int]]:
    """Return the inverse of _contents()."""
    contents = {}
    for name, said in tensors.items():
        dtype, shape, checksum = items_of(said)
        contents[name] = read_dtype(name_of(dtype)), tuple(map(count_of, items_of(shape))), count_of(checksum)
    return contents


def _read_progress(document: dict[str, Any]) -> Progress:
    """Return the progress in a document. Raises TypeError, ValueError or the like unless it is as write() writes it."""
    for name, wanted in get_type_hints(Progress).items():
        if name in document and not _is_a(document[name], wanted):
            raise TypeError(f"{name} is {document[name]!r:.80}")
    progress = Progress(**document)
    History.from_dict(progress.history)
    if min(progress.step, progress.epoch, progress.step_in_epoch) < 0:
        raise ValueError("it is of a step before the first")
    batches = progress.step_in_epoch + len(progress.late)
    if any(type(batch) is not int or not 0 <= batch < batches for batch in progress.late):
        raise ValueError(f"its late batches are {progress.late!r:.80}")
    if sorted(set(progress.late)) != progress.late:
        raise ValueError(f"its late batches are not in order: {progress.late!r:.80}")
    rate = progress.settings["learning_rate"] if progress.step_in_epoch else progress.settings.get("learning_rate")
    if not _is_a(rate, float | None):
        raise TypeError(f"learning_rate is {rate!r:.80}")
    return progress


def _is_a(value: Any, wanted: Any) -> bool:
    """Return whether a value from JSON is of this type. A bool is no number; a whole float may be written as an int."""
    choices = get_args(wanted) if isinstance(wanted, UnionType) else (wanted,)
    kinds = [get_origin(choice) or choice for choice in choices]
    if isinstance(value, bool):
        return bool in kinds
    if isinstance(value, list) and get_args(wanted) == (str,) and not all(isinstance(part, str) for part in value):
        return False
    return type(value) in kinds or (type(value) is int and float in kinds)


def _check_stored(
    path: Path, name: str, stored: tensorfile.Tensor, dtype: np.dtype[Any], shape: tuple[int, ...]
) -> None:
    """Raise FormatError unless the tensor, or its bytes, is what _storable() makes of such an array."""
    nbytes = dtype.itemsize * math.prod(shape)
    if (stored.dtype, stored.shape) not in ((dtype, shape), (np.dtype(np.uint8), (nbytes,))) or not dtype.itemsize:
        raise FormatError(
            f"checkpoint {path} is damaged: {name} is {stored.dtype} of shape {stored.shape}, and should be {dtype} of "
            f"shape {shape}"
        )


def check_installed() -> None:
    """Raises ImportError unless the library that writes checkpoints is there."""
    try:
        import safetensors  # noqa: F401
    except ImportError:
        raise ImportError(
            "checkpoints need safetensors, which is not installed: pip install 'untorn[checkpoint]'"
        ) from None


# -- names


def named_arrays(prefix: str, tree: Any) -> dict[str, NDArray[Any]]:
    """The arrays of a tree by their paths; None has none."""
    if tree is None:
        return {}
    spec, leaves = flatten(tree)
    names = ["/".join((prefix, *path)) for path in paths(spec, through=True)]
    if len(set(names)) < len(names):  # such as {1: ..., "1": ...}
        names = [f"{name}#{index}" for index, name in enumerate(names)]
    return dict(zip(names, leaves, strict=True))
