"""The fuzz targets in Python: a target is a function of bytes, which returns or fails.

Each reads bytes of another process: a version's schema, the parts of a FrozenDict, the files of a channel or a queue, a
checkpoint, a line on a job's socket. The contract is the same for all: a value, or one of ``ANSWERS``. Any other
exception is a finding, and so is a crash, a hang, or more memory than a small file may need. ``corpus.py`` makes the
initial inputs; ``fuzzing.py`` runs the targets for a given time, and ``test_corpus.py`` runs them in each test run.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import re
import struct
import tempfile
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import untorn
from untorn.cli.outline import outline, walk
from untorn.control import client, protocol
from untorn.errors import FormatError, UnsupportedTypeError, UntornError
from untorn.share import inspect
from untorn.share.decoder import UNREADABLE, Decoder
from untorn.share.frozen_dict import REMOVED, Changes, base_of, compacted
from untorn.share.queue_inspect import QueueView, queue_files_of
from untorn.share.table_overlay import Overlay
from untorn.share.tree_plans import tree_plan_of
from untorn.train.checkpoints import checkpoint

#: where targets write files; libFuzzer ends its process without any clean-up, so fuzzing.py removes them
_PLACE = os.environ.get("UNTORN_FUZZ_PLACE", "/dev/shm")

#: a library that is not installed here says so
ANSWERS = (FormatError, UnsupportedTypeError, OSError, ImportError)
_SEPARATOR = b"\n"
_MAX_ELEMENTS = 1000


@dataclass
class Pair:
    """A dataclass that a schema may name."""

    left: Any
    right: Any


def schema(data: bytes) -> None:
    """A schema, a newline, and the payload that it is of."""
    text, _, payload = data.partition(_SEPARATOR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of libraries, about values that nobody would make
        with contextlib.suppress(*ANSWERS):
            decoder = Decoder(text, len(payload), payload=0)
            _look(decoder.value(payload), len(payload))
            _look(decoder.extra(payload), len(payload))
            plan = tree_plan_of(text, 0, len(payload))
            if plan is not None:
                with contextlib.suppress(*UNREADABLE):
                    _look(plan.read(payload), len(payload))
    with contextlib.suppress(FormatError):
        for node in inspect.decode_schema(text).values():
            for _ in walk(outline(node)):
                pass


def _parts(data: bytes) -> dict[str, Any]:
    lengths = struct.unpack("<3I", data[:12].ljust(12, b"\0"))
    parts, rest = {}, data[12:]
    for name, nbytes in zip(("index", "entries", "blob"), lengths, strict=True):
        parts[name] = np.frombuffer(rest[:nbytes], np.uint8)
        rest = rest[nbytes:]
    return {**parts, "documents": rest}


def frozen(data: bytes) -> None:
    """Three lengths as u32, and then index, entries, blob and documents."""
    with contextlib.suppress(*ANSWERS):
        made = untorn.FrozenDict.of_parts(_parts(data))
        keys = _taken(made)
        for key in [*keys, "absent", 77]:
            with contextlib.suppress(KeyError, *ANSWERS):
                _look(made[key], len(data))
        assert len(_taken(made.values())) <= len(data) // 16
        _taken(made.items())


def base_table() -> untorn.FrozenDict[Any, Any]:
    """Return the base that the changes of the targets are of."""
    return untorn.FrozenDict({f"key {i}": i for i in range(20)} | {"a": np.arange(3), "p": OrderedDict(a=1), 1: [1]})


def changed_table(data: bytes) -> None:
    """The same of changes of a FrozenDict: looked up, changed again, and written as one table."""
    base = base_table()
    with contextlib.suppress(*ANSWERS):
        made = Changes(_parts(data), False).over(base)
        _look(made, len(data) + base.nbytes)
        for use in (_changed_again, compacted):
            with contextlib.suppress(*ANSWERS):
                _look(use(made), 2 * (len(data) + base.nbytes))


def _changed_again(table: untorn.FrozenDict[Any, Any]) -> untorn.FrozenDict[Any, Any]:
    base = base_of(table)
    overlay = Overlay.of(table, allow_pickle=False)
    overlay.add({"key 3": 4, "new": [np.arange(5)], 1: REMOVED}, base)
    return overlay.changes().over(base)


def _taken(items: Any) -> list[Any]:
    """Return what an iterator yields until it fails, or ends."""
    taken = []
    with contextlib.suppress(*ANSWERS):
        taken.extend(iter(items))
    return taken


def saved(data: bytes) -> None:
    """A checkpoint: as it is, and with a digest that agrees with its metadata, so that what is behind that is met."""
    with tempfile.NamedTemporaryFile(dir=_PLACE, prefix="untorn-fuzz-") as file:
        for content in (data, _with_digest(data)):
            file.truncate(0)
            file.seek(0)
            file.write(content)
            file.flush()
            path = Path(file.name)
            with contextlib.suppress(*ANSWERS), _another_version():
                checkpoint.read_progress(path)
            with contextlib.suppress(*ANSWERS), _another_version():
                found = checkpoint.read(path)
                assert sum(array.nbytes for array in found.tensors.values()) <= len(content)


@contextlib.contextmanager
def _another_version() -> Iterator[None]:
    """The one ValueError that reading a checkpoint may raise."""
    try:
        yield
    except ValueError as error:
        if "another version of untorn wrote it" not in str(error):
            raise


def _with_digest(data: bytes) -> bytes:
    try:
        (nbytes,) = struct.unpack("<Q", data[:8])
        header = json.loads(data[8 : 8 + nbytes].decode())
        text = header["__metadata__"]["untorn"]
        header["__metadata__"]["sha256"] = hashlib.sha256(text.encode()).hexdigest()
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, struct.error):
        return data
    made = json.dumps(header).encode()
    return struct.pack("<Q", len(made)) + made + data[8 + nbytes :]


def socket(data: bytes) -> None:
    """A line that is said to a job; the same as what a job answers; and as the kernel's table of sockets."""
    answer = protocol.answer_to(data.partition(b"\n")[0], "fuzz", _Job())
    assert answer.endswith(b"\n")
    assert isinstance(json.loads(answer), dict)
    with contextlib.suppress(UntornError, *protocol._SAME_TYPE.values()):
        assert isinstance(protocol.read_answer(data, "fuzz"), dict)
    assert all(isinstance(name, str) for name in client._names_in(data, b"untorn/0/"))


class _Job:
    workers = 2
    nodes = 2

    def status(self) -> dict[str, Any]:
        return {"step": 7}

    def resize(self, workers: int) -> None:
        if workers > 1024:
            raise ValueError(f"{workers} workers")

    def resize_nodes(self, nodes: int) -> None:
        if nodes > 64:
            raise ValueError(f"{nodes} nodes")


class _Channel:
    """A channel with two versions in its own directory, and the bytes of its files."""

    def __init__(self) -> None:
        self._directory = tempfile.TemporaryDirectory(dir=_PLACE, prefix="untorn-fuzz-")
        with untorn.publish({"w": np.arange(20)}, name="c", directory=self.path.parent) as publisher:
            publisher.update({"w": np.arange(30), "n": 1, "s": "text", "f": untorn.FrozenDict({"a": 1, "b": [2.0]})})
        self.files = [self.path.with_suffix(suffix) for suffix in (".control", ".data")]
        self.bytes = [file.read_bytes() for file in self.files]

    @property
    def path(self) -> Path:
        return Path(self._directory.name) / "c"

    def remove(self) -> None:
        self._directory.cleanup()


_channels: list[_Channel] = []


def channel(data: bytes) -> None:
    """Changes of the files of a channel, 12 bytes each: u8 what, u8, u16 where, u64 value. The library makes it in
    every process, so the corpus does not age with its format."""
    if not _channels:
        _channels.append(_Channel())
    made = _channels[0]
    contents = list(map(bytearray, made.bytes))
    for what, size, where, value in struct.iter_unpack("<BBHQ", data[: len(data) // 12 * 12][:768]):
        file = contents[what & 1]
        if what & 0x7E == 0x7E:
            del file[value % (len(file) + 1) :]
        elif where < len(file):
            file[where : where + size % 8 + 1] = struct.pack("<Q", value)[: size % 8 + 1]
    for file, content in zip(made.files, contents, strict=True):
        fd = os.open(file, os.O_WRONLY | os.O_TRUNC)
        os.write(fd, content)
        os.close(fd)
    with contextlib.suppress(UntornError, OSError), untorn.subscribe(made.path) as subscriber:
        _look(subscriber.snapshot().value, sum(map(len, contents)))
    with contextlib.suppress(UntornError, OSError), inspect.ChannelView.open(inspect.files_of(str(made.path))) as view:
        view.state()
        _, document = view.schema()
        outline(document["value"])


class _Queue:
    """A queue with two items in its own directory, and the bytes of its file: those of what comes before the windows,
    and those of the windows, which are holes for the most part."""

    def __init__(self) -> None:
        self._directory = tempfile.TemporaryDirectory(dir=_PLACE, prefix="untorn-fuzz-")
        with contextlib.closing(_Leaving(self.open())) as opened:
            opened.queue.put({"s": "text", "f": untorn.FrozenDict({"a": 1, "b": [2.0]})})
            opened.queue.put({"w": np.arange(1000), "n": 1})
            opened.queue.put([1, None, b"raw"])
        self.bytes = self.path.read_bytes()

    @property
    def path(self) -> Path:
        return Path(self._directory.name) / "q.queue"

    def open(self) -> untorn.Queue[Any]:
        return untorn.queue(4, nbytes=16384, name="q", directory=self._directory.name, max_processes=3)

    def remove(self) -> None:
        self._directory.cleanup()


class _Leaving:
    """A queue that is left, and not closed, by close()."""

    def __init__(self, queue: untorn.Queue[Any]) -> None:
        self.queue = queue

    def close(self) -> None:
        self.queue.leave()


_queues: list[_Queue] = []
#: by the last three bits of what a change is: where the head says where that part of the file begins (docs/format.md)
_PARTS = {2: 88, 3: 96, 4: 104, 5: 112, 6: 120}


def queue(data: bytes) -> None:
    """Changes of the file of a queue, as fuzz_queue.c takes them."""
    if not _queues:
        _queues.append(_Queue())
    made = _queues[0]
    content = bytearray(made.bytes)
    for what, size, where, value in struct.iter_unpack("<BBHQ", data[: len(data) // 12 * 12][:768]):
        if what & 7 == 7:
            del content[value % (2 * len(made.bytes)) :]
            continue
        part = _PARTS.get(what & 7)
        at = where + (0 if part is None else struct.unpack_from("<Q", made.bytes, part)[0])
        if at < len(content):
            content[at : at + size % 8 + 1] = struct.pack("<Q", value)[: size % 8 + 1]
    made.path.unlink(missing_ok=True)  # a new file, as the sides of this process are found by it
    made.path.write_bytes(content)
    with contextlib.suppress(UntornError, OSError), QueueView.open(queue_files_of(str(made.path))) as view:
        view.state()
    with contextlib.suppress(UntornError, OSError, ValueError), contextlib.closing(_Leaving(made.open())) as opened:
        _use(opened.queue, len(made.bytes))


def _use(queue: untorn.Queue[Any], nbytes: int) -> None:
    for step in (queue.qsize, queue.processes, lambda: queue.nbytes, lambda: queue.closed):
        with contextlib.suppress(UntornError, OSError):
            step()
    for value in ("text", np.ones(1000), {"n": 1}):
        for _ in range(4):
            with contextlib.suppress(UntornError, OSError, ImportError):
                _look(queue.get(timeout_s=0), nbytes)
        with contextlib.suppress(UntornError, OSError):
            queue.put(value, timeout_s=0)
    with contextlib.suppress(UntornError, OSError):
        queue.close()


def forget() -> None:
    """Remove what the targets keep from one input to the next."""
    while _channels:
        _channels.pop().remove()
    while _queues:
        _queues.pop().remove()


def _look(value: Any, nbytes: int) -> None:
    """Go through a value that came out, reading all bytes of its arrays; there are no more than were put in."""
    if isinstance(value, np.ndarray):
        assert value.nbytes <= nbytes, (value.shape, value.dtype)
        value.tobytes()
    elif isinstance(value, str | bytes):
        assert len(value) <= nbytes
    elif isinstance(value, untorn.FrozenDict):
        for key in _taken(value)[:_MAX_ELEMENTS]:
            with contextlib.suppress(KeyError, *ANSWERS):
                _look(value[key], nbytes)
    elif isinstance(value, dict):
        for part in value.values():
            _look(part, nbytes)
    elif isinstance(value, list | tuple):
        for part in value:
            _look(part, nbytes)


_KNOWN = (0, 1, 7, 8, 63, 64, 255, 4096, 2**31 - 1, 2**32 - 1, 2**63 - 1, 2**64 - 1)
_TEXTS = (b"0", b"-1", b"1e9", b"9223372036854775807", b"true", b"null", b"[]", b"{}", b'""', b"NaN", b'"\\ud800"')


def changed(data: bytes, rng: random.Random) -> bytes:
    """The same with a few changes: bits, numbers as words and as text, parts cut out, doubled and exchanged."""
    made = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at, size = rng.randint(0, len(made)), rng.choice((1, 1, 2, 4, 8, 16))
        match rng.randrange(7):
            case 0 if at < len(made):
                made[at] ^= 1 << rng.randrange(8)
            case 1:
                made[at : at + 8] = struct.pack("<Q", rng.choice(_KNOWN))
            case 2:
                numbers = list(re.finditer(rb"-?\d+|true|false|null|\"\w*\"", made[at : at + 400]))
                if numbers:
                    first, last = rng.choice(numbers).span()
                    made[at + first : at + last] = rng.choice(_TEXTS)
            case 3:
                del made[at : at + size]
            case 4:
                made[at:at] = made[at : at + size]
            case 5:
                del made[at:]
            case 6:
                other = rng.randint(0, len(made))
                made[at : at + size] = made[other : other + size]
    return bytes(made)


TARGETS: dict[str, Callable[[bytes], None]] = {
    "schema": schema,
    "frozendict": frozen,
    "changes": changed_table,
    "checkpoint": saved,
    "socket": socket,
    "files": channel,
    "queues": queue,
}
