"""Type checkers infer programs that use untorn, and refuse what is wrong in them.

Each of programs/*.py is a user's program, checked by mypy and pyright in their strict modes against the installed
package. ``assert_type`` states what is inferred, and a line with an error ends with ``# refused``. The public classes
have annotations throughout: where these are missing, checkers infer types from the code, and may differ.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import untorn
import untorn.typing

pytestmark = pytest.mark.early

ROOT = Path(__file__).parents[3]
PROGRAMS = Path(__file__).parent / "programs"
#: kept between runs: it takes mypy far longer to read NumPy than to check all the programs
CACHE = ROOT / ".mypy_cache" / "programs"

Errors = dict[tuple[str, int], str]


def errors_of_mypy(output: str) -> Errors:
    found = re.finditer(r"^(\S+?):(\d+): error: (.*)$", output, re.MULTILINE)
    return {(match[1], int(match[2])): match[3] for match in found}


def errors_of_pyright(output: str) -> Errors:
    return {
        (Path(found["file"]).name, found["range"]["start"]["line"] + 1): found["message"]
        for found in json.loads(output)["generalDiagnostics"]
    }


#: name -> the command, without the programs, and what reads its output; neither needs the network
CHECKERS = {
    "mypy": (["mypy", "--config-file=", "--strict", f"--cache-dir={CACHE}"], errors_of_mypy),
    "pyright": (["pyright", "--outputjson", "--pythonpath", sys.executable], errors_of_pyright),
}


def program_of_all_names() -> str:
    """Return a program that uses every name of untorn, and tries those that are there by the way."""
    others = {name for name in dir(untorn) if name[0] != "_" and not isinstance(getattr(untorn, name), ModuleType)}
    others -= {*untorn.__all__, "annotations"}  # checkers know that one, as of every module
    lines = [f"    untorn.{name}," for name in untorn.__all__]
    lines += [f"    untorn.{name},  # refused" for name in sorted({*others, "no_name"})]
    imported = ", ".join(untorn.__all__)
    return "\n".join(
        ["import untorn", f"from untorn import {imported}", f"names: list[object] = [{imported},", *lines, "]", ""]
    )


@pytest.mark.parametrize("checker", CHECKERS)
def test_the_programs(checker, tmp_path):
    command, errors_in = CHECKERS[checker]
    programs = shutil.copytree(PROGRAMS, tmp_path / "programs")
    (programs / "names.py").write_text(program_of_all_names())
    ran = subprocess.run(
        [sys.executable, "-m", *command, "."], cwd=programs, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 1, f"{ran.stdout}{ran.stderr}"
    refused = errors_in(ran.stdout)
    expected = {
        (path.name, number): line.strip()
        for path in programs.glob("*.py")
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if line.endswith("# refused")
    }
    assert {place: refused[place] for place in refused.keys() - expected.keys()} == {}, "these lines are right"
    assert {place: expected[place] for place in expected.keys() - refused.keys()} == {}, "these lines are wrong"


def test_the_public_types_are_complete():
    # it looks for the package where the python of PATH does
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    command = ["pyright", "--verifytypes", "untorn", "--ignoreexternal", "--outputjson"]
    ran = subprocess.run(
        [sys.executable, "-m", *command], env={**os.environ, "PATH": path}, capture_output=True, text=True, check=False
    )
    report = json.loads(ran.stdout)["typeCompleteness"]
    assert report["exportedSymbolCounts"]["withUnknownType"] == 0
    found = {symbol["name"]: symbol for symbol in report["symbols"]}
    public = [f"untorn.{name}" for name in untorn.__all__]
    public += [f"untorn.typing.{name}" for name in untorn.typing.__all__]
    public += ["untorn.torch.TorchModel", "untorn.jax.JaxModel"]
    incomplete = [name for name in public if not found[name]["isTypeKnown"]]
    # a class is incomplete because of its members, or of those of a class in their types
    assert not incomplete, {name: symbol["diagnostics"] for name, symbol in found.items() if not symbol["isTypeKnown"]}
