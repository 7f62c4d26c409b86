"""Every input of the corpus, and changes of it that the seed fixes, give a value or an error of untorn.

tests/fuzz/fuzzing.py and tests/fuzz/fuzz_*.c look for more, for as long as they are let.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import corpus
import fuzzing
import pytest

pytestmark = pytest.mark.early

#: a few seconds in all
CHANGES = {"schema": 15, "frozendict": 40, "changes": 40, "checkpoint": 40, "socket": 100, "files": 30, "queues": 20}


def test_the_corpus_is_what_its_script_makes():
    found = {(path.parent.name, path.name): path.read_bytes() for path in corpus.HERE.rglob("*") if path.is_file()}
    made = {(target, name): data for target, inputs in corpus.made().items() for name, data in inputs.items()}
    assert found == made, "run python tests/fuzz/corpus.py: the format, or what it stores, has changed"
    assert sum(map(len, made.values())) < 200_000
    assert set(CHANGES) == set(fuzzing.NAMES)


@pytest.mark.parametrize("name", CHANGES)
def test_every_input_and_changes_of_it(name, seed):
    """Runs in its own process: libraries of adapters start threads, and a crash is then one failed test."""
    command = [sys.executable, "-X", "faulthandler", Path(fuzzing.__file__), "--here", name]
    ended = subprocess.run(
        [*command, "--changes", str(CHANGES[name]), "--seed", str(seed)],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
    )
    assert ended.returncode == 0, ended.stdout[-300:] + ended.stderr
    assert ended.stdout.splitlines()[-1].startswith(f"{name}: ")
