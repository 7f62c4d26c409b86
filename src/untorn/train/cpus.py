"""How many processors this process may use."""

from __future__ import annotations

import math
import os
from pathlib import Path

__all__ = ["available_cpus"]


def available_cpus() -> int:
    """Processors of the affinity mask, or fewer where the cgroup's quota is smaller; at least 1."""
    allowed = len(os.sched_getaffinity(0))
    return max(1, min(allowed, math.ceil(_cgroup_quota(Path("/sys/fs/cgroup/cpu.max"), allowed))))


def _cgroup_quota(path: Path, otherwise: float) -> float:
    """``cpu.max`` is "QUOTA PERIOD", or "max PERIOD" without a limit (cgroup v2)."""
    try:
        quota, period = path.read_text().split()
        return otherwise if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError):
        return otherwise
