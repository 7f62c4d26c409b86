"""check_data, chunks and take_examples: what data may be, and how it is cut."""

from typing import NamedTuple

import numpy as np
import pytest

from untorn.train.data import check_data, chunks
from untorn.train.model import take_examples


class Pair(NamedTuple):
    x: np.ndarray
    y: np.ndarray


X, Y = np.arange(12.0).reshape(6, 2), np.arange(6)


@pytest.mark.parametrize("data", [X, (X, Y), [X, Y], {"x": X, "y": Y}, Pair(X, Y), {"in": (X, [Y]), "y": Y}])
def test_trees_of_arrays_are_data(data):
    assert check_data("data", data) == 6


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        ((X, Y[:5]), ValueError, "data[1] has 5 examples and data[0] has 6"),
        ({"x": X, "y": Y[:1]}, ValueError, "data['y'] has 1 examples and data['x'] has 6"),
        ((), ValueError, "data: no arrays in it"),
        ({}, ValueError, "data: no arrays in it"),
        ((X[:0], Y[:0]), ValueError, "data: no examples in it"),
        ((X, np.array(3.0)), ValueError, "data[1]: a single number"),
        ((X, [1, 2, 3]), TypeError, "data[1][0]: expected a NumPy array"),
        (
            (X, "labels"),
            TypeError,
            "data[1]: expected a NumPy array, or a tuple, list or dict of them, found builtins.str",
        ),
        (None, TypeError, "found builtins.NoneType"),
    ],
)
def test_what_is_wrong_is_named(data, error, message):
    with pytest.raises(error) as caught:
        check_data("data", data)
    assert message in str(caught.value)


def test_chunks_cover_all_in_order():
    parts = list(chunks(10, 4))
    assert [len(part) for part in parts] == [4, 4, 2]
    assert np.concatenate(parts).tolist() == list(range(10))


@pytest.mark.parametrize("data", [X, (X, Y), [X, Y], {"x": X, "y": Y}, Pair(X, Y)])
def test_taken_examples_keep_the_tree(data):
    taken = take_examples(data, np.array([4, 1, 1]))
    assert type(taken) is type(data)
    x = taken["x"] if isinstance(data, dict) else taken if isinstance(data, np.ndarray) else taken[0]
    assert x.tolist() == [[8, 9], [2, 3], [2, 3]]
    assert not np.shares_memory(x, X)
