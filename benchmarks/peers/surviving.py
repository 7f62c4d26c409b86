"""Seven ways to share a NumPy array between processes, each as its documentation shows it, for survival.py.

A peer's ``create`` runs once, before the first fork; ``writer`` and ``reader`` run in the process that writes or reads.
A reader's ``read`` returns the newest value, as a view if the library has views, otherwise as a copy.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import struct
import time
from multiprocessing import resource_tracker, shared_memory
from pathlib import Path
from typing import Any

import numpy as np

SIZE = 20_000  # int64: 160 KB, so that a good part of a writer's time goes into copying
NBYTES = 8 * SIZE


class Lost(Exception):
    """There is no value to read."""


class Peer:
    """One library, with the result of ``create``."""

    name = ""
    note = ""

    @classmethod
    def load(cls) -> None:
        """Import the library once, before all forks."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def create(self) -> None:
        """Create the channel; called before the first fork."""

    def remove(self) -> None:
        """Remove the files of the channel that do not have the folder's name."""

    def footprint(self) -> int:
        """Return the size of its files, in memory or on the disk."""
        found = [*self.folder.rglob("*"), *Path("/dev/shm").glob(f"*{self.folder.name}*/**/*")]
        found += Path("/dev/shm").glob(f"*{self.folder.name}*")
        return sum(path.stat().st_blocks * 512 for path in {p for p in found if p.is_file()})


class Untorn(Peer):
    """A named channel in a directory."""

    name = "untorn"
    note = "a named channel"

    @classmethod
    def load(cls) -> None:
        import untorn  # noqa: F401

    def writer(self) -> Any:
        import untorn

        peer = self

        class Writer:
            def __init__(self) -> None:
                self._publisher: Any = None

            def write(self, array: Any) -> None:
                if self._publisher is None:
                    self._publisher = untorn.publish(array, name="c", directory=peer.folder)
                else:
                    self._publisher.update(array)

        return Writer()

    def reader(self) -> Any:
        import untorn

        subscriber = untorn.subscribe(self.folder / "c")

        class Reader:
            def read(self) -> Any:
                return subscriber.snapshot().value

        return Reader()


class Lmdb(Peer):
    """An environment with one key."""

    name = "LMDB"
    note = "one key, default options; reads are transactions with buffers, of which the last stays open"

    @classmethod
    def load(cls) -> None:
        import lmdb  # noqa: F401

    def create(self) -> None:
        self._opened: dict[int, Any] = {}

    def _open(self) -> Any:
        """Return the environment of this process, which may open it only once."""
        import lmdb

        if os.getpid() not in self._opened:
            place = str(self.folder / "db")
            self._opened[os.getpid()] = lmdb.open(place, map_size=256 << 20)
        return self._opened[os.getpid()]

    def writer(self) -> Any:
        environment = self._open()

        class Writer:
            def write(self, array: Any) -> None:
                with environment.begin(write=True) as transaction:
                    transaction.put(b"value", array.data)

        return Writer()

    def reader(self) -> Any:
        environment = self._open()

        class Reader:
            def __init__(self) -> None:
                self._open: Any = None

            def read(self) -> Any:
                if self._open is not None:
                    self._open.abort()
                self._open = environment.begin(buffers=True)
                found = self._open.get(b"value")
                if found is None:
                    raise Lost
                return np.frombuffer(found, "i8")

            def release(self) -> None:
                if self._open is not None:
                    self._open.abort()
                self._open = None

        return Reader()


class Iceoryx2(Peer):
    """A publish-subscribe service, as in iceoryx2_peer.py."""

    name = "iceoryx2"
    note = "a publish-subscribe service with a history of one; the last sample is held"

    @classmethod
    def load(cls) -> None:
        import iceoryx2  # noqa: F401

    def _service(self) -> Any:
        import iceoryx2 as iox2

        iox2.set_log_level(iox2.LogLevel.Fatal)
        config = iox2.config.default()
        config.global_cfg.root_path = iox2.Path.new(str(self.folder))
        config.global_cfg.prefix = iox2.FileName.new(self.folder.name)
        node = iox2.NodeBuilder.new().config(config).create(iox2.ServiceType.Ipc)
        return node, (
            node.service_builder(iox2.ServiceName.new("c"))
            .publish_subscribe(iox2.Slice[ctypes.c_uint8])
            .history_size(1)
            .subscriber_max_buffer_size(1)
            .subscriber_max_borrowed_samples(2)
            .enable_safe_overflow(True)
            .open_or_create()
        )

    def writer(self) -> Any:
        node, service = self._service()
        publisher = service.publisher_builder().initial_max_slice_len(NBYTES).create()

        class Writer:
            kept = node, service

            def write(self, array: Any) -> None:
                loan = publisher.loan_slice_uninit(NBYTES)
                ctypes.memmove(loan.payload_ptr, array.ctypes.data, NBYTES)
                loan.assume_init().send()

        return Writer()

    def reader(self) -> Any:
        node, service = self._service()
        subscriber = service.subscriber_builder().create()

        class Reader:
            kept = node, service

            def __init__(self) -> None:
                self._sample: Any = None
                self._array: Any = None

            def read(self) -> Any:
                sample = subscriber.receive()
                if sample is not None:
                    self._array = np.frombuffer(sample.payload().as_memory_view(), "i8")
                    self._sample = sample
                if self._array is None:
                    raise Lost
                return self._array

        return Reader()


class LockedArray(Peer):
    """An array with its own lock."""

    name = "multiprocessing.Array"
    note = "with its lock, held while the array is copied in or out"

    def create(self) -> None:
        self._array = multiprocessing.get_context("fork").Array("q", SIZE)

    def writer(self) -> Any:
        shared = self._array

        class Writer:
            def write(self, array: Any) -> None:
                with shared.get_lock():
                    np.frombuffer(shared.get_obj(), "i8")[:] = array

        return Writer()

    def reader(self) -> Any:
        shared = self._array

        class Reader:
            def read(self) -> Any:
                with shared.get_lock():
                    return np.frombuffer(shared.get_obj(), "i8").copy()

        return Reader()


class TorchShared(Peer):
    """A tensor in shared memory, without any lock."""

    name = "torch, share_memory_()"
    note = "written in place with copy_, read with clone"

    @classmethod
    def load(cls) -> None:
        import torch

        torch.set_num_threads(1)

    def create(self) -> None:
        import torch

        self._tensor = torch.zeros(SIZE, dtype=torch.int64).share_memory_()

    def writer(self) -> Any:
        import torch

        tensor = self._tensor

        class Writer:
            def write(self, array: Any) -> None:
                tensor.copy_(torch.from_numpy(array))

        return Writer()

    def reader(self) -> Any:
        tensor = self._tensor

        class Reader:
            def read(self) -> Any:
                return tensor.clone().numpy()

        return Reader()


class Seqlock(Peer):
    """A sequence number, followed by the data."""

    name = "shared_memory with a seqlock"
    note = "the usual few lines: odd while it is written; a reader tries again until it is even and the same"

    def create(self) -> None:
        self._memory = shared_memory.SharedMemory(create=True, size=64 + NBYTES, name=f"seqlock-{self.folder.name}")
        resource_tracker.unregister(self._memory._name, "shared_memory")  # noqa: SLF001 (survival.py removes it)

    def _views(self) -> tuple[Any, Any]:
        return self._memory.buf, np.frombuffer(self._memory.buf, "i8", SIZE, 64)

    def writer(self) -> Any:
        sequence, data = self._views()

        class Writer:
            def write(self, array: Any) -> None:
                (before,) = struct.unpack_from("q", sequence)
                struct.pack_into("q", sequence, 0, before + 1)
                data[:] = array
                struct.pack_into("q", sequence, 0, before + 2)

        return Writer()

    def reader(self) -> Any:
        sequence, data = self._views()

        class Reader:
            def read(self) -> Any:
                while True:
                    (before,) = struct.unpack_from("q", sequence)
                    copy = data.copy()
                    if before % 2 == 0 and struct.unpack_from("q", sequence) == (before,):
                        return copy
                    time.sleep(0)

        return Reader()


class Pyshmem(Peer):
    """A stream."""

    name = "pyshmem"
    note = "a stream; `write` and `read`, which copies"

    @classmethod
    def load(cls) -> None:
        import pyshmem  # noqa: F401

    def create(self) -> None:
        import pyshmem

        pyshmem.create(self.folder.name, shape=(SIZE,), dtype=np.int64).close()

    def remove(self) -> None:
        import pyshmem

        pyshmem.unlink_quiet(self.folder.name)

    def _open(self) -> Any:
        import pyshmem

        return pyshmem.open(self.folder.name)

    def writer(self) -> Any:
        return self._open()

    def reader(self) -> Any:
        import pyshmem

        stream = self._open()

        class Reader:
            def read(self) -> Any:
                try:
                    return stream.read()
                except pyshmem.InconsistentStreamError as error:
                    raise Lost(str(error)) from None

        return Reader()


#: with the packages whose versions are shown
PEERS: dict[str, tuple[type[Peer], str]] = {
    "untorn": (Untorn, "untorn"),
    "lmdb": (Lmdb, "lmdb"),
    "iceoryx2": (Iceoryx2, "iceoryx2"),
    "array": (LockedArray, ""),
    "torch": (TorchShared, "torch"),
    "seqlock": (Seqlock, ""),
    "pyshmem": (Pyshmem, "pyshmem"),
}
