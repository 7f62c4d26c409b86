"""How many processors this process may use."""

from __future__ import annotations

import math
import os
from pathlib import Path

from untorn.engines.cgroups import group_files

__all__ = ["available_cpus"]


def available_cpus() -> int:
    """Processors of the affinity mask, or fewer where a cgroup's quota is smaller; at least 1."""
    quotas = [quota_of(path) for path in group_files("cpu", v1="cpu.cfs_quota_us", v2="cpu.max")]
    return max(1, min([len(os.sched_getaffinity(0)), *(math.ceil(quota) for quota in quotas if quota is not None)]))


def quota_of(path: Path) -> float | None:
    """Processors that this file allows; None for no limit.

    Version 2: ``cpu.max`` is "QUOTA PERIOD", or "max PERIOD". Version 1: ``cpu.cfs_quota_us`` is the quota, or -1, and
    ``cpu.cfs_period_us`` beside it the period.
    """
    try:
        quota, *period = path.read_text().split()
        if quota in ("max", "-1"):
            return None
        return int(quota) / int(period[0] if period else path.with_name("cpu.cfs_period_us").read_text())
    except (OSError, ValueError, IndexError, ZeroDivisionError):
        return None
