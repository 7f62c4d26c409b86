"""The pages with measured curves are written from what was measured: their tables, and pictures for light and dark."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

pytest.importorskip("matplotlib", reason="matplotlib is not installed: pip install 'untorn[plot]'")

ROOT = Path(__file__).parents[2]
PAGES = ("pays.md", "comparison.md")
PICTURES = ("pays-sizes.svg", "pays-tables.svg", "pays-workers.svg")
PEERS = ("untorn", "LMDB", "pickle alone")
WATCHDOG_S = 240


def measured():
    """Times of three turns, of which the second is the median."""
    sizes = {f"publish|memcpy|{size}": [size * 1e-10] * 3 for size in (1000, 1_000_000)}
    for at, peer in enumerate(PEERS, 1):
        for size in (1000, 1_000_000):
            sizes |= {f"{what}|{peer}|{size}": [at * 1e-6, at * 2e-6, at * 9e-6] for what in ("publish", "read")}
    tables = {
        f"{what}|{kind}|1000": [at * 1e-7] * 3
        for what in ("lookup", "attach")
        for at, kind in ((1, "dict"), (3, "FrozenDict"))
    }
    ways = {"untorn, 2 workers": 1e-3, "1 process, 1 thread": 4e-3, "1 process, 2 threads": 3e-3}
    workers = {f"{name}|5000": [seconds] * 3 for name, seconds in ways.items()}
    return {
        name: {"times": times, "how": "2026-01-02, 2 cores, `python`"}
        for name, times in (("sizes", sizes), ("tables", tables), ("workers", workers))
    }


def section(text, name):
    return re.search(rf"<!-- {name} -->\n(.*?)<!-- end of {name} -->", text, re.DOTALL)[1]


def test_one_command_writes_pages_and_pictures(tmp_path):
    for page in PAGES:
        shutil.copy(ROOT / "docs" / page, tmp_path)
    (tmp_path / "measured.json").write_text(json.dumps(measured()))
    command = [
        sys.executable,
        "-m",
        "benchmarks.curves",
        "--from",
        tmp_path / "measured.json",
        "--write",
        "--into",
        tmp_path,
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=WATCHDOG_S, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    pays, comparison = ((tmp_path / page).read_text() for page in PAGES)
    assert "\n\nMeasured: 2026-01-02, 2 cores, `python`." in section(pays, "sizes")
    assert "| LMDB | 4 µs: 2 (2 to 2) |" in section(comparison, "measured")
    assert "| 1,000 | 100 ns | 300 ns | 3 (3 to 3) |" in section(pays, "tables")
    assert "| 5,000 | 1.00 ms | 4.00 ms | 3.00 ms | 3 (3 to 3) |" in section(pays, "workers")
    for name in PICTURES:
        text = (tmp_path / name).read_text()
        ElementTree.fromstring(text)
        assert "prefers-color-scheme: dark" in text
        drawn = set(re.findall(r"(?:fill|stroke): (#[0-9a-f]{6})", text.partition("</style>")[2]))
        assert "#000000" not in drawn  # black on a dark ground
