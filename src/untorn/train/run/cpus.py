"""The number of processors that this process may use, by its affinity mask and its cgroups."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import PurePosixPath

from untorn.engines.cgroups import Read, group_files, read_text

__all__ = ["available_cpus", "cpu_quotas"]


def available_cpus() -> int:
    """Return the number of processors in the affinity mask, or fewer if a cgroup's quota is smaller; at least 1."""
    return max(1, min([len(os.sched_getaffinity(0)), *map(math.ceil, cpu_quotas())]))


def cpu_quotas(read: Read = read_text) -> Iterator[float]:
    """Yield the number of processors that each cgroup of this process allows, if it has a limit.

    Version 2: ``cpu.max`` is "QUOTA PERIOD", or "max PERIOD". Version 1: ``cpu.cfs_quota_us`` is the quota, or -1, and
    ``cpu.cfs_period_us`` beside it the period.
    """
    for path, text in group_files("cpu", v1="cpu.cfs_quota_us", v2="cpu.max", read=read):
        numbers = text.split()
        if len(numbers) == 1:
            numbers += (read(str(PurePosixPath(path).with_name("cpu.cfs_period_us"))) or "").split()
        if len(numbers) == 2 and all(number.isdecimal() and int(number) for number in numbers):
            yield int(numbers[0]) / int(numbers[1])
