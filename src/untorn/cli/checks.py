"""The checks of ``untorn doctor`` that read files and settings: each is a function of a Machine.

Only ``Machine`` reads /proc and /sys, so that a test can replace it. probes.py has the checks that try a feature.
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
        name: what was checked.
        status: "ok", "note" (works, but worth knowing) or "problem" (does not work).
        found: what was found.
        advice: what to do about it; empty if there is nothing to do.
    """

    name: str
    status: Literal["ok", "note", "problem"]
    found: str
    advice: str = ""


def ok(name: str, found: str) -> Check:
    """Return a check that found nothing wrong."""
    return Check(name, "ok", found)


def note(name: str, found: str, advice: str) -> Check:
    """Return a check that found something worth knowing."""
    return Check(name, "note", found, advice)


def problem(name: str, found: str, advice: str) -> Check:
    """Return a check that found something that does not work."""
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
    """The machine as the checks see it.

    Attributes:
        read: returns a file's text, or None if it cannot be read.
        link: returns the target of a symbolic link, or None.
        space: returns the size of a path's file system and its free space, in bytes.
        affinity: the number of processors that this process may run on.
        open_files: the number of descriptors that this process may have (RLIMIT_NOFILE).
        environment: the environment variables.
    """

    read: Read = read_text
    link: Callable[[str], str | None] = _link
    space: Callable[[str], tuple[int, int]] = _space
    affinity: int = field(default_factory=lambda: len(os.sched_getaffinity(0)))
    open_files: int = field(default_factory=lambda: resource.getrlimit(resource.RLIMIT_NOFILE)[0])
    environment: Mapping[str, str] = field(default_factory=lambda: os.environ)

    def number(self, path: str) -> int | None:
        """Return the integer in a file, or None."""
        text = (self.read(path) or "").strip()
        return int(text) if text.isdecimal() else None

    def meminfo(self, key: str) -> int | None:
        """Return an entry of /proc/meminfo in bytes, or None."""
        for line in (self.read("/proc/meminfo") or "").splitlines():
            name, _, rest = line.partition(":")
            if name == key and rest.split()[:1] and rest.split()[0].isdecimal():
                return int(rest.split()[0]) * 1024
        return None

    def mount(self, path: str) -> tuple[str, str, str] | None:
        """Return (mount point, file system type, options) of the mount that contains this path, or None."""
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
    """Check the platform, and the versions of untorn, Python and NumPy."""
    checks = []
    release = (machine.read("/proc/sys/kernel/osrelease") or platform.release()).strip()
    what = f"Linux {release} on {platform.machine()}"
    if platform.machine() in ("x86_64", "aarch64"):
        checks.append(ok("platform", what))
    else:
        checks.append(note("platform", what, "untorn is tested on x86_64 and aarch64"))
    python = f"untorn {untorn.__version__}, {platform.python_implementation()} {platform.python_version()}"
    if sys.implementation.name != "cpython":
        checks.append(problem("versions", python, "use CPython; the core needs its C API"))
    else:
        checks.append(ok("versions", f"{python}, NumPy {np.__version__}"))
    return checks


def libraries(machine: Machine) -> list[Check]:
    """List the installed versions of optional libraries."""
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
    """Check /dev/shm, which holds named channels."""
    mount = machine.mount("/dev/shm")
    if mount is None or mount[0] != "/dev/shm":
        advice = (
            "mount it (mount -t tmpfs tmpfs /dev/shm), or use directory= or anonymous channels, which do not need it"
        )
        return [problem("/dev/shm", "not mounted", advice)]
    total, free = machine.space("/dev/shm")
    found = f"{size(free)} free of {size(total)} ({mount[1]}, {mount[2]})"
    if "ro" in mount[2].split(","):
        return [problem("/dev/shm", f"read-only: {found}", "mount it writable, or use anonymous channels")]
    if 0 < total <= _DOCKER_SHM:
        advice = (
            "this is Docker's default; use docker run --shm-size=2g (in Kubernetes, an emptyDir of medium Memory), or "
            "anonymous channels, which it does not limit"
        )
        return [note("/dev/shm", found, advice)]
    if total and free < total // 10:
        return [note("/dev/shm", found, "nearly full: untorn ls shows channels, untorn gc removes unused ones")]
    return [ok("/dev/shm", found)]


def memory(machine: Machine) -> list[Check]:
    """Check the machine's memory and the cgroup's limit, towards which channels count."""
    available, total = machine.meminfo("MemAvailable"), machine.meminfo("MemTotal")
    found = f"{size(available or 0)} available of {size(total or 0)}, {size(machine.meminfo('SwapTotal') or 0)} swap"
    limits = [
        int(text)
        for _, text in group_files("memory", v1="memory.limit_in_bytes", v2="memory.max", read=machine.read)
        if text.strip().isdecimal()
    ]
    limit = min(limits, default=None)
    if limit is not None and (total is None or limit < total):
        advice = "channels count towards it, anonymous ones too; beyond it the kernel kills processes"
        checks = [note("memory", f"{found}; the cgroup may use {size(limit)}", advice)]
    else:
        checks = [ok("memory", f"{found}; no lower cgroup limit")]
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
    """Check the limits of this process. untorn locks no memory, so RLIMIT_MEMLOCK does not matter."""
    files = machine.open_files
    checks = []
    if 0 <= files < 256:
        advice = "a channel needs two descriptors in each process, a trainer some more; raise it: ulimit -n 4096"
        checks.append(note("open files", f"at most {files}", advice))
    else:
        checks.append(ok("open files", "no limit" if files < 0 else f"at most {files}"))
    maps = machine.number("/proc/sys/vm/max_map_count")
    if maps is not None and maps < 65530:
        advice = "every slot in use needs a mapping; raise it: sysctl vm.max_map_count=65530"
        checks.append(note("mappings", f"at most {maps}", advice))
    elif maps is not None:
        checks.append(ok("mappings", f"at most {maps}"))
    return checks


# -- processors and processes


def processors(machine: Machine) -> list[Check]:
    """Check how many processors this process may use, which is a trainer's default number of workers."""
    online = sum(1 for line in (machine.read("/proc/cpuinfo") or "").splitlines() if line.startswith("processor"))
    online = max(online, machine.affinity)
    quota = min(cpu_quotas(machine.read), default=None)
    found = f"{online} online, {machine.affinity} in this process's affinity mask"
    if quota is None:
        return [ok("processors", f"{found}, no cgroup quota")]
    usable = max(1, math.ceil(quota))
    found = f"{found}, cgroup quota of {quota:g}"
    if usable >= machine.affinity:
        return [ok("processors", found)]
    advice = f"the kernel would throttle more than {count(usable, 'worker')}; use workers={usable}"
    return [note("processors", found, advice)]


def threads(machine: Machine) -> list[Check]:
    """Check the variables that set the threads of BLAS and OpenMP, which multiply with the number of processes."""
    given = {name: machine.environment[name] for name in _THREAD_VARIABLES if machine.environment.get(name)}
    if not given:
        found = "no environment variable limits them; a trainer gives each worker one (threads_per_worker)"
        return [ok("BLAS threads", found)]
    found = ", ".join(f"{name}={value}" for name, value in given.items())
    if all(value == "1" for value in given.values()):
        return [ok("BLAS threads", found)]
    advice = "processes times threads should not exceed the processors; for a trainer's workers, set threads_per_worker"
    return [note("BLAS threads", found, advice)]


def processes(machine: Machine) -> list[Check]:
    """Check what processes may see of each other; probes.py tries it."""
    checks = []
    namespace = machine.link("/proc/self/ns/pid")
    if namespace is not None and namespace != _INITIAL_PID_NAMESPACE:
        advice = (
            "anonymous channels only reach processes inside it; for other processes, use named channels in a /dev/shm "
            "or a directory that both share. Pids of processes outside mean nothing here"
        )
        checks.append(note("pid namespace", "a separate one, as in a container", advice))
    elif namespace is not None:
        checks.append(ok("pid namespace", "the initial one"))
    scope = machine.number("/proc/sys/kernel/yama/ptrace_scope")
    if scope is not None:
        checks.append(ok("ptrace", f"Yama's scope is {scope}; it restricts debuggers, not channels"))
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
