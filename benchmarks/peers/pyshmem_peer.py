"""pyshmem: a stream of one array in shared memory, of a fixed shape; a read copies it."""

from __future__ import annotations

import importlib.util
import os
import uuid

import numpy as np

NAME = "pyshmem"
NOTE = "a read is a copy"


def missing() -> str:
    return "" if importlib.util.find_spec("pyshmem") else "pyshmem is not installed (pip install pyshmem)"


class Writer:
    """A stream under a name of its own."""

    def __init__(self, array):
        import pyshmem

        self.address = f"untorn-benchmark-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        self._stream = pyshmem.create(self.address, shape=array.shape, dtype=array.dtype)
        self.publish(array)

    def publish(self, array):
        """Publish the next version, copied from the array."""
        self._stream.write(array)

    def close(self):
        """Release all resources."""
        self._stream.unlink()


class Reader:
    """A reader of the newest value."""

    def __init__(self, address):
        import pyshmem

        self._stream = pyshmem.open(address)

    def read(self):
        """Return a copy of the newest version."""
        return np.asarray(self._stream.read())

    def close(self):
        """Release all resources."""
        self._stream.close()
