"""What ``untorn doctor`` reads off the machine: each check is a function of a Machine, and says what it found.

``Machine`` is the one place that reads /proc and /sys, so that a test can put another one there. What has to be tried
is in trials.py.
"""

from __future__ import annotations

import math
import os
import platform
import resource
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from typing import Literal

import numpy as np

import untorn
from untorn.cli.tables import count, size
from untorn.engines.cgroups import Read, group_files, read_text
from untorn.train.run.cpus import cpu_quotas

__all__ = ["CHECKS", "Check", "Machine", "note", "ok", "problem"]

_INITIAL_PID_NAMESPACE = "pid:[4026531836]"
_DOCKER_SHM = 64 << 20
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS")
_LIBRARIES = (
    "scipy pandas pyarrow polars torch jax optax ray threadpoolctl cloudpickle scikit-learn matplotlib click rich"
)


@dataclass(frozen=True)
class Check:
    """One line of the report.

    Attributes:
        name: what was looked at.
        status: "ok", "note" (works, but worth knowing) or "problem" (something does not work).
        found: what is there.
        advice: what to do about it; empty if nothing.
    """

    name: str
    status: Literal["ok", "note", "problem"]
    found: str
    advice: str = ""


def ok(name: str, found: str) -> Check:
    """All well."""
    return Check(name, "ok", found)


def note(name: str, found: str, advice: str) -> Check:
    """Works, but worth knowing."""
    return Check(name, "note", found, advice)


def problem(name: str, found: str, advice: str) -> Check:
    """Something does not work."""
    return Check(name, "problem", found, advice)


def _link(path: str) -> str | None:
    try:
        return os.readlink(path)
    except OSError:
        return None


def _space(path: str) -> tuple[int, int]:
    status = os.statvfs(path)
    return status.f_blocks * status.f_frsize, status.f_bavail * status.f_frsize


@dataclass(frozen=True)
class Machine:
    """What the checks know of the machine.

    Attributes:
        read: a file's text, or None if it cannot be read.
        link: where a symbolic link leads, or None.
        space: bytes of a path's file system, in all and free.
        affinity: processors that this process may run on.
        open_files: how many descriptors this process may have (RLIMIT_NOFILE).
        environment: variables.
    """

    read: Read = read_text
    link: Callable[[str], str | None] = _link
    space: Callable[[str], tuple[int, int]] = _space
    affinity: int = field(default_factory=lambda: len(os.sched_getaffinity(0)))
    open_files: int = field(default_factory=lambda: resource.getrlimit(resource.RLIMIT_NOFILE)[0])
    environment: Mapping[str, str] = field(default_factory=lambda: os.environ)

    def number(self, path: str) -> int | None:
        """The integer in a file, or None."""
        text = (self.read(path) or "").strip()
        return int(text) if text.isdecimal() else None

    def meminfo(self, key: str) -> int | None:
        """A line of /proc/meminfo, in bytes."""
        for line in (self.read("/proc/meminfo") or "").splitlines():
            name, _, rest = line.partition(":")
            if name == key and rest.split()[:1] and rest.split()[0].isdecimal():
                return int(rest.split()[0]) * 1024
        return None

    def mount(self, path: str) -> tuple[str, str, str] | None:
        """(mount point, file system type, options) of the mount that has this path."""
        best = None
        for line in (self.read("/proc/mounts") or "").splitlines():
            fields = line.split(" ")
            if len(fields) < 4:
                continue
            point = fields[1].encode().decode("unicode_escape")  # blanks are \040 there
            if (path + "/").startswith(point.rstrip("/") + "/") and (best is None or len(point) >= len(best[0])):
                best = (point, fields[2], fields[3])
        return best


# -- software


def software(machine: Machine) -> list[Check]:
    """Versions of what untorn stands on."""
    checks = []
    release = (machine.read("/proc/sys/kernel/osrelease") or platform.release()).strip()
    what = f"Linux {release} on {platform.machine()}"
    if platform.machine() in ("x86_64", "aarch64"):
        checks.append(ok("platform", what))
    else:
        checks.append(note("platform", what, "untorn is tested on x86_64 and aarch64"))
    python = f"untorn {untorn.__version__}, {platform.python_implementation()} {platform.python_version()}"
    if sys.implementation.name != "cpython":
        checks.append(problem("versions", python, "use CPython: the core is written for it"))
    else:
        checks.append(ok("versions", f"{python}, NumPy {np.__version__}"))
    return checks


def libraries(machine: Machine) -> list[Check]:
    """Optional libraries."""
    there, missing = [], []
    for name in _LIBRARIES.split():
        try:
            there.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            missing.append(name)
    found = ", ".join(there) or "none"
    return [ok("libraries", found + (f"; not installed: {', '.join(missing)}" if missing else ""))]


# -- memory


def shared_memory(machine: Machine) -> list[Check]:
    """/dev/shm: where named channels are."""
    mount = machine.mount("/dev/shm")
    if mount is None or mount[0] != "/dev/shm":
        advice = (
            "mount it (mount -t tmpfs tmpfs /dev/shm), or use directory= or anonymous channels, which do not need it"
        )
        return [problem("/dev/shm", "not a mount of its own", advice)]
    total, free = machine.space("/dev/shm")
    found = f"{size(free)} free of {size(total)} ({mount[1]}, {mount[2]})"
    if "ro" in mount[2].split(","):
        return [problem("/dev/shm", f"read-only: {found}", "mount it writable, or use anonymous channels")]
    if 0 < total <= _DOCKER_SHM:
        advice = (
            "that is docker's default: docker run --shm-size=2g (Kubernetes: an emptyDir of medium Memory), or "
            "anonymous channels, which are not limited by it"
        )
        return [note("/dev/shm", found, advice)]
    if total and free < total // 10:
        return [note("/dev/shm", found, "nearly full: untorn ls shows channels, untorn gc removes unused ones")]
    return [ok("/dev/shm", found)]


def memory(machine: Machine) -> list[Check]:
    """Memory of the machine, and what the cgroup leaves of it. Pages of channels count as this group's."""
    available, total = machine.meminfo("MemAvailable"), machine.meminfo("MemTotal")
    found = f"{size(available or 0)} available of {size(total or 0)}, {size(machine.meminfo('SwapTotal') or 0)} swap"
    limits = [
        int(text)
        for _, text in group_files("memory", v1="memory.limit_in_bytes", v2="memory.max", read=machine.read)
        if text.strip().isdecimal()
    ]
    limit = min(limits, default=None)
    if limit is not None and (total is None or limit < total):
        advice = "channels count towards it, anonymous ones too; a process beyond it is killed"
        checks = [note("memory", f"{found}; the cgroup may use {size(limit)}", advice)]
    else:
        checks = [ok("memory", f"{found}; no cgroup limit below that")]
    if (machine.read("/proc/sys/vm/overcommit_memory") or "").strip() == "2":
        advice = (
            "large publishers may fail to fork; start workers with spawn or forkserver, or raise vm.overcommit_ratio"
        )
        checks.append(note("overcommit", "strict (vm.overcommit_memory is 2)", advice))
    else:
        checks.append(ok("overcommit", "not strict"))
    huge = (machine.read("/sys/kernel/mm/transparent_hugepage/shmem_enabled") or "").strip()
    if huge:
        chosen = huge.partition("[")[2].partition("]")[0] or huge
        checks.append(ok("huge pages", f"for shared memory: {chosen}"))
    return checks


def limits(machine: Machine) -> list[Check]:
    """Limits of this process. Nothing is locked in memory, so RLIMIT_MEMLOCK does not matter."""
    files = machine.open_files
    checks = []
    if 0 <= files < 256:
        advice = "a channel takes two descriptors in each process, a trainer some more: ulimit -n 4096"
        checks.append(note("open files", f"at most {files}", advice))
    else:
        checks.append(ok("open files", "no limit" if files < 0 else f"at most {files}"))
    maps = machine.number("/proc/sys/vm/max_map_count")
    if maps is not None and maps < 65530:
        advice = "every slot in use is a mapping: sysctl vm.max_map_count=65530"
        checks.append(note("mappings", f"at most {maps}", advice))
    elif maps is not None:
        checks.append(ok("mappings", f"at most {maps}"))
    return checks


# -- processors and processes


def processors(machine: Machine) -> list[Check]:
    """How many may be used at once: a trainer's workers default to that."""
    online = sum(1 for line in (machine.read("/proc/cpuinfo") or "").splitlines() if line.startswith("processor"))
    online = max(online, machine.affinity)
    quota = min(cpu_quotas(machine.read), default=None)
    found = f"{online} there, {machine.affinity} in this process's affinity mask"
    if quota is None:
        return [ok("processors", f"{found}, no cgroup quota")]
    usable = max(1, math.ceil(quota))
    found = f"{found}, a cgroup quota of {quota:g}"
    if usable >= machine.affinity:
        return [ok("processors", found)]
    return [note("processors", found, f"more than {count(usable, 'worker')} would be throttled: workers={usable}")]


def threads(machine: Machine) -> list[Check]:
    """Threads of BLAS and OpenMP, which multiply with the number of processes."""
    given = {name: machine.environment[name] for name in _THREAD_VARIABLES if machine.environment.get(name)}
    if not given:
        return [ok("BLAS threads", "no variable limits them; a trainer gives each worker one (threads_per_worker)")]
    found = ", ".join(f"{name}={value}" for name, value in given.items())
    if all(value == "1" for value in given.values()):
        return [ok("BLAS threads", found)]
    advice = "processes times threads should not exceed the processors; a trainer's workers use threads_per_worker"
    return [note("BLAS threads", found, advice)]


def processes(machine: Machine) -> list[Check]:
    """What one process may see of another; trials.py tries it."""
    checks = []
    namespace = machine.link("/proc/self/ns/pid")
    if namespace is not None and namespace != _INITIAL_PID_NAMESPACE:
        advice = (
            "anonymous channels reach processes in here alone; to others, channels with a name in a /dev/shm or a "
            "directory that both share. Pids of others in messages mean nothing here"
        )
        checks.append(note("pid namespace", "one of its own, as in a container", advice))
    elif namespace is not None:
        checks.append(ok("pid namespace", "the machine's"))
    scope = machine.number("/proc/sys/kernel/yama/ptrace_scope")
    if scope is not None:
        checks.append(ok("ptrace", f"yama's scope is {scope}; it limits debuggers, not channels"))
    return checks


CHECKS: tuple[Callable[[Machine], list[Check]], ...] = (
    software,
    shared_memory,
    memory,
    limits,
    processors,
    threads,
    processes,
    libraries,
)
