"""Masked arrays, record arrays and matrices."""

import contextlib

import numpy as np
import pytest

import untorn
from untorn.errors import UnsupportedTypeError

MASKED = {
    "mask": np.ma.masked_array([1.0, 2.0, 3.0], [0, 1, 0]),
    "no mask": np.ma.masked_array([1, 2, 3]),
    "fill value": np.ma.masked_array([1, 2, 3], [1, 0, 0], fill_value=-9),
    "hard": np.ma.masked_array([1, 2], [1, 0], hard_mask=True),
    "two axes": np.ma.masked_less(np.arange(12.0).reshape(3, 4), 5),
    "text": np.ma.masked_array(["a", "b"], [0, 1]),
    "structured": np.ma.masked_array([(1, 2.0), (3, 4.0)], [(0, 1), (1, 0)], dtype=[("a", "i4"), ("b", "f8")]),
    "empty": np.ma.masked_array(np.empty((0, 3)), np.empty((0, 3), bool)),
}


def round_trip(value):
    with untorn.publish([value]) as publisher:
        return publisher.subscriber().snapshot().value[0]


@pytest.mark.parametrize("kind", MASKED)
def test_masked(kind):
    value = MASKED[kind]
    got = round_trip(value)
    assert type(got) is np.ma.MaskedArray
    assert got.dtype == value.dtype
    assert got.hardmask == value.hardmask
    assert got.fill_value == value.fill_value
    assert (got.mask is np.ma.nomask) == (value.mask is np.ma.nomask)
    np.testing.assert_array_equal(np.ma.getmaskarray(got), np.ma.getmaskarray(value))
    np.testing.assert_array_equal(got.data, value.data)
    assert not got.data.flags.owndata
    assert not got.data.flags.writeable


def test_masking_in_place_is_an_error_or_private():
    with untorn.publish(MASKED["mask"]) as publisher:
        reader = publisher.subscriber()
        got = reader.snapshot().value
        with pytest.raises(ValueError, match="read-only"):
            got[0] = 5
        with pytest.raises(ValueError, match="read-only"):
            got += 1
        with contextlib.suppress(ValueError):
            got[2] = np.ma.masked
        assert reader.snapshot().value.tolist() == [1.0, None, 3.0]


def test_recarray():
    value = np.rec.array([(1, 2.0, "x"), (3, 4.0, "yy")], names="a,b,c")
    got = round_trip(value)
    assert type(got) is np.recarray
    assert got.dtype == value.dtype
    assert got.a.tolist() == [1, 3]
    assert type(got[0]) is np.record
    assert (got == value).all()
    with pytest.raises(ValueError, match="read-only"):
        got.a[0] = 9


@pytest.mark.filterwarnings("ignore:the matrix subclass:PendingDeprecationWarning")
def test_matrix():
    value = np.matrix([[1.0, 2.0], [3.0, 4.0]])
    got = round_trip(value)
    assert type(got) is np.matrix
    assert (got * got == value * value).all()
    with pytest.raises(ValueError, match="read-only"):
        got[0, 0] = 1


def test_a_subclass_that_is_nobodys_is_refused():
    class Mine(np.ndarray):
        pass

    with pytest.raises(UnsupportedTypeError, match=r"x: cannot share .*Mine.*share np\.asarray"):
        untorn.publish({"x": np.zeros(3).view(Mine)})


def test_edit_in_place():
    with untorn.publish({"m": MASKED["mask"]}) as publisher:
        with publisher.edit() as tree:
            tree["m"].data[0] = 7
        assert publisher.subscriber().snapshot().value["m"].tolist() == [7.0, None, 3.0]
