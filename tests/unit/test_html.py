"""What notebooks show: small tables in which all text is escaped, and no large value appears."""

from __future__ import annotations

import html.parser
import math

import numpy as np

import networks
import untorn
from untorn import FrozenDict
from untorn.html import MAX_ROWS, described, outline, table
from untorn.train import SGD, History, Trainer


class Cells(html.parser.HTMLParser):
    """Collects the text of the cells, and checks that all tags are closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert not self._open

    def handle_starttag(self, tag, attrs):
        assert tag in {"table", "caption", "b", "tr", "th", "td"}
        self._open.append(tag)
        self.found += [""] * (tag in {"caption", "th", "td"})

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        self.found[-1] += data


def cells(value: object) -> list[str]:
    text = value if isinstance(value, str) else value._repr_html_()
    assert len(text) < 20_000
    return Cells(text).found


def pairs(value: object) -> dict[str, str]:
    found = cells(value)
    return dict(zip(found[1::2], found[2::2], strict=False)) | {"": found[0]}


def test_channels():
    value = {"<w>": np.zeros((200, 300), np.float32), "name": "x" * 10_000, "more": list(range(10_000)), "n": 3}
    with untorn.publish(value) as publisher, publisher.subscriber() as subscriber:
        with subscriber.snapshot() as snapshot:
            found = cells(snapshot)
            assert found[0] == "Snapshot of 'anonymous'"
            parts = dict(zip(found[7::2], found[8::2], strict=True))
            assert parts.pop("'name'").startswith("'xxx")
            assert parts == {"'<w>'": "ndarray, float32, 200 x 300", "'more'": "list of 10,000", "'n'": "3"}
            assert pairs(publisher)["readers"] == "1"
            assert cells(publisher)[-1] == "1"
        assert pairs(snapshot) == {"": "Snapshot of 'anonymous'", "version": "1", "state": "closed"}
        assert pairs(subscriber) == {
            "": "Subscriber of 'anonymous'", "newest version": "1", "publisher": "alive",
        }  # fmt: skip
    assert pairs(publisher)["state"] == "closed"
    assert pairs(subscriber)["state"] == "closed"


def test_a_subscriber_whose_publisher_is_gone(tmp_path):
    with untorn.publish(1, name="c", directory=tmp_path) as publisher:
        subscriber = publisher.subscriber()
        assert pairs(subscriber)["publisher"] == "alive"
    assert pairs(subscriber) == {
        "": f"Subscriber of '{tmp_path}/c'", "newest version": "1", "publisher": "gone",
    }  # fmt: skip


def test_a_queue(tmp_path):
    with untorn.queue(4) as queue:
        queue.put({"x": np.zeros(1000)})
        found = pairs(queue)
        assert (found["items"], found["state"], found["processes"]) == ("1 of at most 4", "open", "1")
        assert found["size"].endswith(" bytes")


def test_a_frozen_dict():
    with untorn.publish(FrozenDict({f"<{n}>": n for n in range(1000)})) as publisher:
        found = cells(publisher.subscriber().snapshot().value)
    assert found[0].startswith("FrozenDict of 1,000 entries, ")
    assert len(found) == 3 + 2 * MAX_ROWS + 1
    assert found[-1] == f"... {1000 - MAX_ROWS} more"


def test_a_trainer_and_its_history():
    data = networks.data_of(32, 5)
    with Trainer(networks.line, networks.line_params(5), optimizer=SGD(0.05), engine="serial", shards=2) as trainer:
        history = trainer.fit(data, epochs=2, batch_size=16, verbose=0)
        found = pairs(trainer)
        assert (found[""], found["step"], found["shards"], found["engine"]) == ("Trainer", "4", "2", "serial")
        assert found["optimizer"] == "SGD"
    assert pairs(trainer)["state"] == "closed"
    found = cells(history)
    assert found[:3] == ["History of 2 epochs", "epoch", "loss"]
    for epoch in range(2, 100):
        history.append(epoch, {"loss": math.nan, "<b>": 1.0}, seconds=1.0, examples_per_s=1.0)
    found = cells(history)
    assert found[0] == f"History of 100 epochs, the last {MAX_ROWS} of them"
    assert "<b>" in found
    assert found[-5:] == ["100", "nan", "1.0000", "1.00", "1"]
    assert cells(History())[0] == "History of 0 epochs"


def test_other_values():
    assert described(np.float32(1.5)) == "float32, float32, one number"
    assert described(object()) == "object"
    assert described(b"x" * 10**6).endswith("x'")
    assert len(described("<" * 10**6)) < 100
    assert cells(outline(7)) == ["value", "7"]
    assert cells(outline((1, "a"))) == ["part", "value", "0", "1", "1", "'a'"]
    assert cells(table("<t>", ("a",), [["&"]], total=3)) == ["<t>", "a", "&", "... 2 more"]
