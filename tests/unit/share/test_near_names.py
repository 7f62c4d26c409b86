"""An error about a name that does not exist tells those that may have been meant."""

from __future__ import annotations

import contextlib
import re

import pytest

import untorn
from untorn import ChannelNotFoundError
from untorn.share.inspect import ChannelView, files_of


@pytest.fixture
def folder(tmp_path):
    """A directory with two channels and a queue."""
    with contextlib.ExitStack() as stack:
        for name in ("policy", "policy-2"):
            stack.enter_context(untorn.publish([1], name=name, directory=tmp_path))
        stack.enter_context(contextlib.closing(untorn.queue(capacity=2, name="tasks", directory=tmp_path)))
        yield tmp_path


def ask_by_subscribing(name, folder):
    untorn.subscribe(name, directory=folder)


def ask_by_waiting(name, folder):
    untorn.subscribe(name, directory=folder, timeout_s=0.02)


def ask_by_showing(name, folder):
    ChannelView.open(files_of(f"{folder}/{name}"))


@pytest.mark.parametrize("ask", [ask_by_subscribing, ask_by_waiting, ask_by_showing])
@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("polcy", "; there is 'policy' and 'policy-2')"),
        ("Policy", "; there is 'policy' and 'policy-2')"),
        ("tasks", "; there is a queue of that name: untorn.queue(name='tasks'))"),
        ("weights", "weights.control)"),
    ],
)
def test_a_name_that_is_not_there(folder, ask, name, told):
    with pytest.raises(ChannelNotFoundError, match=re.escape(told)):
        ask(name, folder)


def test_a_directory_that_is_not_there(tmp_path):
    with pytest.raises(ChannelNotFoundError, match=", and there is no such directory"):
        untorn.subscribe("policy", directory=tmp_path / "gone")
