"""scipy.sparse in every format."""

import contextlib

import numpy as np
import pytest
from scipy import sparse

import untorn
from untorn import adapter_registry
from untorn.errors import FormatError

FORMATS = ("csr", "csc", "bsr", "coo", "dia", "lil", "dok")
KINDS = [f"{kind}_{container}" for kind in FORMATS for container in ("array", "matrix")]
PARTS = {
    "csr": ("data", "indices", "indptr"),
    "csc": ("data", "indices", "indptr"),
    "bsr": ("data", "indices", "indptr"),
    "coo": ("data", "row", "col"),
    "dia": ("data", "offsets"),
    "lil": (),
    "dok": (),
}


def matrix(kind, dtype=np.float64):
    dense = np.zeros((6, 8), dtype)
    dense[[0, 2, 3, 5], [1, 1, 6, 7]] = [1, 2, 3, 4]
    return getattr(sparse, kind)(dense)


@pytest.fixture
def reader():
    with untorn.publish(0) as publisher:
        subscriber = publisher.subscriber()

        def read(value):
            publisher.update(value)
            return subscriber.snapshot().value

        yield read
        subscriber.close()


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.int8, np.complex128, np.bool_])
@pytest.mark.parametrize("kind", KINDS)
def test_round_trip(kind, dtype, reader):
    value = matrix(kind, dtype)
    got = reader({"m": value})["m"]
    assert type(got) is type(value)
    assert got.dtype == value.dtype
    assert got.shape == value.shape
    assert (got.toarray() == value.toarray()).all()
    for part in PARTS[kind[:3]]:
        array = getattr(got, part)
        assert array.dtype == getattr(value, part).dtype
        assert not array.flags.writeable
        assert not array.flags.owndata


@pytest.mark.parametrize("kind", ["csr_array", "csc_matrix", "coo_array", "bsr_array"])
def test_wide_indices_stay_wide_and_zero_copy(kind, reader):
    value = matrix(kind)
    if kind == "coo_array":
        value.coords = tuple(coord.astype(np.int64) for coord in value.coords)
    else:
        value.indices, value.indptr = value.indices.astype(np.int64), value.indptr.astype(np.int64)
    got = reader(value)
    for part in PARTS[kind[:3]][1:]:
        assert getattr(got, part).dtype == np.int64
        assert not getattr(got, part).flags.owndata
    assert (got.toarray() == value.toarray()).all()


@pytest.mark.parametrize("kind", KINDS)
def test_empty_and_products(kind, reader):
    empty = getattr(sparse, kind)((3, 4))
    got = reader(empty)
    assert (got.shape, got.nnz) == ((3, 4), 0)
    value = matrix(kind)
    got = reader(value)
    assert (got @ np.ones(8) == value @ np.ones(8)).all()
    assert ((got.T @ got).toarray() == (value.T @ value).toarray()).all()


def test_one_axis_and_three(reader):
    for value in (sparse.coo_array(np.array([0, 1, 0, 2])), sparse.coo_array(np.eye(3)[None])):
        got = reader(value)
        assert got.shape == value.shape
        assert (got.toarray() == value.toarray()).all()
    row = sparse.csr_array(np.array([0.0, 1, 0, 2]))
    assert reader(row).shape == row.shape


def test_what_is_known_of_the_order_travels(reader):
    value = sparse.csr_array((np.array([1.0, 2.0]), np.array([3, 0]), np.array([0, 2])), shape=(1, 4))
    assert not value.has_sorted_indices
    got = reader(value)
    assert not got.has_sorted_indices
    assert got.toarray().tolist() == [[2, 0, 0, 1]]
    with pytest.raises(ValueError, match="read-only"):
        got.sort_indices()
    assert got.sorted_indices().has_sorted_indices


@pytest.mark.parametrize("kind", KINDS)
def test_writing_changes_nothing_for_others(kind):
    value = matrix(kind)
    with untorn.publish(value) as publisher:
        reader = publisher.subscriber()
        got = reader.snapshot().value
        for write in (lambda: got.__setitem__((0, 1), 9), lambda: got.data.__setitem__(0, 9), lambda: got.__imul__(2)):
            try:
                write()
            except (ValueError, TypeError, AttributeError, NotImplementedError):
                continue
        assert (reader.snapshot().value.toarray() == value.toarray()).all()


def test_edit_in_place():
    with untorn.publish({"m": matrix("csr_array")}) as publisher:
        with publisher.edit() as tree:
            tree["m"].data *= 2
            kept = tree["m"]
        got = publisher.subscriber().snapshot().value["m"]
        assert (got.toarray() == 2 * matrix("csr_array").toarray()).all()
        with contextlib.suppress(ValueError):
            kept.data[0] = 99
        assert (got.toarray() == 2 * matrix("csr_array").toarray()).all()
        with publisher.edit() as tree:
            tree["m"] = matrix("coo_array")
        assert type(publisher.subscriber().snapshot().value["m"]) is sparse.coo_array


def test_patch_takes_a_whole_matrix():
    with untorn.publish({"m": matrix("csr_array"), "n": 1}) as publisher:
        publisher.patch({"m": 3 * matrix("csr_array")})
        assert publisher.subscriber().snapshot().value["m"].max() == 12
        with pytest.raises(KeyError, match=r"m is a scipy.sparse.csr_array, which has no parts with names"):
            publisher.patch({"m/data": np.ones(4)})


def test_a_missing_library_is_named(monkeypatch):
    with untorn.publish({"m": matrix("csr_array")}) as publisher:
        monkeypatch.setitem(adapter_registry._LIBRARIES, "scipy", "untorn.adapters.there_is_none")
        with pytest.raises(ImportError, match=r"contains a scipy.sparse.csr_array.* cannot be imported here"):
            _ = publisher.subscriber().snapshot().value


def test_an_unknown_adapter_is_a_format_error(monkeypatch):
    with untorn.publish({"m": matrix("csr_array")}) as publisher:
        monkeypatch.setattr(adapter_registry, "_LIBRARIES", {})
        with pytest.raises(FormatError, match="does not know; a newer one may have written it"):
            _ = publisher.subscriber().snapshot().value


def test_damaged_parts_are_a_format_error(monkeypatch):
    real = adapter_registry.adapter_named("scipy.sparse.csr_array")
    broken = adapter_registry.Adapter(
        real.name, real.matches, lambda value: real.take_apart(value)._replace(meta=((1,), ())), real.put_together
    )
    adapter_registry._known[sparse.csr_array] = broken
    try:
        with (
            untorn.publish({"m": matrix("csr_array")}) as publisher,
            pytest.raises(FormatError, match=r"m: a scipy.sparse.csr_array cannot be put together"),
        ):
            _ = publisher.subscriber().snapshot().value
    finally:
        del adapter_registry._known[sparse.csr_array]


def test_an_edit_without_a_copy_begins_with_the_newest_matrix():
    with untorn.publish({"m": matrix("csr_array"), "x": np.ones(3)}) as publisher:
        for n in range(6):
            with publisher.edit(copy=False) as tree:
                assert (tree["m"].toarray() == matrix("csr_array").toarray()).all()
                tree["x"][:] = n
        value = publisher.subscriber().snapshot().value
        assert (value["m"].toarray() == matrix("csr_array").toarray()).all()
        assert value["x"].tolist() == [5, 5, 5]
