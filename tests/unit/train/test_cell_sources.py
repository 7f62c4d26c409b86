"""Tracebacks of functions that a worker got by value."""

import linecache
import sys
import types

import pytest

from untorn.train.run.cell_sources import with_sources

CELL = """
def broken(x):
    def inner():
        return x["w"]
    return inner()

class Model:
    @staticmethod
    def call(x):
        return x.missing
"""


@pytest.fixture
def main(monkeypatch):
    """A main program with functions whose file is in no folder, as those of a notebook's cell."""
    module = types.ModuleType("__main__")
    monkeypatch.setitem(sys.modules, "__main__", module)
    monkeypatch.setitem(linecache.cache, "<cell 7>", (len(CELL), None, CELL.splitlines(keepends=True), "<cell 7>"))
    exec(compile(CELL, "<cell 7>", "exec"), module.__dict__)
    return module


def traced(line, name, file="<dynamic-code>"):
    return f'Traceback (most recent call last):\n  File "{file}", line {line}, in {name}\nKeyError: 1\n'


@pytest.mark.parametrize(
    ("line", "name", "source"),
    [(5, "broken", "return inner()"), (4, "inner", 'return x["w"]'), (10, "call", "return x.missing")],
)
def test_the_line_of_the_cell(main, line, name, source):
    expected = traced(line, name, "<cell 7>").replace("KeyError", f"    {source}\nKeyError")
    assert with_sources(traced(line, name)) == expected


def test_what_is_not_known_stays(main):
    for unknown in (traced(99, "broken"), traced(5, "other"), traced(5, "broken", "/a/file.py"), "", "KeyError: 1"):
        assert with_sources(unknown) == unknown


def test_two_that_could_be_meant(main, monkeypatch):
    other = CELL.replace("return inner", "return 1 + inner")
    monkeypatch.setitem(linecache.cache, "<cell 8>", (len(other), None, other.splitlines(keepends=True), "<cell 8>"))
    kept = main.broken
    exec(compile(other, "<cell 8>", "exec"), main.__dict__)
    main.kept = kept
    assert with_sources(traced(5, "broken")) == traced(5, "broken")
