"""iceoryx2: a publish-subscribe service with a slice of bytes; loan, copy, send, receive.

Each writer has its own directory, which is its address, and a prefix for its files in /dev/shm: iceoryx2 leaves the
register of its nodes there for later programs.
"""

from __future__ import annotations

import ctypes
import shutil
import tempfile
from pathlib import Path

import numpy as np

try:
    import iceoryx2 as iox2
except ImportError:
    iox2 = None

NAME = "iceoryx2"
NOTE = "unchanged is 'nothing received': the reader keeps its last sample"


def missing() -> str:
    return "" if iox2 is not None else "iceoryx2 is not installed (pip install iceoryx2==0.10.*)"


def _service(node, directory):
    return (
        node.service_builder(iox2.ServiceName.new(Path(directory).name))
        .publish_subscribe(iox2.Slice[ctypes.c_uint8])
        .history_size(1)
        .subscriber_max_buffer_size(1)
        .subscriber_max_borrowed_samples(2)
        .enable_safe_overflow(True)
        .open_or_create()
    )


def _node(directory):
    iox2.set_log_level(iox2.LogLevel.Error)
    config = iox2.config.default()
    config.global_cfg.root_path = iox2.Path.new(directory)
    config.global_cfg.prefix = iox2.FileName.new(Path(directory).name)
    return iox2.NodeBuilder.new().config(config).create(iox2.ServiceType.Ipc)


def _remove(directory):
    shutil.rmtree(directory)
    for file in Path("/dev/shm").glob(f"{Path(directory).name}*"):
        file.unlink()


class Events:
    """One end of a pair of events: it wakes the other end, and waits for it.

    Args:
        address: of the other end; None for the first one, which removes everything in the end.
    """

    def __init__(self, address=None):
        self._is_first = address is None
        self.address = tempfile.mkdtemp(prefix="untorn-iceoryx2-") if address is None else address
        self._node = _node(self.address)
        there, back = (
            self._node.service_builder(iox2.ServiceName.new(name)).event().open_or_create()
            for name in ("there", "back")
        )
        self._notifier = (there if self._is_first else back).notifier_builder().create()
        self._listener = (back if self._is_first else there).listener_builder().create()

    def wake(self):
        """Wake the other end."""
        self._notifier.notify()

    def wait(self):
        """Block until the other end wakes this one."""
        self._listener.blocking_wait()

    def close(self):
        """Release all resources."""
        self._notifier.delete()
        self._listener.delete()
        del self._node
        if self._is_first:
            _remove(self.address)


class Writer:
    """A publisher that keeps its last sample for later readers."""

    def __init__(self, array):
        self.address = tempfile.mkdtemp(prefix="untorn-iceoryx2-")
        self._node = _node(self.address)
        self._service = _service(self._node, self.address)
        self._publisher = self._service.publisher_builder().initial_max_slice_len(array.nbytes).create()
        self.publish(array)

    def publish(self, array):
        """Publish the next version, copied from the array."""
        loan = self._publisher.loan_slice_uninit(array.nbytes)
        ctypes.memmove(loan.payload_ptr, array.ctypes.data, array.nbytes)
        loan.assume_init().send()

    def close(self):
        """Release all resources."""
        self._publisher.delete()
        del self._service, self._node
        _remove(self.address)


class Reader:
    """A reader that keeps the newest sample until there is a newer one."""

    def __init__(self, address):
        self._node = _node(address)
        self._service = _service(self._node, address)
        self._subscriber = self._service.subscriber_builder().create()
        self._sample = None
        self._array = None

    def read(self):
        """Return the newest version as an array, without a copy."""
        sample = self._subscriber.receive()
        if sample is not None:
            self._array = np.frombuffer(sample.payload().as_memory_view(), np.uint8)
            self._sample = sample  # and the sample before goes back to the publisher
        return self._array

    def close(self):
        """Release all resources."""
        self._sample = None
        self._subscriber.delete()
        del self._service, self._node
