"""untorn behind the interface of peers/__init__.py."""

from __future__ import annotations

import untorn

NAME = "untorn"
NOTE = ""


def missing() -> str:
    return ""


class Writer:
    """An anonymous channel."""

    def __init__(self, array):
        self._publisher = untorn.publish(array)
        self.address = self._publisher.subscriber()

    def publish(self, array):
        """Publish the next version, copied from the array."""
        self._publisher.update(array)

    def close(self):
        """Release all resources."""
        self._publisher.close()


class Reader:
    """A reader that releases each snapshot when it has the next one, as in a loop over versions."""

    def __init__(self, address):
        self.subscriber = untorn.subscribe(address)

    def read(self):
        """Return the newest version as an array, without a copy."""
        return self.subscriber.snapshot().value

    def close(self):
        """Release all resources."""
        self.subscriber.close()
