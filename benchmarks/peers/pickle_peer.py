"""Pickle alone: what a pipe, a queue or a manager of multiprocessing does at least, at each end."""

from __future__ import annotations

import pickle

NAME = "pickle alone"
NOTE = "without the way through a pipe, a queue or a manager"


def missing() -> str:
    return ""


class Writer:
    """The value, pickled."""

    def __init__(self, array):
        self.address = pickle.dumps(array, protocol=5)

    def publish(self, array):
        """Pickle the array."""
        pickle.dumps(array, protocol=5)

    def close(self):
        """Do nothing."""


class Reader:
    """The bytes, as they come out of a pipe."""

    def __init__(self, address):
        self._bytes = address

    def read(self):
        """Make the array from its pickle."""
        return pickle.loads(self._bytes)

    def close(self):
        """Do nothing."""
