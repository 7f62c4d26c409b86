"""weights_sha256: the same for the same bits, however they lie in memory; different for anything else."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pytest

from untorn import UnsupportedTypeError
from untorn.train import weights_sha256


class Layer(NamedTuple):
    w: Any
    b: Any


@dataclass
class Net:
    first: Any
    second: Any


def tree():
    return {"layers": [Layer(np.arange(6.0).reshape(2, 3), np.zeros(3, np.float32)), (np.ones(()), 3)], "lr": 0.1}


def test_it_is_64_hexadecimal_digits_and_does_not_change():
    digest = weights_sha256(tree())
    assert digest == weights_sha256(tree())
    assert len(digest) == 64
    assert int(digest, 16) >= 0


def test_memory_layout_makes_no_difference():
    w = np.arange(24, dtype=np.float32).reshape(4, 6)
    wide = np.zeros((8, 12), np.float32)
    wide[::2, ::2] = w
    frozen = w.copy()
    frozen.flags.writeable = False
    backwards = w[::-1].copy()[::-1]
    for same in (np.asfortranarray(w), wide[::2, ::2], frozen, backwards):
        assert weights_sha256({"w": same}) == weights_sha256({"w": w})


@pytest.mark.parametrize(
    "other",
    [
        np.zeros(6, np.float64),
        np.zeros(6, ">f4"),
        np.zeros((2, 3), np.float32),
        np.zeros((6, 1), np.float32),
        np.zeros(5, np.float32),
        np.array([0, 0, 0, 0, 0, -0.0], np.float32),
        np.array([0, 0, 0, 0, 0, 1e-45], np.float32),
    ],
    ids=["dtype", "byte order", "shape", "dimension", "length", "negative zero", "one bit"],
)
def test_any_other_bits_dtype_or_shape_differ(other):
    assert weights_sha256({"w": other}) != weights_sha256({"w": np.zeros(6, np.float32)})


def test_structure_and_names_count():
    a, b = np.zeros(2), np.zeros(3)
    trees = [
        {"a": a, "b": b}, {"b": b, "a": a}, {"a": a, "c": b}, [a, b], (a, b), [[a], b], [a, [b]], Layer(a, b),
        Net(a, b), {"a": a, "b": b, "c": None}, [a, b, []],
    ]  # fmt: skip
    assert len({weights_sha256(tree) for tree in trees}) == len(trees)


def test_content_cannot_pass_from_one_leaf_to_the_next():
    assert weights_sha256([b"ab", b"c"]) != weights_sha256([b"a", b"bc"])
    assert weights_sha256(["ab", "c"]) != weights_sha256(["a", "bc"])


def test_scalars_and_empty_arrays_have_digests():
    values = [0, 0.0, False, None, "", b"", np.float32(0), np.zeros(0), np.zeros((0, 3)), [], {}, ()]
    assert len({weights_sha256(value) for value in values}) == len(values)


def test_what_cannot_be_shared_is_named():
    with pytest.raises(UnsupportedTypeError, match="w"):
        weights_sha256({"w": np.array([object()])})


def test_a_known_digest():
    """Frozen: digests are compared across versions and machines."""
    params = {"w": np.arange(6, dtype="<f4").reshape(2, 3), "b": np.zeros(3, "<f4")}
    assert weights_sha256(params) == "361010ce6c4c50adcd0f6361a1e4cb5820bb3fffbc60c1009b18e17676538676"
