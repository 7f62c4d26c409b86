"""The board: the shared memory through which the server and the workers of a job move training on.

::

    BoardSpec ── Board.create ──> memory file <── Board.open ── worker
                                      │
        order, rates, set_limit ──────┼─────> next: which gradient to compute, in which buffer
        log, in_flight, failure <─────┼────── buffer, commit, report_failure

The protocol is in csrc/board.h. Only this Python module knows the layout of a board: the dtypes of its structs come
from C, the offsets of its sections from its header. Each offset is checked before a view is made from it.
"""

from __future__ import annotations

import json
import math
import os
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, Self, final

import numpy as np
from numpy.typing import NDArray

from untorn import _core
from untorn.descriptors import keep
from untorn.errors import FormatError, NonFiniteLossError

__all__ = [
    "NO_SHARD",
    "Board",
    "BoardSpec",
    "FailureReport",
    "GradientBuffer",
    "InFlight",
    "KernelSettings",
    "UpdateTask",
    "pack_leaves",
    "pack_ranges",
]

_LOG = np.dtype(_core.BOARD_LOG_LAYOUT)
_BUFFER = np.dtype(_core.BOARD_BUFFER_LAYOUT)
_RANGE = np.dtype(_core.BOARD_RANGE_LAYOUT)


class KernelSettings(NamedTuple):
    """The optimizer that the board's updates run, and its settings that are the same in each step."""

    optimizer: int = _core.KERNEL_SGD
    momentum: float = 0.0
    weight_decay: float = 0.0
    beta1: float = 0.0
    beta2: float = 0.0
    eps: float = 0.0
    nesterov: bool = False
    centered: bool = False
    amsgrad: bool = False


NO_UPDATE: Final = KernelSettings()


class UpdateTask(NamedTuple):
    """A range of the parameters, and what an update does with it."""

    slot_offset: int
    """the offset in a slot"""
    grad_offset: int
    """the offset in a gradient's payload"""
    elements: int
    """their number"""
    dtype: int = 0
    """their type, ``_core.KERNEL_F32`` or ``KERNEL_F64``"""
    kind: int = 0
    """what to do with them, ``_core.MERGE_...``"""
    group: int = 0
    """the index of their group's kernel"""
    row: int = 0
    """of ``MERGE_ROWS``: the elements of a row"""
    set_offset: int = 0
    """of ``MERGE_ROWS``: the offset of the set of its rows in a gradient's payload"""


def pack_ranges(ranges: Iterable[UpdateTask]) -> bytes:
    """Return update tasks as bytes."""
    packed = [(*each[:3], each.dtype | each.kind << 8 | each.group << 16, *each[6:]) for each in ranges]
    return np.array(packed, _RANGE).tobytes()


def pack_leaves(leaves: Iterable[tuple[int, int]]) -> bytes:
    """Return arrays of parameters as bytes. Each is an offset in a gradient's payload, and the index of a kernel."""
    return np.array([offset | group << 48 for offset, group in leaves], np.uint64).tobytes()


@dataclass(frozen=True)
class BoardSpec:
    """The sizes and settings of a board.

    Attributes:
        shards: the number of shards of a batch; if ``is_async``, of batches that can be in flight.
        max_workers: the greatest number of workers.
        workers: the number of workers at first.
        is_async: whether each shard is a batch of its own, which the server opens and applies.
        steps: the number of steps of an epoch.
        examples: the number of examples of an epoch.
        batch_size: the number of examples of a step.
        gradient_nbytes: bytes of a gradient without its header.
        state_stride: bytes from one state buffer of the optimizer to the next.
        first_version: the version of the weights before the first step.
        kernels: the optimizer and its settings, of each group of parameters.
        clip_norm: the greatest norm of a gradient; 0 for any.
        ranges: the update tasks, as pack_ranges() returns them; the default updates nothing.
        exchange: whether the workers may compute some of the shards only, see set_own(), and a ``_core.Link`` brings
            the sum from other boards. Not with ``is_async``.
        first_step: the step that the board begins at, with the weights of ``first_version``.
        leaves: the arrays that may be without a gradient, as pack_leaves() returns them; then one of the ranges is of
            kind ``MERGE_ABSENT`` or ``MERGE_SKIPPED``.
        sets_at, sets_nbytes: the place in a gradient's payload of the sets of rows, if ranges are of kind
            ``MERGE_ROWS``.
    """

    shards: int
    max_workers: int
    workers: int
    is_async: bool
    steps: int
    examples: int
    batch_size: int
    gradient_nbytes: int
    state_stride: int = 0
    first_version: int = 0
    kernels: tuple[KernelSettings, ...] = (NO_UPDATE,)
    clip_norm: float = 0.0
    ranges: bytes = pack_ranges([UpdateTask(0, 0, 0)])
    exchange: bool = False
    first_step: int = 0
    leaves: bytes = b""
    sets_at: int = 0
    sets_nbytes: int = 0


class GradientBuffer(NamedTuple):
    """Writable views of a gradient buffer's header: number of examples, loss and metrics, version of the weights."""

    examples: NDArray[np.uint64]
    measured: NDArray[np.float64]
    version: NDArray[np.uint64]
    payload_at: int


class InFlight(NamedTuple):
    """The state of an in-flight batch; version and buffer are those of its gradient, once it is done."""

    state: int
    batch: int
    version: int
    buffer_at: int


#: the shard in the report of a worker that failed before its first task
NO_SHARD = -1


class FailureReport(NamedTuple):
    """The report of the first worker that failed. ``shard`` may be NO_SHARD."""

    worker: int
    step: int
    shard: int
    non_finite: bool
    summary: str
    traceback: str


@final
class Board(_core.Board):
    """A board that is mapped here. The workers' and the server's calls that move it on are those of ``_core.Board``.

    Views keep the memory mapped. Each access makes a new view, so keep those that are used in a loop.
    """

    __slots__ = ("fd",)

    #: the memory file; -1 once it is closed, and for a board that create() did not return
    fd: int

    @classmethod
    def create(cls, spec: BoardSpec) -> Board:
        """Create a board, whose ``job`` is a new random number. Raises OSError or StatusError if there is no memory."""
        # Workers find the board by a descriptor's number, which may by then be that of another board, of another
        # trainer, or even of another process of the same pid: the job's number tells them apart.
        job = int.from_bytes(os.urandom(8)) >> 1 or 1
        fd = keep(os.memfd_create("untorn-board", os.MFD_CLOEXEC))
        try:
            _core.format_board(fd, job=job, **vars(spec))
            board = cls(fd)
            board.fd = fd
            return board
        except BaseException:
            os.close(fd)
            raise

    @classmethod
    def open(cls, path: str) -> Board:
        """Attach to the board at this path."""
        fd = keep(os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK))
        try:
            board = cls(fd)
            board.fd = -1
            return board
        finally:
            os.close(fd)

    @property
    def path(self) -> str:
        """The path at which other processes open the board, for as long as its file is open here."""
        return f"/proc/{os.getpid()}/fd/{self.fd}"

    def close(self) -> None:
        """Close the file, so that no process can attach any more. The memory stays mapped."""
        fd, self.fd = getattr(self, "fd", -1), -1
        if fd >= 0:
            os.close(fd)

    __del__ = close  # Ctrl-C may come after create() and before the block that closes it

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *unused: object) -> None:
        self.close()

    @property
    def order(self) -> NDArray[np.int64]:
        """The indices of an epoch's examples, in the order in which the steps take them: a writable view."""
        return self._view(np.int64, (self.examples,), self.order_at)

    @property
    def rates(self) -> NDArray[np.float64]:
        """The kernels' numbers of each step of an epoch, those of each group beside the other, see Optimizer.rates: a
        writable view."""
        return self._view(np.float64, (self.steps, self.groups * _core.KERNEL_RATES), self.rates_at)

    @property
    def log(self) -> NDArray[Any]:
        """The record of each step of an epoch, with the fields examples, loss, metrics (BOARD_METRICS of them),
        staleness and grad_norm: a writable view."""
        return self._view(_LOG, (self.steps,), self.log_at)

    def buffer(self, at: int) -> GradientBuffer:
        """Return views of the header of the gradient buffer at this offset."""
        header = self._view(_BUFFER, (1,), at)
        return GradientBuffer(header["examples"], header["measured"][0], header["version"], at + _BUFFER.itemsize)

    def payload_array(
        self, at: int, dtype: Any, shape: tuple[int, ...], offset: int, strides: tuple[int, ...] | None = None
    ) -> NDArray[Any]:
        """Return a writable view in the payload of the gradient buffer at this offset."""
        return self._view(dtype, shape, at + _BUFFER.itemsize + offset, strides)

    def in_flight(self, index: int) -> InFlight:
        """Return the state of an in-flight batch."""
        # the server polls, so neither super() nor _make()
        return tuple.__new__(InFlight, _core.Board.in_flight(self, index))

    @property
    def metric_names(self) -> list[str]:
        """The metrics' names, which workers write with their first gradient."""
        names: list[str] = json.loads(self._text(_core.BOARD_NAMES_NBYTES, self.names_at) or b"[]")
        return names

    def write_metric_names(self, names: Sequence[str]) -> bool:
        """Write the metrics' names, which are those of the whole job. Return False if other names were written before;
        they stay. Raises ValueError if the names are too long."""
        text = json.dumps(names).encode()
        if len(text) >= _core.BOARD_NAMES_NBYTES:
            raise ValueError(f"the names of the metrics are too long: {names}")
        if not self.agree(zlib.crc32(text) or 1):
            return False
        _core.copy(self, self.names_at, text + b"\0")  # again, in case the first worker was killed before this
        return True

    @property
    def failure(self) -> FailureReport | None:
        """The report of the first worker that failed, or None."""
        worker = self.failed - 1
        if worker < 0:
            return None
        return FailureReport(worker, **json.loads(self._text(_core.BOARD_ERROR_NBYTES, self._report_at(worker))))

    def report_failure(self, worker: int, step: int, shard: int, error: Exception, text: str) -> None:
        """Report an error of a worker, with its traceback as ``text``, and wake the server."""
        room = _core.BOARD_ERROR_NBYTES - 4096  # for what is beside the traceback
        document = {
            "step": step,
            "shard": shard,
            "non_finite": isinstance(error, NonFiniteLossError),
            "summary": f"{type(error).__name__}: {_message_of(error)}"[:500],
            "traceback": text[-room // 6 :],  # its newest lines; JSON needs up to six bytes per character
        }
        _core.copy(self, self._report_at(worker), json.dumps(document).encode() + b"\0")
        self.fail(worker)

    def _report_at(self, worker: int) -> int:
        return self.errors_at + worker * _core.BOARD_ERROR_NBYTES

    def _text(self, nbytes: int, at: int) -> bytes:
        return self._view(np.uint8, (nbytes,), at).tobytes().split(b"\0", 1)[0]

    def _view(
        self, dtype: Any, shape: tuple[int, ...], at: int, strides: tuple[int, ...] | None = None
    ) -> NDArray[Any]:
        """Return a writable view at this offset. Raises FormatError for a place that the memory does not have."""
        buffer: Any = self  # NumPy's stubs know no user-defined buffers before Python 3.12
        if strides is None:  # where it lies is read from shared memory
            nbytes = np.dtype(dtype).itemsize * math.prod(shape)
            if not 0 <= nbytes <= memoryview(buffer).nbytes - at:  # NumPy's own check may overflow
                raise FormatError(f"an array at bytes {at} to {at + nbytes} lies outside its board")
        return np.ndarray(shape, dtype, buffer, at, strides)


def _message_of(error: Exception) -> str:
    """Return an error's message, even if the error of a user's class fails to give one."""
    try:
        return str(error)
    except Exception as another:
        return f"(its message cannot be shown: {type(another).__name__})"
