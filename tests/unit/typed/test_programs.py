"""Type checkers infer programs that use untorn, and refuse what is wrong in them.

Each of programs/*.py is a user's program, checked by mypy and pyright in their strict modes against the installed
package. ``assert_type`` states what is inferred, and a line with an error ends with ``# refused``.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
PROGRAMS = Path(__file__).parent / "programs"
#: kept between runs: it takes mypy far longer to read NumPy than to check all the programs
CACHE = ROOT / ".mypy_cache" / "programs"

#: name -> what to run in the folder of the programs; neither needs the network
COMMANDS = {
    "mypy": ["mypy", "--config-file=", "--strict", "--no-error-summary", f"--cache-dir={CACHE}", "."],
    "pyright": ["pyright", "--outputjson", "--pythonpath", sys.executable, "--project", "."],
}

Errors = dict[tuple[str, int], str]


def errors_of_mypy(output: str) -> Errors:
    found = re.finditer(r"^(\S+?):(\d+): error: (.*)$", output, re.MULTILINE)
    return {(match[1], int(match[2])): match[3] for match in found}


def errors_of_pyright(output: str) -> Errors:
    return {
        (Path(found["file"]).name, found["range"]["start"]["line"] + 1): found["message"]
        for found in json.loads(output)["generalDiagnostics"]
    }


READERS = {"mypy": errors_of_mypy, "pyright": errors_of_pyright}


@pytest.mark.parametrize("checker", COMMANDS)
def test_the_programs(checker):
    command = [sys.executable, "-m", *COMMANDS[checker]]
    ran = subprocess.run(command, cwd=PROGRAMS, capture_output=True, text=True, check=False)
    assert ran.returncode == 1, f"{ran.stdout}{ran.stderr}"
    refused = READERS[checker](ran.stdout)
    expected = {
        (path.name, number): line.strip()
        for path in sorted(PROGRAMS.glob("*.py"))
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if line.endswith("# refused")
    }
    assert {place: refused[place] for place in refused.keys() - expected.keys()} == {}, "these lines are right"
    assert {place: expected[place] for place in expected.keys() - refused.keys()} == {}, "these lines are wrong"
