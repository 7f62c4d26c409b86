"""The tree of errors, and that each is caught as what it is."""

import copy
import pickle
import re
from pathlib import Path

import pytest

from untorn import errors

ALSO = {
    "ChannelNotFoundError": FileNotFoundError,
    "UnsupportedTypeError": TypeError,
    "NonFiniteLossError": FloatingPointError,
}
CLASSES = [getattr(errors, name) for name in errors.__all__]


@pytest.mark.parametrize("cls", CLASSES)
def test_every_error_is_an_untorn_error_with_its_message(cls):
    assert issubclass(cls, errors.UntornError)
    assert str(cls("what happened")) == "what happened"
    assert cls.__doc__
    if cls.__name__ in ALSO:
        assert issubclass(cls, ALSO[cls.__name__])


@pytest.mark.parametrize("cls", CLASSES)
def test_errors_travel_between_processes(cls):
    error = cls("what happened")
    for again in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(again) is cls and str(again) == str(error)


def test_a_worker_error_shows_the_workers_traceback():
    error = errors.WorkerError("step 3 failed", "Traceback ...\nZeroDivisionError\n")
    again = pickle.loads(pickle.dumps(error))
    assert str(again) == "step 3 failed\n\nTraceback ...\nZeroDivisionError"
    assert again.worker_traceback == error.worker_traceback


def test_the_drawn_tree_is_the_real_one():
    drawn = re.findall(r"^[ ]*[├└]── (\w+)", errors.__doc__, re.MULTILINE)
    assert sorted([*drawn, "UntornError"]) == sorted(errors.__all__)
    defined = re.findall(r"^class (\w+)\(UntornError", Path(errors.__file__).read_text(), re.MULTILINE)
    assert sorted(defined) == sorted(drawn)
