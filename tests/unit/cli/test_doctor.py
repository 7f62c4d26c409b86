"""``untorn doctor``: its output for other machines, and for this one."""

from __future__ import annotations

import errno
import json
import os
import re

import pytest

pytest.importorskip("click")
pytest.importorskip("rich")
from click.testing import CliRunner, Result

import untorn
from untorn.cli import checks, listing, probes
from untorn.cli import doctor as doctor_module
from untorn.cli.checks import CHECKS, Check, Machine, problem
from untorn.cli.group import group

GB = 10**9
FILES = {
    "/proc/mounts": "proc /proc proc rw 0 0\ntmpfs /dev tmpfs rw 0 0\ntmpfs /dev/shm tmpfs rw,nosuid 0 0\n",
    "/proc/meminfo": "MemTotal:  16000000 kB\nMemAvailable:  8000000 kB\nSwapTotal: 0 kB\n",
    "/proc/self/cgroup": "0::/\n",
    "/proc/cpuinfo": "processor : 0\nprocessor : 1\nprocessor : 2\nprocessor : 3\n",
    "/proc/sys/kernel/osrelease": "6.1.0\n",
    "/proc/sys/vm/max_map_count": "65530\n",
    "/proc/sys/vm/overcommit_memory": "0\n",
    "/sys/kernel/mm/transparent_hugepage/shmem_enabled": "always [never] force\n",
}
SPACE = (8 * GB, 7 * GB)


def machine(files: dict[str, str | None] | None = None, **options) -> Machine:
    """A sound machine, but for these files."""
    texts = FILES | (files or {})
    given = {"space": lambda _: SPACE, "affinity": 4, "open_files": 1024, "environment": {}} | options
    links = {"/proc/self/ns/pid": options.get("namespace", "pid:[4026531836]")}
    given.pop("namespace", None)
    return Machine(read=texts.get, link=links.get, **given)


def by_name(given: Machine) -> dict[str, Check]:
    return {check.name: check for each in CHECKS for check in each(given)}


def run(*args: object) -> Result:
    return CliRunner().invoke(group, ["doctor", *map(str, args)])


def test_a_sound_machine_is_all_ok():
    found = by_name(machine())
    assert {check.status for check in found.values()} == {"ok"}
    assert found["/dev/shm"].found == "7.0 GB free of 8.0 GB (tmpfs, rw,nosuid)"
    assert found["memory"].found.startswith("8.2 GB available of 16.4 GB, 0 B swap")
    assert found["huge pages"].found.endswith("never")
    assert found["processors"].found.startswith("4 online, 4 in this process's affinity mask")


@pytest.mark.parametrize(
    ("name", "status", "files", "options", "words"),
    [
        ("/dev/shm", "note", {}, {"space": lambda _: (64 << 20, 64 << 20)}, "--shm-size"),
        ("/dev/shm", "note", {}, {"space": lambda _: (8 * GB, GB // 2)}, "untorn gc"),
        ("/dev/shm", "problem", {"/proc/mounts": "tmpfs /dev tmpfs rw 0 0\n"}, {}, "mount it"),
        ("/dev/shm", "problem", {"/proc/mounts": "tmpfs /dev/shm tmpfs ro 0 0\n"}, {}, "writable"),
        ("/dev/shm", "problem", {"/proc/mounts": None}, {}, "mount it"),
        ("memory", "note", {"/sys/fs/cgroup/memory.max": "2000000000\n"}, {}, "count towards it"),
        (
            "memory",
            "note",
            {
                "/proc/self/cgroup": "4:memory:/docker/x\n",
                "/sys/fs/cgroup/memory/docker/x/memory.limit_in_bytes": "1000000000\n",
            },
            {},
            "count towards it",
        ),
        ("overcommit", "note", {"/proc/sys/vm/overcommit_memory": "2\n"}, {}, "overcommit_ratio"),
        ("open files", "note", {}, {"open_files": 128}, "ulimit -n"),
        ("mappings", "note", {"/proc/sys/vm/max_map_count": "1000\n"}, {}, "max_map_count"),
        ("processors", "note", {"/sys/fs/cgroup/cpu.max": "150000 100000\n"}, {}, "workers=2"),
        (
            "processors",
            "note",
            {
                "/proc/self/cgroup": "3:cpu,cpuacct:/x\n",
                "/sys/fs/cgroup/cpu,cpuacct/x/cpu.cfs_quota_us": "50000\n",
                "/sys/fs/cgroup/cpu,cpuacct/x/cpu.cfs_period_us": "100000\n",
            },
            {},
            "workers=1",
        ),
        ("BLAS threads", "note", {}, {"environment": {"OMP_NUM_THREADS": "8"}}, "threads_per_worker"),
        ("pid namespace", "note", {}, {"namespace": "pid:[123]"}, "anonymous channels"),
    ],
)
def test_findings_come_with_advice(name, status, files, options, words):
    found = by_name(machine(files, **options))
    assert (found[name].status, words in found[name].advice) == (status, True), found[name]
    assert {check.name for check in found.values() if check.status != "ok"} == {name}


@pytest.mark.parametrize(
    "files",
    [
        {"/sys/fs/cgroup/cpu.max": "max 100000\n", "/sys/fs/cgroup/memory.max": "max\n"},
        {"/sys/fs/cgroup/cpu.max": "800000 100000\n"},
        {"/proc/self/cgroup": "4:memory:/x\n", "/sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712"},
        {"/proc/sys/kernel/yama/ptrace_scope": "1\n"},
        {path: None for path in FILES if path != "/proc/mounts"},
        {path: "\0garbage" for path in FILES if path != "/proc/mounts"},
    ],
)
def test_no_limits_and_unreadable_files_are_no_findings(files):
    assert {check.status for check in by_name(machine(files)).values()} == {"ok"}


def test_one_blas_thread_is_fine():
    assert by_name(machine(environment={"OMP_NUM_THREADS": "1"}))["BLAS threads"].status == "ok"


def test_a_blank_in_a_mount_point():
    given = machine({"/proc/mounts": "x / ext4 rw 0 0\ny /a\\040b xfs rw 0 0\n"})
    assert given.mount("/a b/c") == ("/a b", "xfs", "rw")
    assert given.mount("/a bc") == ("/", "ext4", "rw")


# -- this machine


def test_this_machine():
    """Every feature works on a machine that runs the tests; the notes may differ."""
    result = run("--json")
    document = json.loads(result.stdout)
    assert document["problems"] == 0, result.stdout
    assert result.exit_code == 0
    assert [list(check) for check in document["checks"]] == [["name", "status", "found", "advice"]] * len(
        document["checks"]
    )
    names = {check["name"] for check in document["checks"]}
    assert {"memfd_create", "OFD locks", "futex", "anonymous channel", "files in /dev/shm", "/dev/shm"} <= names
    assert all(bool(check["advice"]) == (check["status"] != "ok") for check in document["checks"])


def test_for_people(tmp_path):
    result = run("--directory", tmp_path)
    assert result.exit_code == 0, result.output
    assert re.search(r"^ok +OFD locks +works", result.stdout, re.MULTILINE)
    assert f"files in {tmp_path}" in result.stdout
    assert re.fullmatch(r"0 problems, \d+ notes?", result.stdout.splitlines()[-1])
    assert os.listdir(tmp_path) == []


def test_a_problem_is_exit_status_1(monkeypatch):
    monkeypatch.setattr(doctor_module, "examine", lambda *_: [problem("x", "is broken", "mend it")])
    result = run()
    assert result.exit_code == 1
    assert result.stdout == "problem  x  is broken\n            -> mend it\n\n1 problem, 0 notes\n"
    assert json.loads(run("--json").stdout)["problems"] == 1
    assert result.stderr == ""


def test_directories_that_will_not_do(tmp_path):
    for path in ("/proc", str(tmp_path / "none")):
        (check,) = probes.directory(machine(), path)
        assert (check.status, "no channel can be created" in check.found) == ("problem", True)
    remote = machine({"/proc/mounts": "srv:/x / nfs4 rw 0 0\n"})
    (check,) = probes.directory(remote, str(tmp_path))
    assert (check.status, check.found) == ("problem", "on nfs4")


def test_a_directory_without_nameless_files(tmp_path, monkeypatch):
    opened = os.open

    def open_no_tmpfile(path, flags, *mode):
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(errno.EOPNOTSUPP, "no such thing")
        return opened(path, flags, *mode)

    monkeypatch.setattr(probes.os, "open", open_no_tmpfile)
    (check,) = probes.directory(machine(), str(tmp_path))
    assert (check.status, "O_TMPFILE" in check.found) == ("note", True)
    assert os.listdir(tmp_path) == []


def test_a_feature_that_fails_is_a_problem(monkeypatch):
    def fail():
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(probes, "_try_locks", fail)
    found = {check.name: check for check in probes.kernel()}
    assert (found["OFD locks"].status, found["memfd_create"].status) == ("problem", "ok")
    assert "Function not implemented" in found["OFD locks"].found


def test_channels_left_over_are_noted(tmp_path, monkeypatch):
    own = listing.list_channels
    monkeypatch.setattr(probes, "list_channels", lambda: own(tmp_path))
    assert probes.channels() == [checks.ok("channels", "0 in use, none unused")]
    untorn.publish(1, name="a", directory=tmp_path).close()
    (tmp_path / "b.control").write_bytes(b"?")
    with untorn.publish(1, name="c", directory=tmp_path):
        idle, strange = probes.channels()
    assert (idle.status, "untorn gc" in idle.advice) == ("note", True)
    assert strange.found == "unreadable: b"
