"""The core in C: see csrc/module.c."""

READER: int
WRITER: int
PUBLISHER: int
LAYOUT: int
HEADER_NBYTES: int
TURN_GRADIENT: int
TURN_IDLE: int
TURN_STOP: int
TURN_NEED_SLOT: int
BOARD_METRICS: int
BOARD_ERROR_NBYTES: int
BOARD_BUFFER_HEADER_NBYTES: int

class StatusError(Exception):
    args: tuple[str, int]

class Hold:
    version: int
    nbytes: int
    schema_nbytes: int
    schema_id: int
    published_ns: int
    slot: int
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
    def publish(self, slot: int, version: int, nbytes: int, schema_nbytes: int, schema_id: int, /) -> None: ...
    def publisher_alive(self) -> bool: ...
    def retire(self) -> None: ...
    def reclaim(self) -> int: ...
    def rows(self) -> list[tuple[int, int, int, int]]: ...
    def slots(self) -> list[tuple[int, int, int, int, int]]: ...

class Board:
    step: int
    limit: int
    need_slot: int
    failed: int
    stopped: int
    log_at: int
    lr_at: int
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

def format_board(
    fd: int,
    sizes: tuple[int, int, int, int, int, int, int, int],
    optimizer: tuple[int, float, float, int],
    ranges: bytes,
    /,
) -> None: ...
def format_control(fd: int, id: bytes, max_readers: int, max_slots: int, keep_slots: int, /) -> None: ...
def control_nbytes(max_readers: int, /) -> int: ...
def copy(target: object, offset: int, source: object, /) -> None: ...
