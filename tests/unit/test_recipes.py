"""What the pages of recipes give away beside programs: fixtures of pytest, units of systemd, a container's files."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
SENSOR = [sys.executable, "-u", str(EXAMPLES / "sensor.py")]
WATCHDOG_S = 120


@contextlib.contextmanager
def running(*command, **options):
    """Start a program; give it; kill it at the end."""
    process = subprocess.Popen(
        list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate(timeout=WATCHDOG_S)


def number_of(line):
    """The number of a whole reading."""
    return int(re.fullmatch(r"reading (\d+): whole, version \d+, from process \d+\n", line)[1])


def read_beyond(reader, number):
    """Read lines until one shows a later reading than this."""
    return next(found for line in reader.stdout if (found := number_of(line)) > number)


def test_two_terminals_go_on_when_either_program_is_killed(tmp_path, name):
    common = ["--directory", tmp_path, "--name", name, "--interval", "0.005"]
    with running(*SENSOR, "read", *common) as reader:  # before there is a publisher
        with running(*SENSOR, "publish", *common) as publisher:
            seen = read_beyond(reader, 2)
            publisher.send_signal(signal.SIGKILL)
            publisher.wait()
        last = seen
        with running(*SENSOR, "publish", *common, "--count", "100000"):
            last = read_beyond(reader, seen + 50)
            reader.send_signal(signal.SIGKILL)
            reader.wait()
            with running(*SENSOR, "read", *common) as late:
                assert read_beyond(late, last) > last


def namespaces(*options):
    """The command that runs another one as a container does: alone in its process table, with its own /dev/shm."""
    private = 'mount -t tmpfs tmpfs /dev/shm && exec "$@"'
    return ["unshare", "--fork", "--kill-child", "--pid", "--mount", "--ipc", "--mount-proc", *options,
            "sh", "-c", private, "sh"]  # fmt: skip


def command_of(service):
    """What compose.yaml tells a service to run."""
    text = (EXAMPLES / "containers" / "compose.yaml").read_text()
    return re.search(rf"^  {service}:\n(?:    .*\n)*?    command: (.+)$", text, re.MULTILINE)[1].split()


def test_containers_share_a_directory_and_nothing_else(tmp_path):
    container = namespaces(*([] if os.geteuid() == 0 else ["--user", "--map-root-user"]))
    if subprocess.run([*container, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this machine lets nobody make name spaces")
    publish, read = (
        [part.replace("/channels", str(tmp_path)) for part in command_of(s)] for s in ("publisher", "reader")
    )
    assert publish[0] == "publish"
    assert str(tmp_path) in publish
    with running(*container, *SENSOR, *read) as reader:
        with running(*container, *SENSOR, *publish, "--interval", "0.005"):
            seen = read_beyond(reader, 2)
        with running(*container, *SENSOR, *publish, "--interval", "0.005"):
            assert read_beyond(reader, seen + 3) > seen


def test_the_container_copies_what_is_there():
    text = (EXAMPLES / "containers" / "Dockerfile").read_text()
    copied = re.findall(r"^COPY (?!--from)(\S+) ", text, re.MULTILINE)
    assert copied == [".", "examples/sensor.py"]
    assert all((ROOT / path).exists() for path in copied)
    assert "RUN pip wheel" in text


def test_systemd_understands_every_line_of_the_units(tmp_path):
    if not shutil.which("systemd-analyze"):
        pytest.skip("systemd-analyze is not installed")
    units = []
    for unit in sorted((EXAMPLES / "systemd").glob("*.service")):
        text = unit.read_text()
        assert "ExecStart=/opt/sensor/bin/python /opt/sensor/sensor.py " in text
        (tmp_path / unit.name).write_text(text.replace("/opt/sensor/bin/python", "/usr/bin/env"))  # it must be there
        units.append(tmp_path / unit.name)
    assert len(units) == 2
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *units],
        capture_output=True,
        text=True,
        timeout=WATCHDOG_S,
        check=False,
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_the_fixtures_of_pytest_work_and_leave_nothing():
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "error", EXAMPLES / "testing"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=WATCHDOG_S, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "4 passed" in done.stdout


MIGRATIONS = EXAMPLES / "migrations"
#: the halves that are run, and the packages that they need; a Ray cluster, and processes that import torch, take longer
QUICK = {
    "from_array": ("both", []),
    "from_manager": ("both", []),
    "from_shared_memory": ("both", []),
    "from_joblib_memmap": ("both", ["joblib"]),
    "from_lmdb": ("both", ["lmdb"]),
    "from_keras": ("after", ["torch"]),
    "from_torchrl": ("after", ["torch"]),
}
SLOW = {"from_ddp": ("both", ["torch"]), "from_ray": ("both", ["ray"])}


def test_each_program_of_migrations_is_run_here():
    assert {path.stem for path in MIGRATIONS.glob("*.py")} == QUICK.keys() | SLOW.keys()


@pytest.mark.parametrize("program", [*QUICK, *(pytest.param(program, marks=pytest.mark.soak) for program in SLOW)])
def test_both_halves_of_a_migration_print_the_same(program):
    half, packages = (QUICK | SLOW)[program]
    for package in packages:
        pytest.importorskip(package, reason=f"{package} is not installed: pip install 'untorn[test]'")
    command = [sys.executable, MIGRATIONS / f"{program}.py", *([] if half == "both" else [half])]
    done = subprocess.run(command, capture_output=True, text=True, timeout=2 * WATCHDOG_S, check=False)
    assert done.returncode == 0, done.stderr
    found = dict(line.split(": ", 1) for line in done.stdout.splitlines() if line.startswith(("before", "after")))
    assert found.keys() == ({"before", "after"} if half == "both" else {half}), done.stdout
    assert len(set(found.values())) == 1
    assert found["after"] == RESULTS[program]


#: what both halves compute
RESULTS = {
    "from_array": "[100.0, 200.0, 300.0]",
    "from_manager": "([0, 1, 2, 3], [5, 15, 25, 35])",
    "from_shared_memory": "100000.0",
    "from_joblib_memmap": "([499500.0, 1499500.0, 2499500.0, 3499500.0], [1000.0, 1000.0, 1000.0, 1000.0])",
    "from_lmdb": "[49, 998001, None]",
    "from_ray": "[[6.0, 6.0], [12.0, 12.0]]",
    "from_ddp": "[[0.9900000095367432, -1.9800000190734863, 2.990000009536743]]",
    "from_keras": "([0.9700000286102295, -1.9700000286102295, 2.950000047683716], 0.004)",
    "from_torchrl": "[3.0, 6.0]",
}
