"""systemd's RemoveIPC removes all of the user's files and directories in /dev/shm while channels are published."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest

import untorn
from helpers import start
from mounts import mount, own_mounts
from untorn.errors import BusyError
from untorn.share import naming

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")

_READ = "import untorn; reader = untorn.subscribe('c'); print(reader.version, reader.snapshot().value)"


def remove_ipc() -> None:
    for entry in os.scandir("/dev/shm"):
        shutil.rmtree(entry.path) if entry.is_dir() else os.unlink(entry.path)


def read_elsewhere() -> str:
    done = subprocess.run([sys.executable, "-c", _READ], capture_output=True, text=True, timeout=60, check=True)
    return done.stdout.strip()


def _end_of_a_session(pipe):
    try:
        own_mounts()
        mount("tmpfs", "/dev/shm")
    except OSError as error:
        pipe.put(f"no /dev/shm of one's own here: {error}")
        return
    pipe.put("")
    naming.LOOK_INTERVAL_S = -1.0  # each version checks the names, at any speed
    with untorn.publish(1, name="c") as publisher:
        reader = untorn.subscribe("c")
        anonymous = untorn.publish("kept")
        for version in (2, 4):
            remove_ipc()
            with pytest.warns(RuntimeWarning, match="RemoveIPC=yes.*New readers find it again.*enable-linger"):
                publisher.update(version)
            publisher.update(version + 1)
            assert read_elsewhere() == f"{version + 1} {version + 1}"
            with pytest.raises(BusyError):
                untorn.publish(1, name="c")
        assert (reader.version, reader.snapshot().value) == (5, 5)
        assert anonymous.subscriber().snapshot().value == "kept"
        anonymous.close()
        publisher.unlink()
    assert os.listdir(f"/dev/shm/untorn-{os.geteuid()}") == []
    pipe.put("done")


def test_a_channel_outlives_the_end_of_a_session():
    with start(_end_of_a_session) as child:
        missing = child.get()
        if missing:
            pytest.skip(missing)
        assert child.get() == "done"
        assert child.join() == 0
