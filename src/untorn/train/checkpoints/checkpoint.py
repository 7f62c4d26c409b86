"""The file of a checkpoint, from which training resumes with the same bits as if it had never stopped.

It is a safetensors file with one tensor per array, and with everything else as JSON in the file's metadata::

    step-000000000120.safetensors
    ├── params/...        the weights, by their paths in the tree
    ├── optimizer/...     the optimizer's state (momentum/..., ...)
    ├── records           the log of the running epoch's steps: examples, loss, metrics
    └── metadata          "untorn": step, epoch, seed, shards, ..., history, checksums;  "sha256" of that text

With a single file, a single rename makes the checkpoint appear complete: the file is written in a hidden folder,
flushed and renamed, and its folder is flushed. A process that is killed at any moment leaves the earlier checkpoints
intact, and at most the hidden folder ``.NAME.writing``, which the next process that writes there removes.
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
    """The state of a training, without its arrays.

    Attributes:
        step: the number of steps since training began.
        epoch: the running epoch, or the next one.
        step_in_epoch: the number of its completed steps; 0 between epochs.
        single_steps: the number of steps, of all, that were made by themselves and not in an epoch.
        late: in async mode, the batches of the epoch that later ones have overtaken: the completed steps used the first
            ``step_in_epoch + len(late)`` batches without these.
        seconds: the duration of the completed steps.
        rate_of_epoch: the learning rate that was set when the running epoch began, as Rate.changed. What was set since
            then, for the next epoch, is in the settings.
        settings: the settings on which the bits depend: seed, shards, optimizer, ...
        history: History.to_dict() for the completed epochs.
        metrics: the names of the records' columns from the third on.
        callbacks: the states of the callbacks.
        score: val_loss or loss at the end of an epoch, by which the best checkpoint is kept; None during an epoch.
        sha256: weights_sha256() of the weights.
    """

    step: int
    epoch: int
    step_in_epoch: int = 0
    single_steps: int = 0
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
    """A checkpoint that was read and found to be complete.

    Attributes:
        path: its file.
        progress: the state of the training.
        records: the log of the running epoch's steps: float64, a row per step.
        tensors: the weights and the optimizer's state, by name.
    """

    path: Path
    progress: Progress
    records: NDArray[np.float64]
    tensors: dict[str, NDArray[Any]]

    def fill(self, params: Any, state: Any) -> None:
        """Copy the arrays into two writable trees of the trainer. Raises ValueError, and changes nothing, if the
        checkpoint has another structure, shape or dtype."""
        targets = named_arrays("params", params) | named_arrays("optimizer", state)
        for name in sorted(targets.keys() ^ self.tensors.keys()):
            there, here = ("lacks", "has") if name in targets else ("has", "lacks")
            raise ValueError(
                f"checkpoint {self.path} {there} {name}, which this trainer {here}; give Trainer the parameters and "
                "the optimizer that the checkpoint was made with"
            )
        for name, target in targets.items():
            found = self.tensors[name]
            if (found.dtype, found.shape) != (target.dtype, target.shape):
                raise ValueError(
                    f"checkpoint {self.path}: expected {name} to be {target.dtype} of shape {target.shape}, as in this "
                    f"trainer; found {found.dtype} of shape {found.shape}"
                )
        for name, target in targets.items():
            np.copyto(target, self.tensors[name])


# -- writing


def write(path: Path, progress: Progress, *, params: Any, state: Any, records: NDArray[np.float64]) -> None:
    """Write a checkpoint, replacing an existing one in one operation. Blocks until it is on the disk.

    Raises OSError, which names the file, for example if the disk is full; an existing checkpoint is then unchanged.
    """
    from safetensors.numpy import save_file

    tensors = named_arrays("params", params) | named_arrays("optimizer", state)
    progress = dataclasses.replace(progress, sha256=weights_sha256(params))
    tensors[_RECORDS] = records
    document = dataclasses.asdict(progress)
    for name in ("late", "single_steps"):
        if not document[name]:
            del document[name]  # so that older versions, which do not know it, can read the file
    text = json.dumps({"format": FORMAT, **document, "tensors": _contents(tensors)})
    metadata = {_KEY: text, "sha256": hashlib.sha256(text.encode()).hexdigest()}
    scratch = scratch_of(path)
    with _named_errors(path):
        remove_scratch(scratch)
        scratch.mkdir()
        try:
            with standard_streams():  # otherwise a stray message could be written to the file
                save_file({name: _storable(array) for name, array in tensors.items()}, scratch / "new", metadata)
            os.chmod(scratch / "new", 0o666 & ~_umask())
            _flush(scratch / "new")
            os.replace(scratch / "new", path)
        finally:
            remove_scratch(scratch)
        _flush(path.parent)


def scratch_of(path: Path) -> Path:
    """Return the folder in which a checkpoint is written, since safetensors makes temporary files beside its file."""
    return path.with_name(f".{path.name}.writing")


def remove_scratch(scratch: Path) -> None:
    """Remove the scratch folder of an earlier write, if possible. shutil.rmtree() is not used: if close() fails it
    closes the descriptor again, and raises the error of that instead of the first one."""
    with contextlib.suppress(OSError):
        if scratch.is_dir():
            for left in scratch.iterdir():
                left.unlink()
            scratch.rmdir()
        else:
            scratch.unlink()


def _storable(array: NDArray[Any]) -> NDArray[Any]:
    """Return the array in C order, since save_file ignores strides. If safetensors does not support its dtype or byte
    order, return its bytes."""
    array = np.asarray(array, order="C")
    return array if array.dtype.name in _KNOWN and array.dtype.isnative else array.reshape(-1).view(np.uint8)


def _contents(tensors: dict[str, NDArray[Any]]) -> dict[str, list[Any]]:
    """Return the dtype, shape and checksum of each tensor, for a reader to check."""
    return {
        name: [array.dtype.str, list(array.shape), _checksum(np.asarray(array, order="C"))]
        for name, array in tensors.items()
    }


def _checksum(array: NDArray[Any]) -> int:
    """Return a checksum, which detects damage but not forgery, and is much faster than a digest."""
    data: Any = array.reshape(-1).view(np.uint8)
    return zlib.crc32(data)


def _flush(path: Path) -> None:
    fd = keep(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _umask() -> int:
    """Return the umask. os.umask() can return it only by changing it, for all threads."""
    found = re.search(r"^Umask:\s*([0-7]+)$", Path("/proc/self/status").read_text(), re.MULTILINE)
    return int(found[1], 8) if found else 0o077


@contextlib.contextmanager
def _named_errors(path: Path) -> Iterator[None]:
    """Turn errors of the library and the kernel into OSErrors that name the checkpoint."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, SafetensorError) as error:
        number = error.errno if isinstance(error, OSError) else None
        said = re.search(r"os error (\d+)", str(error))  # the library passes on the number only in its text
        if number is None and said is not None:
            number = int(said[1])
        reason = str(error) if number is None else os.strerror(number)
        raise OSError(
            number or errno.EIO, f"checkpoint {path} could not be written: {reason}; earlier checkpoints are unchanged"
        ) from error


# -- reading


def read(path: Path) -> Checkpoint:
    """Read a checkpoint and check it against its checksums; the arrays are copies.

    Raises FormatError if the file is damaged or not a checkpoint, ValueError if another version of untorn wrote it,
    FileNotFoundError, and other OSErrors.
    """
    with tensorfile.opened(path) as file:
        progress, contents = _parse(file)
        if file.tensors.keys() != contents.keys():
            raise FormatError(f"checkpoint {path} is damaged: its tensors differ from those in its metadata")
        tensors = {}
        for name, (dtype, shape, checksum) in contents.items():
            _check_stored(path, name, file.tensors[name], dtype, shape)
            data = file.read(name)
            if _checksum(data) != checksum:
                raise FormatError(f"checkpoint {path} is damaged: the checksum of {name} is wrong")
            tensors[name] = data.view(dtype).reshape(shape)
    records = tensors.pop(_RECORDS, None)
    if records is None or records.dtype != np.float64 or records.ndim != 2:
        raise FormatError(f"checkpoint {path} is damaged: it lacks the records of steps, or they are malformed")
    return Checkpoint(path, progress, records, tensors)


def read_progress(path: Path) -> Progress:
    """Return the progress in a checkpoint's metadata, without reading or checking its arrays. Raises as read()."""
    with tensorfile.opened(path) as file:
        return _parse(file)[0]


def _parse(file: tensorfile.TensorFile) -> tuple[Progress, dict[str, tuple[np.dtype[Any], tuple[int, ...], int]]]:
    path, text = file.path, file.metadata.get(_KEY)
    if text is None:
        raise FormatError(f"{path} is not a checkpoint of untorn: a safetensors file without its metadata")
    try:
        if hashlib.sha256(text.encode()).hexdigest() != file.metadata.get("sha256"):
            raise ValueError("the digest of its metadata is wrong")
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
    """Return the progress in a document. Raises TypeError, ValueError or the like if write() cannot have written it."""
    for name, wanted in get_type_hints(Progress).items():
        if name in document and not _is_a(document[name], wanted):
            raise TypeError(f"{name} is {document[name]!r:.80}")
    progress = Progress(**document)
    History.from_dict(progress.history)
    if min(progress.step, progress.epoch, progress.step_in_epoch, progress.single_steps) < 0:
        raise ValueError("its step, epoch, step_in_epoch or single_steps is negative")
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
    """Return whether a value from JSON has this type. A bool is not a number; an int may stand for a float."""
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
    """Raise FormatError unless the tensor can be the result of _storable() for such an array."""
    nbytes = dtype.itemsize * math.prod(shape)
    if (stored.dtype, stored.shape) not in ((dtype, shape), (np.dtype(np.uint8), (nbytes,))) or not dtype.itemsize:
        raise FormatError(
            f"checkpoint {path} is damaged: expected {name} to be {dtype} of shape {shape}, found {stored.dtype} of "
            f"shape {stored.shape}"
        )


def check_installed() -> None:
    """Raise ImportError unless safetensors is installed."""
    try:
        import safetensors  # noqa: F401
    except ImportError:
        raise ImportError(
            "checkpoints need safetensors, which is not installed: pip install 'untorn[checkpoint]'"
        ) from None


# -- names


def named_arrays(prefix: str, tree: Any) -> dict[str, NDArray[Any]]:
    """Return the arrays of a tree by their paths; empty for None."""
    if tree is None:
        return {}
    spec, leaves = flatten(tree)
    names = ["/".join((prefix, *path)) for path in paths(spec, through=True)]
    if len(set(names)) < len(names):  # such as {1: ..., "1": ...}
        names = [f"{name}#{index}" for index, name in enumerate(names)]
    return dict(zip(names, leaves, strict=True))
