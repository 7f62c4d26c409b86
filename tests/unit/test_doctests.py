"""Every example in a docstring of the package runs as it is printed."""

import doctest
import gc
import importlib
import pkgutil

import pytest

import untorn

MODULES = ["untorn", *sorted(module.name for module in pkgutil.walk_packages(untorn.__path__, "untorn."))]


@pytest.mark.parametrize("module", [name for name in MODULES if not name.endswith(("._core", ".__main__"))])
def test_examples_in(module):
    result = doctest.testmod(importlib.import_module(module), optionflags=doctest.ELLIPSIS)
    gc.collect()
    assert result.failed == 0


def test_there_are_examples():
    finder = doctest.DocTestFinder()
    examples = [test for test in finder.find(untorn.share.publisher) if test.examples]
    assert len(examples) >= 2
