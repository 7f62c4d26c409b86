"""Python without asserts (-O) and without docstrings (-OO), as images for production set it: all works as ever."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from helpers import WATCHDOG_S

ROOT = Path(__file__).parents[2]
SOURCES = sorted((ROOT / "src").rglob("*.py"))

#: one file or test for each part of untorn
SUITE = (
    "tests/unit/share/test_patch.py",
    "tests/unit/share/test_publisher.py",
    "tests/unit/train/test_async_schedule.py",
    "tests/unit/train/test_callbacks_in_fit.py::test_an_error_ends_training_for_all_and_is_the_one_that_is_raised",
    "tests/unit/train/test_checkpoint.py::test_save_and_load",
    "tests/unit/train/test_checkpoint.py::test_another_number_of_workers_resumes[2-3]",
    "tests/conformance/test_engines.py::test_the_weights_are_those_of_the_plain_loop[mlp-serial]",
    "tests/conformance/test_engines.py::test_the_weights_are_those_of_the_plain_loop[mlp-processes-2]",
    "tests/conformance/test_async_training.py"
    "::test_every_batch_counts_once_and_staleness_is_what_it_says[{'workers': 2}]",
    "tests/unit/cli/test_ls.py",
    "tests/unit/cli/test_join.py::test_join_and_leave",
)


@pytest.mark.parametrize("level", [pytest.param("1", marks=pytest.mark.soak), "2"])
def test_a_part_of_the_suite_passes(level):
    # pytest rewrites the tests' own asserts, and warns that it cannot do so for the modules that they import
    ignored = "ignore:assertions not in test modules:pytest.PytestConfigWarning"
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-W", ignored, *SUITE]
    ran = subprocess.run(
        command,
        cwd=ROOT,
        env=os.environ | {"PYTHONOPTIMIZE": level},
        capture_output=True,
        text=True,
        timeout=5 * WATCHDOG_S,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout[-4000:] + ran.stderr


@pytest.mark.parametrize("level", ["1", "2"])
@pytest.mark.parametrize("command", [[], ["train"], ["ls"], ["join"]], ids=" ".join)
def test_the_help_says_what_a_command_does(command, level):
    program = [sys.executable, "-m", "untorn.cli", *command, "--help"]
    env = os.environ | {"PYTHONOPTIMIZE": level}
    shown = subprocess.run(program, env=env, capture_output=True, text=True, timeout=WATCHDOG_S, check=True).stdout
    usage, description = shown.split("\n\n")[:2]
    assert usage.startswith("Usage: ")
    assert description.strip().endswith(".")


def test_no_assert_does_work():
    trees = {source: ast.parse(source.read_text()) for source in SOURCES}
    properties = {  # an attribute access, which may run code
        function.name
        for tree in trees.values()
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef)
        and any("property" in ast.unparse(decorator) for decorator in function.decorator_list)
    }
    working = [
        f"{source.name}:{node.lineno}: assert {ast.unparse(node.test)}"
        for source, tree in trees.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Assert) and any(_works(part, properties) for part in ast.walk(node.test))
    ]
    assert not working, "\n".join(working)


def _works(part: ast.AST, properties: set[str]) -> bool:
    """Return whether evaluating this part of an expression may do more than look."""
    if isinstance(part, ast.Call):
        return ast.unparse(part.func) != "isinstance"
    if isinstance(part, ast.Attribute):
        return part.attr in properties
    return isinstance(part, ast.NamedExpr | ast.Await | ast.Yield | ast.YieldFrom)
