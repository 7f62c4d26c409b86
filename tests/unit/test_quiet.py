"""Warnings are silenced by one thread after the other."""

from __future__ import annotations

import threading
import warnings
from concurrent.futures import ThreadPoolExecutor

import pytest

from untorn.quiet import silenced


def test_only_what_is_meant_is_silenced():
    with silenced("a thing", UserWarning):
        warnings.warn("a thing of no interest", UserWarning, stacklevel=1)
        with pytest.raises(UserWarning, match="another"):
            warnings.warn("another thing", UserWarning, stacklevel=1)
        with pytest.raises(DeprecationWarning):
            warnings.warn("a thing that goes", DeprecationWarning, stacklevel=1)


def test_threads_that_silence_leave_the_filters_as_they_were():
    before, first_inside, second_wants = list(warnings.filters), threading.Event(), threading.Event()

    def first() -> None:
        with silenced("one"):
            first_inside.set()
            second_wants.wait()

    def second() -> None:
        first_inside.wait()
        second_wants.set()
        with silenced("other"), silenced("one inside another"):
            warnings.warn("other", UserWarning, stacklevel=1)

    with ThreadPoolExecutor(2) as pool:
        for each in (pool.submit(first), pool.submit(second)):
            each.result()
    assert list(warnings.filters) == before
