"""LMDB on tmpfs: one key, read in a transaction with zero-copy buffers."""

from __future__ import annotations

import shutil
import tempfile

import numpy as np

try:
    import lmdb
except ImportError:
    lmdb = None

NAME = "LMDB"
NOTE = "in /dev/shm, sync=False; a buffer is valid until its transaction ends"
KEY = b"value"


def missing() -> str:
    return "" if lmdb is not None else "LMDB is not installed (pip install lmdb)"


class Writer:
    """An environment in a temporary directory on tmpfs, without syncing and without readahead."""

    def __init__(self, array):
        self.address = tempfile.mkdtemp(prefix="untorn-benchmark-lmdb-", dir="/dev/shm")
        nbytes = max(64 << 20, 8 * array.nbytes)
        self._environment = lmdb.open(
            self.address,
            map_size=nbytes,
            sync=False,
            metasync=False,
            writemap=True,
            readahead=False,
            meminit=False,
        )
        self.publish(array)

    def publish(self, array):
        """Publish the next version, copied from the array."""
        with self._environment.begin(write=True) as transaction:
            transaction.put(KEY, array.data)

    def close(self):
        """Release all resources."""
        self._environment.close()
        shutil.rmtree(self.address)


class Reader:
    """A reader whose last transaction stays open until the next read, like a held snapshot."""

    def __init__(self, address):
        self._environment = lmdb.open(address, readonly=True, lock=True, readahead=False, map_size=0)
        self._transaction = None

    def read(self):
        """Return the newest version as an array, without a copy."""
        if self._transaction is not None:
            self._transaction.abort()
        self._transaction = self._environment.begin(buffers=True)
        return np.frombuffer(self._transaction.get(KEY), np.uint8)

    def close(self):
        """Release all resources."""
        if self._transaction is not None:
            self._transaction.abort()
        self._environment.close()
