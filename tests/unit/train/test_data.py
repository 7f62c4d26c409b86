"""Arrays as data: accepted and refused values, the cutting into batches, and mapped files."""

import os
import pickle
from collections import OrderedDict
from typing import NamedTuple

import numpy as np
import pytest

from untorn.train.data import chunks, files, source_of
from untorn.train.data.files import mapped_file


class Pair(NamedTuple):
    x: np.ndarray
    y: np.ndarray


X, Y = np.arange(12.0).reshape(6, 2), np.arange(6)
TAKEN = np.array([4, 1, 1])


@pytest.mark.parametrize("data", [X, (X, Y), [X, Y], {"x": X, "y": Y}, Pair(X, Y), {"in": (X, [Y]), "y": Y}])
def test_trees_of_arrays_are_data(data):
    assert source_of("data", data).examples == 6


class Strings:
    """An object that converts to an array, such as a text column of a table."""

    def __array__(self, dtype=None, copy=None):
        return np.array(["a", "b", None, "c", "d", "e"], object)


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        ((X, Y[:5]), ValueError, "data[1] has 5 examples and data[0] has 6"),
        ({"x": X, "y": Y[:1]}, ValueError, "data['y'] has 1 examples and data['x'] has 6"),
        ({"x": X, "y": (Y, Y[:2])}, ValueError, "data['y'][1] has 2 examples"),
        ((), ValueError, "data: found no arrays"),
        ({}, ValueError, "data: found no arrays"),
        ((X[:0], Y[:0]), ValueError, "data: expected at least one example"),
        ((X, np.array(3.0)), ValueError, "data[1]: found a single number"),
        ((X, [*np.ones(6)]), TypeError, "data[1][0]: expected a NumPy array"),
        ((X, [1, 2, 3]), TypeError, "data[1][0]: expected a NumPy array"),
        (
            (X, "labels"),
            TypeError,
            "data[1]: expected a NumPy array, or a tuple, list or dict of them, found builtins.str",
        ),
        ((X, range(6)), TypeError, "give a dataset by itself"),
        ((X, np.array([1, None], object)), TypeError, "data[1]: expected numbers, found dtype object"),
        ((X, Strings()), TypeError, "data[1]: expected numbers, found dtype object"),
        (None, TypeError, "found builtins.NoneType"),
        (3.5, TypeError, "found builtins.float"),
        ("examples", TypeError, "found builtins.str"),
    ],
)
def test_what_is_wrong_is_named(data, error, message):
    with pytest.raises(error) as caught:
        source_of("data", data)
    assert message in str(caught.value)


def test_chunks_cover_all_in_order():
    parts = list(chunks(10, 4))
    assert [len(part) for part in parts] == [4, 4, 2]
    assert np.concatenate(parts).tolist() == list(range(10))


@pytest.mark.parametrize("data", [X, (X, Y), [X, Y], {"x": X, "y": Y}, Pair(X, Y)])
def test_taken_examples_keep_the_tree(data):
    taken = source_of("data", data).take(TAKEN)
    assert type(taken) is type(data)
    x = taken["x"] if isinstance(data, dict) else taken if isinstance(data, np.ndarray) else taken[0]
    assert x.tolist() == [[8, 9], [2, 3], [2, 3]]
    assert not np.shares_memory(x, X)


def test_an_ordered_dict_is_a_dict():
    assert list(source_of("data", OrderedDict(b=X, a=Y)).take(TAKEN)) == ["b", "a"]


# -- data of other libraries


def test_tensors_become_arrays_without_a_copy():
    torch = pytest.importorskip("torch")
    x = torch.from_numpy(X.copy()).requires_grad_()
    assert type(source_of("data", (x, Y)).take(TAKEN)[0]) is np.ndarray
    with pytest.raises(TypeError, match=r"data\[0\]: found a torch.Tensor that cannot be converted to a NumPy array"):
        source_of("data", (torch.zeros(6, dtype=torch.bfloat16), Y))


def test_tables_of_numbers_become_arrays():
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"a": Y, "b": Y * 0.5})
    x, y = source_of("data", (frame, frame["a"])).take(TAKEN)
    assert x.tolist() == [[4, 2], [1, 0.5], [1, 0.5]]
    assert y.tolist() == [4, 1, 1]
    with pytest.raises(TypeError, match=r"data\[0\]: expected numbers, found dtype object"):
        source_of("data", (frame.assign(c="text"), Y))


def test_a_sparse_matrix_is_refused_with_what_to_do():
    sparse = pytest.importorskip("scipy.sparse")
    with pytest.raises(TypeError, match=r"data\[0\]: found a sparse .*toarray"):
        source_of("data", (sparse.csr_array(X), Y))


# -- files


@pytest.fixture
def file(tmp_path):
    """Return a .npy file of X in this memory order."""
    path = tmp_path / "x.npy"
    np.save(path, X)
    return path


def cuts(array):
    return {
        "whole": array,
        "as an array": np.asarray(array),
        "rows": array[2:],
        "every other row": array[::2],
        "backwards": array[::-1],
        "a column": array[:, 1],
        "transposed": array.T,
    }


@pytest.mark.parametrize("mode", ["r", "r+"])
@pytest.mark.parametrize("cut", cuts(X))
def test_a_mapped_file_is_mapped_again(file, mode, cut):
    array = cuts(np.load(file, mmap_mode=mode))[cut]
    found = mapped_file(array)
    assert found is not None
    again = pickle.loads(pickle.dumps(found)).open()
    assert again.tolist() == array.tolist()
    assert not again.flags.writeable
    assert again.strides == array.strides


def test_fortran_order_and_an_offset(tmp_path):
    np.asfortranarray(X).tofile(tmp_path / "raw")  # tofile writes C order for an array in any order
    raw = np.memmap(tmp_path / "raw", np.float64, "r", offset=16, shape=(5, 2), order="F")
    assert mapped_file(raw).open().tolist() == raw.tolist() == X.ravel()[2:].reshape(2, 5).T.tolist()


def test_what_is_not_in_the_file_is_copied(file):
    private = np.load(file, mmap_mode="c")
    private[0] = 7
    assert mapped_file(private) is None
    assert mapped_file(X) is None
    assert mapped_file(np.load(file, mmap_mode="r") + 0) is None
    assert mapped_file(np.load(file, mmap_mode="r")[TAKEN]) is None


@pytest.mark.parametrize("replaced", [True, False])
def test_a_file_that_is_no_longer_there_is_copied(file, replaced):
    array = np.load(file, mmap_mode="r")
    if replaced:
        np.save(file.with_name("new.npy"), X + 1)
        os.replace(file.with_name("new.npy"), file)
    else:
        file.unlink()
    assert mapped_file(array) is None


def test_a_file_that_is_replaced_later_is_an_error(file):
    found = mapped_file(np.load(file, mmap_mode="r"))
    os.replace(file, file.with_name("old.npy"))
    np.save(file, X + 1)
    with pytest.raises(OSError, match="was replaced during training"):
        found.open()


@pytest.mark.parametrize("nbytes", ["one less", "none"])
def test_a_file_that_is_cut_short_later_is_an_error(file, nbytes):
    found = mapped_file(np.load(file, mmap_mode="r"))
    os.truncate(file, file.stat().st_size - 1 if nbytes == "one less" else 0)
    with pytest.raises(OSError, match="was cut short during training"):
        found.open()


def test_only_what_is_no_file_is_published(file):
    source = source_of("data", (np.load(file, mmap_mode="r"), Y))
    with source.shared(max_readers=4, local=True) as shared:
        assert shared.channel.snapshot().value[0] is None
        x, y = shared.open().take(TAKEN)
        assert x.tolist() == X[TAKEN].tolist()
        assert y.tolist() == Y[TAKEN].tolist()


@pytest.fixture
def elsewhere(monkeypatch):
    """Make the next calls of open() those of another machine."""

    def move():
        monkeypatch.setattr(files, "_place", lambda: ("another machine", 1))

    return move


def mapped(path, rows):
    np.save(path, rows)
    found = files.mapped_file(np.load(path, mmap_mode="r"))
    assert found is not None
    return found


def test_another_machine_may_have_a_copy_of_a_mapped_file(tmp_path, elsewhere):
    rows = np.arange(400_000.0).reshape(-1, 4)
    found = mapped(tmp_path / "rows.npy", rows)
    copy = tmp_path / "copy.npy"
    copy.write_bytes((tmp_path / "rows.npy").read_bytes())
    os.replace(copy, tmp_path / "rows.npy")
    with pytest.raises(OSError, match="was replaced during training"):
        found.open()
    elsewhere()
    assert (found.open() == rows).all()


@pytest.mark.parametrize("change", ["longer", "first byte", "last byte", "gone"])
def test_another_file_on_another_machine_is_refused(tmp_path, elsewhere, change):
    path = tmp_path / "rows.npy"
    found = mapped(path, np.arange(400_000.0).reshape(-1, 4))
    content = bytearray(path.read_bytes())
    if change == "longer":
        content += b"0"
    else:
        content[0 if change == "first byte" else -1] ^= 1
    path.write_bytes(content)
    if change == "gone":
        path.unlink()
    elsewhere()
    with pytest.raises(OSError, match=r"rows\.npy") as caught:
        found.open()
    if change != "gone":
        assert "is another one than the driver's" in str(caught.value)
