"""gunicorn's stash: tables of keys in one process, reached through a socket; each access is a message."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

NAME = "gunicorn's stash"
NOTE = "each access is a message to another process"
TABLE, KEY = "benchmark", "value"
START_S = 60.0


def missing() -> str:
    there = importlib.util.find_spec("gunicorn") and importlib.util.find_spec("gunicorn.dirty")
    return "" if there else "gunicorn with a stash is not installed (pip install 'gunicorn>=25')"


def _client(socket):
    from gunicorn.dirty.stash import StashClient

    return StashClient(socket)


class Writer:
    """A gunicorn with one dirty worker, which does nothing, and no requests."""

    def __init__(self, array):
        self._folder = Path(tempfile.mkdtemp(prefix="untorn-benchmark-stash-"))
        (self._folder / "idle.py").write_text(
            "from gunicorn.dirty.app import DirtyApp\n"
            "class Idle(DirtyApp):\n"
            "    def __call__(self, action, *args, **kwargs):\n"
            "        return None\n"
            "def web(environ, start_response):\n"
            "    start_response('200 OK', [])\n"
            "    return []\n"
        )
        command = [sys.executable, "-m", "gunicorn", "--bind", f"unix:{self._folder}/web.sock", "--log-level", "error"]
        command += ["--workers", "1", "--dirty-app", "idle:Idle", "--dirty-workers", "1", "--no-control-socket"]
        environment = os.environ | {"TMPDIR": str(self._folder)}
        self._process = subprocess.Popen(
            [*command, "idle:web"], cwd=self._folder, env=environment, stderr=subprocess.DEVNULL
        )
        self._stash = self._connected()
        self.address = self._stash.socket_path
        self.publish(array)

    def _connected(self):
        """Return a client, when gunicorn has opened the socket of its stash, under a name that it chose."""
        until = time.monotonic() + START_S
        while time.monotonic() < until:
            for found in self._folder.glob("gunicorn-dirty-*/*.sock"):
                client = _client(str(found))
                with contextlib.suppress(Exception):
                    client.ensure(TABLE)
                    return client
            time.sleep(0.02)
        self._process.kill()
        raise RuntimeError(f"gunicorn has opened no socket for its stash within {START_S:g} s")

    def publish(self, array):
        """Put the bytes of the array."""
        self._stash.put(TABLE, KEY, array.tobytes())

    def close(self):
        """End gunicorn, and remove its files."""
        self._stash.close()
        self._process.terminate()
        self._process.wait()
        shutil.rmtree(self._folder)


class Reader:
    """A client of the stash, as in a worker of gunicorn."""

    def __init__(self, address):
        self._stash = _client(address)

    def read(self):
        """Return a copy of the newest value."""
        return np.frombuffer(self._stash.get(TABLE, KEY), np.uint8)

    def close(self):
        """Release all resources."""
        self._stash.close()
