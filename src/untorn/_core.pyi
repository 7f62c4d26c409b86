"""The core in C: see csrc/module.c."""


READER: int
WRITER: int
PUBLISHER: int
LAYOUT: int
HEADER_NBYTES: int

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
    def draft(self, slot: int, /) -> Draft: ...
    def publish(
        self, slot: int, version: int, nbytes: int, schema_nbytes: int, schema_id: int, /
    ) -> None: ...
    def publisher_alive(self) -> bool: ...
    def retire(self) -> None: ...
    def reclaim(self) -> int: ...
    def rows(self) -> list[tuple[int, int, int, int]]: ...
    def slots(self) -> list[tuple[int, int, int, int, int]]: ...

def format_control(
    fd: int, id: bytes, max_readers: int, max_slots: int, keep_slots: int, /
) -> None: ...
def control_nbytes(max_readers: int, /) -> int: ...
def copy(target: object, offset: int, source: object, /) -> None: ...
