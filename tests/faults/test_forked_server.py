"""Forked copies of the server or of a worker: training continues with every action and ending of a copy.

The programs are forking.py.
"""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from pathlib import Path

import forking
import pytest

from helpers import WATCHDOG_S

PROGRAM = Path(forking.__file__)


def run(folder: Path, engine: str, place: str, ending: str) -> list:
    command = [sys.executable, str(PROGRAM), str(folder), engine, place, ending]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=WATCHDOG_S, check=False)
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """Return the results of sync training, and of async training, which equals sync training with one shard here."""
    return {engine: run(tmp_path_factory.mktemp(engine), engine, "nowhere", "exit") for engine in ("serial", "async")}


COMMON = [
    *(("processes", "batch_end", ending) for ending in ("exit", "go_on", "close")),
    *(("processes", "with", ending) for ending in ("exit", "collect", "multiprocessing")),
    ("processes", "epoch_end", "go_on"),
    *(("processes", "model", ending) for ending in ("exit", "raise", "go_on")),
    *(("serial", "batch_end", ending) for ending in ("exit", "go_on")),
    ("serial", "model", "go_on"),
    ("async", "batch_end", "go_on"),
]
EVERYWHERE = [
    (engine, place, ending)
    for engine, place, ending in itertools.product(("serial", "processes", "async"), forking.PLACES, forking.ENDINGS)
    # workers are daemonic processes, which multiprocessing forbids to have children
    if (engine, place, ending) not in COMMON and (engine == "serial" or (place, ending) != ("model", "multiprocessing"))
]


@pytest.mark.parametrize(("engine", "place", "ending"), COMMON)
def test_training_goes_on(engine, place, ending, expected, tmp_path):
    found = run(tmp_path, engine, place, ending)
    assert found == expected["async" if engine == "async" else "serial"]
    assert found[1:] == [20, 0, 2, ["True", "True"]]


@pytest.mark.soak
@pytest.mark.parametrize(("engine", "place", "ending"), EVERYWHERE)
def test_training_goes_on_everywhere(engine, place, ending, expected, tmp_path):
    assert run(tmp_path, engine, place, ending) == expected["async" if engine == "async" else "serial"]
