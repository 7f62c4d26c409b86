"""``untorn train digits`` as people type it: it learns, and its result does not depend on the workers."""

import os
import subprocess
import sys

import pytest

import helpers
import untorn

pytest.importorskip("sklearn", reason="the digits recipe takes its data from scikit-learn")


def command(*arguments: str, **options) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "untorn.cli", "train", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONWARNINGS": "error"},
        **options,
    )


def result_of(*arguments: str) -> dict[str, str]:
    """Return its output on stdout: values by key."""
    with command(*arguments) as running:
        output, errors = running.communicate()
    assert running.returncode == 0, errors
    return parsed(output)


def parsed(output: str) -> dict[str, str]:
    """Key and value of each line, whatever the space between them."""
    return {key: value.strip() for key, _, value in (line.partition("  ") for line in output.splitlines())}


@pytest.fixture(scope="module")
def serial_sha256() -> str:
    return result_of("digits", "--shards", "4", "--epochs", "3", "--engine", "serial")["sha256"]


def test_digits_are_learned_drawn_and_followed(tmp_path, name):
    """The whole command of the demonstration, with another process (this one) following the weights."""
    plot = tmp_path / "curve.png"
    with command("digits", "--workers", "2", "--plot", str(plot), "--name", name) as running:
        with untorn.subscribe(name, timeout_s=helpers.WATCHDOG_S) as weights:
            versions = [weights.snapshot(timeout_s=helpers.WATCHDOG_S).version]
            for _ in range(10):
                with weights.snapshot(newer_than=versions[-1], timeout_s=helpers.WATCHDOG_S) as snapshot:
                    assert {key: leaf.dtype.name for key, leaf in snapshot.value.items()}["w0"] == "float32"
                    versions.append(snapshot.version)
        output, errors = running.communicate()
    assert running.returncode == 0, errors
    result = parsed(output)
    assert float(result["test accuracy"]) >= 0.97
    assert len(result["sha256"]) == 64
    assert float(result["examples/s"].replace(",", "")) > 0
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert versions == sorted(set(versions))
    with pytest.raises(untorn.ChannelNotFoundError):
        untorn.subscribe(name)


@pytest.mark.parametrize("workers", [1, 3])
def test_the_result_does_not_depend_on_the_workers(workers, serial_sha256):
    result = result_of("digits", "--shards", "4", "--epochs", "3", "--workers", str(workers))
    assert result["sha256"] == serial_sha256
