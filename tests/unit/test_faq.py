"""The page of messages shows the words that errors have today."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

import untorn

PAGE = Path(__file__).parents[2] / "docs" / "troubleshooting.md"
HEADINGS = dict(re.findall(r"^## (\w+Error): (.+)$", PAGE.read_text(), re.MULTILINE))


def no_channel():
    untorn.subscribe("no-such-channel-of-the-faq")


def second_publisher():
    with untorn.publish(1, name="faq", keep=False):
        untorn.publish(2, name="faq")


def closed_publisher():
    with untorn.publish(1) as publisher:
        reader = publisher.subscriber()
        reader.snapshot()
    reader.snapshot(newer_than=1)


def all_versions_held():
    with untorn.publish(np.zeros(2), max_slots=2) as publisher:
        reader = publisher.subscriber()
        held = [reader.snapshot()]
        publisher.update(np.ones(2))
        held.append(reader.snapshot())
        publisher.update(np.ones(2), timeout_s=0.01)


def write_to_a_snapshot():
    with untorn.publish(np.zeros(2)) as publisher:
        publisher.subscriber().snapshot().value[0] = 1


def unknown_type():
    untorn.publish({"f": object()})


@pytest.mark.parametrize(
    "mistake",
    [no_channel, second_publisher, closed_publisher, all_versions_held, write_to_a_snapshot, unknown_type],
    ids=lambda mistake: mistake.__name__,
)
def test_the_heading_of_an_error_is_part_of_its_message(mistake):
    with pytest.raises((untorn.UntornError, ValueError)) as raised:
        mistake()
    assert HEADINGS[raised.type.__name__] in str(raised.value)
