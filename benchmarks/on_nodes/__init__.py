"""Contestants of the benchmarks on several machines, which are virtual nodes of this one (tests/virtual_nodes).

They are Crews (peers/torch_crew.py) whose processes run on nodes. Those of Ray have one process, the driver on node 0.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests"))

import virtual_nodes  # noqa: E402

__all__ = ["ROOT", "virtual_nodes"]
