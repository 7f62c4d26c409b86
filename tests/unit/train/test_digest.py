"""weights_sha256: equal for equal bits in an equal structure, in any memory layout."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pytest

from untorn import UnsupportedTypeError
from untorn.train.digest import weights_sha256


def w() -> np.ndarray:
    return np.arange(12, dtype=np.float32).reshape(3, 4)


def read_only() -> np.ndarray:
    array = w()
    array.flags.writeable = False
    return array


@pytest.mark.parametrize(
    "same",
    [
        lambda: np.asfortranarray(w()),
        lambda: np.repeat(w(), 2, axis=1)[:, ::2],
        lambda: w()[::-1][::-1],
        lambda: w().T.copy().T,
        read_only,
    ],
)
def test_the_layout_makes_no_difference(same):
    assert np.array_equal(same(), w())
    assert weights_sha256({"w": same()}) == weights_sha256({"w": w()})


def test_everything_else_does():
    flipped = w()
    flipped[0, 0] = -0.0
    differing = [
        {"w": w()},
        {"v": w()},
        {"w": flipped},
        {"w": w().astype(np.float64)},
        {"w": w().view(np.int32)},
        {"w": w().astype(">f4")},
        {"w": w().reshape(4, 3)},
        {"w": w(), "b": w()},
        {"b": w(), "w": w()},
        [w()],
        (w(),),
        w(),
        [w(), [w()]],
        [[w()], w()],
        [w(), w()],
        [1],
        [1.0],
        [True],
        [0.0],
        [-0.0],
        [None],
        ["1"],
        [b"1"],
        ["ab", "c"],
        ["a", "bc"],
        [np.float32(1)],
        [np.zeros((0, 3))],
        [np.zeros((3, 0))],
        [2**70],
        [],
        {},
    ]
    digests = [weights_sha256(value) for value in differing]
    assert len(set(digests)) == len(differing)


def test_it_is_64_hexadecimal_digits_and_stays_what_it_is():
    digest = weights_sha256({"w": w()})
    assert len(digest) == 64
    assert int(digest, 16) >= 0
    # published in documents and compared between versions: it must not change
    assert digest == "11efc46cf29c58b7ba1649a8bd3c945ec5934a9cb270f11a05cfe20d95da78b7"


class Pair(NamedTuple):
    a: np.ndarray
    b: float


@dataclass
class Layer:
    a: np.ndarray
    b: float


def test_named_tuples_and_dataclasses():
    assert weights_sha256(Pair(w(), 1.0)) == weights_sha256(Pair(np.asfortranarray(w()), 1.0))
    assert weights_sha256(Pair(w(), 1.0)) != weights_sha256(Layer(w(), 1.0))
    assert weights_sha256(Layer(w(), 1.0)) != weights_sha256(Layer(w(), 2.0))


def test_what_cannot_be_shared_is_named():
    with pytest.raises(UnsupportedTypeError, match="head/w"):
        weights_sha256({"head": {"w": np.array([object()])}})
