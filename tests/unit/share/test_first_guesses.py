"""What people write first: it works where that costs nothing in clarity, and else the error says the right word."""

import inspect

import numpy as np
import pytest

import untorn


@pytest.fixture
def weights():
    with untorn.publish({"w": np.arange(3.0)}) as publisher:
        yield publisher


def test_items_of_a_snapshot(weights):
    snap = weights.subscriber().snapshot()
    assert snap["w"].tolist() == [0, 1, 2] and snap["w"] is snap.value["w"]
    assert "w" in snap and "b" not in snap
    with pytest.raises(KeyError, match="b"):
        snap["b"]


def test_the_name_and_the_directory_as_publish_takes_them(name, tmp_path):
    with untorn.publish("near", name=name, keep=False), untorn.publish("far", name=name, directory=tmp_path):
        assert untorn.subscribe(name=name).snapshot().value == "near"
        assert untorn.subscribe(name, directory=tmp_path).snapshot().value == "far"
        assert untorn.subscribe(name=name, directory=str(tmp_path)).snapshot().value == "far"
        with pytest.raises(TypeError, match="directory= goes with a name"):
            untorn.subscribe(untorn.subscribe(name), directory=tmp_path)
        with pytest.raises(TypeError, match="expected a name"):
            untorn.subscribe()


ARGUMENTS = [
    (lambda p: untorn.publish("policy", 1), r"publish\(value, name='policy'\)"),
    (lambda p: untorn.publish(1, "policy"), r"publish\(value, name=\.\.\.\)"),
    (lambda p: untorn.publish(1, channel="policy"), r"publish\(\) has no argument 'channel': .*name="),
    (lambda p: untorn.publish(1, path="/tmp"), "directory="),
    (lambda p: untorn.publish(1, timeout_s=1), "waits for no one"),
    (lambda p: untorn.publish(1, max_reader=4), r"publish\(\) has no argument 'max_reader': write max_readers=$"),
    (lambda p: untorn.publish(1, colour=1), r"publish\(\) has no argument 'colour'$"),
    (lambda p: untorn.subscribe("policy", 5), "timeout_s=, in seconds"),
    (lambda p: untorn.subscribe("policy", timeout=5), "timeout_s=, in seconds"),
    (lambda p: p.update({}, 5), r"patch\(\{path: value\}\)"),
    (lambda p: p.update({}, timeout=5), "timeout_s=, in seconds"),
    (lambda p: p.update({}, w=5), r"patch\(\{path: value\}\)"),
    (lambda p: p.patch("w", 5), r"patch\(\{'w': value\}\)"),
    (lambda p: p.patch({}, w=5), r"patch\(\{'w': value\}\)"),
    (lambda p: p.edit("w"), r"edit\(leaves=\[path, \.\.\.\]\)"),
    (lambda p: p.subscriber().snapshot(timeout=5), "timeout_s=, in seconds"),
    (lambda p: p.subscriber().snapshot(1), r"snapshot\(newer_than=\.\.\.\)"),
    (lambda p: p.subscriber().snapshot(version=1), "only the newest version"),
    (lambda p: p.subscriber().snapshot(newer_than=p.subscriber().snapshot()), "newer_than=snap.version"),
    (lambda p: p.subscriber().wait(0, timeout=5), "timeout_s=, in seconds"),
    (lambda p: p.subscriber().snapshot_async(timeout=5).send(None), "timeout_s=, in seconds"),
    (lambda p: p.subscriber().wait_async(0, timeout=5).send(None), "timeout_s=, in seconds"),
    (lambda p: p["w"], r"patch\(\{key: value\}\)"),
    (lambda p: p.__setitem__("w", 1), r"patch\(\{key: value\}\)"),
    (lambda p: p.subscriber()["w"], r"snapshot\(\)\.value\['w'\]"),
    (lambda p: p.subscriber().snapshot().__setitem__("w", 1), r"read-only: .*patch\(\) or edit\(\)"),
    (lambda p: tuple(p.subscriber().snapshot()), "snap.version and snap.value"),
    (lambda p: np.asarray(p.subscriber().snapshot()), r"np\.asarray\(snap\.value\)"),
]


@pytest.mark.parametrize(("use", "word"), ARGUMENTS)
def test_the_error_says_the_right_word(weights, use, word):
    with pytest.raises(TypeError, match=word):
        use(weights)
    assert weights.version == 1


ATTRIBUTES = [
    (lambda p: p.publish, r"update\(value\)"),
    (lambda p: p.value, r"subscriber\(\)\.snapshot\(\)\.value"),
    (lambda p: p.wait, r"subscriber\(\)\.wait\(\)"),
    (lambda p: p.subscriber().value, r"snapshot\(\)\.value"),
    (lambda p: p.subscriber().get, r"snapshot\(\)\.value"),
    (lambda p: p.subscriber().update, "only reads"),
    (lambda p: p.subscriber().snapshot().data, "write value"),
    (lambda p: p.subscriber().snapshot().keys, r"value\.keys\(\.\.\.\)"),
    (lambda p: untorn.TorchModel, "untorn.torch.TorchModel"),
    (lambda p: untorn.connect, "untorn.subscribe"),
]


@pytest.mark.parametrize(("use", "word"), ATTRIBUTES)
def test_attributes(weights, use, word):
    with pytest.raises(AttributeError, match=word):
        use(weights)


def test_other_names_stay_without_advice(weights):
    for owner in (weights, weights.subscriber(), weights.subscriber().snapshot()):
        with pytest.raises(AttributeError, match=r"has no attribute 'colour'$") as caught:
            _ = owner.colour
        assert caught.value.name == "colour" and caught.value.obj is owner
        assert not hasattr(owner, "__array_interface__")


def test_signatures_show_only_what_is_there():
    assert list(inspect.signature(untorn.Subscriber.snapshot).parameters) == ["self", "newer_than", "timeout_s"]
    assert "unknown" not in inspect.signature(untorn.publish).parameters
