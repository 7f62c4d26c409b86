"""The core in C: see csrc/module.h."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Generic, NoReturn, Self, TypeVar, overload

_K = TypeVar("_K")
_V = TypeVar("_V")
_T = TypeVar("_T")

READER: int
WRITER: int
PUBLISHER: int
LAYOUT: int
WATCH_WORDS: int
HEADER_NBYTES: int
TURN_GRADIENT: int
TURN_IDLE: int
TURN_STOP: int
TURN_NEED_SLOT: int
KERNEL_RATES: int
KERNEL_SGD: int
KERNEL_ADAM: int
KERNEL_RMSPROP: int
KERNEL_ADAGRAD: int
BOARD_METRICS: int
BOARD_ERROR_NBYTES: int
BOARD_BUFFER_HEADER_NBYTES: int
FROZEN_ARRAY: int
FROZEN_SCALAR: int
FROZEN_OTHER: int
FROZEN_LARGE: int

class StatusError(Exception):
    args: tuple[str, int]

class Hold:
    version: int
    nbytes: int
    schema_nbytes: int
    schema_id: int
    published_ns: int
    slot: int
    def private(self) -> Private: ...
    def __buffer__(self, flags: int, /) -> memoryview: ...

class Private:
    def __buffer__(self, flags: int, /) -> memoryview: ...

class Draft:
    def __buffer__(self, flags: int, /) -> memoryview: ...

class Attachment:
    version: int
    latest_slot: int
    closed: bool
    forked: bool
    control_fd: int
    data_fd: int
    max_readers: int
    max_slots: int
    row: int
    publisher_pid: int
    created_ns: int
    role: int
    id: bytes
    def __new__(cls, control_fd: int, data_fd: int, role: int) -> Attachment: ...
    def pin(self) -> Hold: ...
    def wait(self, seen: int, timeout_s: float, /) -> bool: ...
    def pick(self, nbytes: int, /) -> int: ...
    def grow(self, nbytes: int, /) -> None: ...
    def draft(self, slot: int, /) -> Draft: ...
    def seal(self, draft: Draft, /) -> None: ...
    def finish(self, slot: int, version: int, nbytes: int, schema_nbytes: int, schema_id: int, /) -> None: ...
    def publish(self, slot: int, version: int, /) -> None: ...
    def publisher_alive(self) -> bool: ...
    def retire(self) -> None: ...
    def reclaim(self) -> int: ...
    def rows(self) -> list[tuple[int, int, int, int]]: ...
    def slots(self) -> list[tuple[int, int, int, int, int]]: ...

class Watch:
    polls: bool
    def __new__(cls, polls: bool = False) -> Watch: ...
    def wait(self, versions: dict[Attachment, int], timeout_s: float, /) -> list[Attachment]: ...
    def ring(self) -> None: ...
    def forget(self) -> None: ...

class Board:
    step: int
    limit: int
    need_slot: int
    failed: int
    stopped: int
    log_at: int
    rates_at: int
    order_at: int
    errors_at: int
    names_at: int
    shards: int
    workers: int
    steps: int
    examples: int
    batch_size: int
    commits: list[int]
    def __new__(cls, fd: int) -> Board: ...
    def __buffer__(self, flags: int, /) -> memoryview: ...
    def next(
        self, weights: Attachment, worker: int, first: int, spin_s: float, wait_s: float, /
    ) -> tuple[int, int, int, int]: ...
    def commit(self, worker: int, /) -> bool: ...
    def fail(self, worker: int, /) -> None: ...
    def open(self, limit: int, /) -> None: ...
    def stop(self) -> None: ...
    def recover(self, worker: int, /) -> int: ...
    def slot_ready(self) -> None: ...
    def wait_server(self, seen: int, timeout_s: float, /) -> int: ...

class FrozenMemory:
    def __buffer__(self, flags: int, /) -> memoryview: ...

class FrozenTable(Generic[_K, _V]):
    _parts: tuple[Any, ...]
    def __new__(
        cls,
        parts: tuple[Any, ...],
        count: int,
        seed: int,
        dtypes: tuple[Any, ...],
        array: type,
        other: Callable[[int, Any, int, int], Any],
        /,
    ) -> Self: ...
    def __getitem__(self, key: _K, /) -> _V: ...
    def __contains__(self, key: object, /) -> bool: ...
    def __len__(self) -> int: ...
    @overload
    def get(self, key: _K, /) -> _V | None: ...
    @overload
    def get(self, key: _K, /, default: _V | _T) -> _V | _T: ...
    def _iterate(self, what: int, /) -> Iterator[Any]: ...

def frozen_build(
    data: Iterable[Any],
    spare_seed: int,
    pack: Callable[[Any], tuple[int, int, int, Any, tuple[int, ...]]],
    refuse: Callable[[list[Any], Any], NoReturn],
    /,
) -> tuple[FrozenMemory, FrozenMemory, FrozenMemory, int, int]: ...
def format_board(
    fd: int,
    sizes: tuple[int, int, int, int, int, int, int, int],
    hyper: tuple[int, float, float, float, float, float, int, int, int],
    clip_norm: float,
    ranges: bytes,
    /,
) -> None: ...
def format_control(fd: int, id: bytes, max_readers: int, max_slots: int, keep_slots: int, /) -> None: ...
def control_nbytes(max_readers: int, /) -> int: ...
def copy_leaves(target: object, places: tuple[tuple[int, int, str], ...], leaves: list[object], /) -> list[int]: ...
def copy(target: object, offset: int, source: object, /) -> None: ...
