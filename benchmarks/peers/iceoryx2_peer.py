"""iceoryx2: a publish-subscribe service with a slice of bytes; loan, copy, send, receive."""

from __future__ import annotations

import ctypes
import os

import numpy as np

try:
    import iceoryx2 as iox2
except ImportError:
    iox2 = None

NAME = "iceoryx2"
NOTE = "unchanged is 'nothing received': the reader keeps its last sample"

_opened = 0


def missing() -> str:
    return "" if iox2 is not None else "iceoryx2 is not installed (pip install iceoryx2==0.10.*)"


def _service(node, name):
    return (
        node.service_builder(iox2.ServiceName.new(name))
        .publish_subscribe(iox2.Slice[ctypes.c_uint8])
        .history_size(1)
        .subscriber_max_buffer_size(1)
        .subscriber_max_borrowed_samples(2)
        .enable_safe_overflow(True)
        .open_or_create()
    )


def _node():
    iox2.set_log_level(iox2.LogLevel.Error)
    return iox2.NodeBuilder.new().create(iox2.ServiceType.Ipc)


class Writer:
    """A publisher that remembers its last sample for readers that come later."""

    def __init__(self, array):
        global _opened  # noqa: PLW0603 - a service's name must be new each time
        _opened += 1
        self.address = f"untorn-benchmark-{os.getpid()}-{_opened}"
        self._node = _node()
        self._service = _service(self._node, self.address)
        self._publisher = self._service.publisher_builder().initial_max_slice_len(array.nbytes).create()
        self.publish(array)

    def publish(self, array):
        """Publish the next version, copied from the array."""
        loan = self._publisher.loan_slice_uninit(array.nbytes)
        ctypes.memmove(loan.payload_ptr, array.ctypes.data, array.nbytes)
        loan.assume_init().send()

    def close(self):
        """Let go of everything."""
        self._publisher.delete()
        del self._service, self._node


class Reader:
    """The newest sample, kept until there is a newer one."""

    def __init__(self, address):
        self._node = _node()
        self._service = _service(self._node, address)
        self._subscriber = self._service.subscriber_builder().create()
        self._sample = None
        self._array = None

    def read(self):
        """Return the newest version as an array that copies nothing."""
        sample = self._subscriber.receive()
        if sample is not None:
            self._array = np.frombuffer(sample.payload().as_memory_view(), np.uint8)
            self._sample = sample  # and the one before goes back to the publisher
        return self._array

    def close(self):
        """Let go of everything."""
        self._sample = None
        self._subscriber.delete()
        del self._service, self._node
