"""allow_pickle: anything that pickles, if both sides ask for it."""

import pickle
import threading

import numpy as np
import pytest

import untorn
from helpers import start
from untorn.errors import FormatError, UnsupportedTypeError


class Model:
    """An object with arrays inside."""

    def __init__(self, n=1000):
        self.weights = np.arange(float(n))
        self.names = {"a", "b"}


class Hostile:
    """Unpickling it is noticed."""

    unpickled = 0

    def __reduce__(self):
        return _hostile, ()


def _hostile():
    Hostile.unpickled += 1
    return Hostile()


class Unpicklable:
    """Its pickling fails."""

    def __reduce__(self):
        raise RuntimeError("no")


def _addresses():
    with open("/proc/self/maps") as maps:
        for line in maps:
            if "untorn" in line:
                first, last = line.split()[0].split("-")
                yield range(int(first, 16), int(last, 16))


def _read(pipe, subscriber):
    value = untorn.subscribe(subscriber, allow_pickle=True).snapshot().value
    pipe.put((value["model"].weights.sum(), sorted(value["model"].names)))


def test_arrays_inside_are_zero_copy_and_read_only():
    with untorn.publish({"model": Model(), "n": 1}, allow_pickle=True) as publisher:
        value = publisher.subscriber(allow_pickle=True).snapshot().value
        weights = value["model"].weights
        assert weights.sum() == np.arange(1000.0).sum()
        assert value["model"].names == {"a", "b"}
        assert any(weights.ctypes.data in place for place in _addresses())
        with pytest.raises(ValueError, match="read-only"):
            weights[0] = 1
        with start(_read, publisher.subscriber()) as child:
            assert child.get() == (weights.sum(), ["a", "b"])
            assert child.join() == 0


def test_the_reader_must_ask_too_and_nothing_is_unpickled_before():
    before = Hostile.unpickled
    with untorn.publish({"deep": [Hostile()]}, allow_pickle=True) as publisher:
        for reader in (publisher.subscriber(), untorn.subscribe(publisher), untorn.subscribe(publisher.subscriber())):
            with pytest.raises(UnsupportedTypeError, match=r"deep/0: a pickled .*Hostile.*allow_pickle=True"):
                _ = reader.snapshot().value
        assert Hostile.unpickled == before
        allowed = untorn.subscribe(publisher, allow_pickle=True)
        assert isinstance(allowed.snapshot().value["deep"][0], Hostile)
        assert Hostile.unpickled == before + 1
        with pytest.raises(UnsupportedTypeError):  # the other's decoder is not used
            _ = untorn.subscribe(allowed).snapshot().value


def test_the_publisher_must_ask():
    with pytest.raises(UnsupportedTypeError, match=r"a/1: cannot share .*Model.*allow_pickle=True on both sides"):
        untorn.publish({"a": [1, Model()]})
    with untorn.publish(1) as publisher, pytest.raises(UnsupportedTypeError):
        publisher.update(Model())


def test_asking_survives_a_pickled_subscriber():
    with untorn.publish(Model(), allow_pickle=True) as publisher:
        reader = pickle.loads(pickle.dumps(publisher.subscriber(allow_pickle=True)))
        assert reader.snapshot().value.names == {"a", "b"}
        refused = pickle.loads(pickle.dumps(publisher.subscriber()))
        with pytest.raises(UnsupportedTypeError):
            _ = refused.snapshot().value


@pytest.mark.parametrize(
    "value",
    [
        {1, 2, 3},
        np.array([1, None, "x"], object),
        range(5),
        [complex(1, 2), {4}, {"k": frozenset("ab")}],
        np.ones(1000)[::2],
        (np.ones((10, 10)).T, {1}),
        {frozenset("ab"): np.ones(3), np.int64(1): 2},
    ],
    ids=["set", "object array", "range", "mixed", "strided", "transposed", "keys of any kind"],
)
def test_round_trips(value):
    with untorn.publish({"v": value}, allow_pickle=True) as publisher:
        got = publisher.subscriber(allow_pickle=True).snapshot().value["v"]
        assert type(got) is type(value)
        np.testing.assert_equal(got, value)


def test_update_patch_and_edit():
    with untorn.publish({"m": Model(3), "n": 0}, allow_pickle=True) as publisher:
        reader = publisher.subscriber(allow_pickle=True)
        publisher.update({"m": Model(4), "n": 1})
        publisher.patch({"m": Model(5)})
        assert reader.snapshot().value["m"].weights.size == 5
        with publisher.edit() as tree:
            tree["m"] = Model(6)
        with publisher.edit() as tree:
            tree["n"] = 2
        value = reader.snapshot().value
        assert (value["m"].weights.size, value["n"]) == (6, 2)


@pytest.mark.parametrize("value", [threading.Lock(), lambda: 1, Unpicklable()], ids=["lock", "lambda", "error"])
def test_what_cannot_be_pickled_is_named(value):
    with pytest.raises(UnsupportedTypeError, match=r"^x: a .* that cannot be pickled"):
        untorn.publish({"x": value}, allow_pickle=True)


def test_a_class_that_is_missing_is_a_format_error(monkeypatch):
    with untorn.publish([Model()], allow_pickle=True) as publisher:
        monkeypatch.delattr(f"{__name__}.Model")
        with pytest.raises(FormatError, match=r"a pickled value cannot be read here .*Model"):
            _ = publisher.subscriber(allow_pickle=True).snapshot().value
