"""A worker that the kernel kills for lack of memory is distinguished from one that is killed otherwise."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import numpy as np
import pytest

from untorn import SGD, Trainer, WorkerError
from untorn.engines.memory import OutOfMemory

LIMIT = 1 << 30


@pytest.mark.parametrize("text", ["oom 3\noom_kill 2\n", "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n"])
def test_the_count_of_kills_rises(tmp_path, text):
    counter, missing = tmp_path / "counter", tmp_path / "missing"
    counter.write_text(text)
    memory = OutOfMemory([missing, counter])
    assert not memory.killed_since_last_check()
    counter.write_text(text.replace("oom_kill 2", "oom_kill 3"))
    assert memory.killed_since_last_check()
    assert not memory.killed_since_last_check()


def hungry(params, batch):
    """A model that needs more memory than there is for the example 77."""
    if 77 in batch:
        np.ones(4 * LIMIT, np.uint8)
    return 0.0, {"w": np.zeros(1)}


@pytest.fixture
def little_memory():
    """Put this process into a control group with a limit until the test ends; skip the test if that is not
    possible."""
    v1, v2 = Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")
    root, limit = (v1, "memory.limit_in_bytes") if v1.is_dir() else (v2, "memory.max")
    before = next(
        (line.split(":", 2)[2] for line in Path("/proc/self/cgroup").read_text().splitlines()
         if (":memory:" in line if root == v1 else line.startswith("0::"))), "/"
    )  # fmt: skip
    group = root / f"untorn-test-{os.getpid()}"
    try:
        group.mkdir()
        try:
            (group / limit).write_text(str(LIMIT))
            with contextlib.suppress(OSError):
                (group / "memory.swap.max").write_text("0")
            (group / "cgroup.procs").write_text(str(os.getpid()))
        except OSError:
            group.rmdir()
            raise
    except OSError as error:
        pytest.skip(f"no control group can be made here ({error})")
    yield
    for pid in (group / "cgroup.procs").read_text().split():  # multiprocessing's resource tracker stays too
        (root / before.strip("/") / "cgroup.procs").write_text(pid)
    group.rmdir()


def test_a_worker_killed_for_want_of_memory_is_named(little_memory):
    data = np.arange(100)
    with Trainer(hungry, {"w": np.zeros(1)}, optimizer=SGD(0.1), workers=1, shards=1, max_restarts=1) as trainer:
        with pytest.raises(WorkerError, match=r"was killed by the kernel because memory ran out; use fewer workers"):
            trainer.fit(data, epochs=1, batch_size=10)
        assert trainer.snapshot().version <= 10


def test_one_killed_by_somebody_is_not(rng):
    from test_train_kills import kills_itself, line_trainer, marked

    with line_trainer(kills_itself, max_restarts=1) as trainer, pytest.raises(WorkerError) as caught:
        trainer.fit(marked(7), epochs=1, batch_size=12)
    assert "was killed by SIGKILL, and not by the kernel for lack of memory" in str(caught.value)
