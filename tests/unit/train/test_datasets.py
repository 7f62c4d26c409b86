"""Datasets as data: items, their collation into batches, DataLoaders, and errors."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest

from untorn.train.data import Examples, source_of

torch = pytest.importorskip("torch")

from torch.utils.data import (  # noqa: E402
    DataLoader,
    Dataset,
    IterableDataset,
    Subset,
    TensorDataset,
    default_collate,
)

TAKEN = np.array([4, 1, 1])


class Items:
    """A dataset whose item is a function of its index."""

    def __init__(self, make, length=6):
        self.make = make
        self.length = length

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        assert type(index) is int
        return self.make(index)


class Point(NamedTuple):
    x: np.ndarray
    y: int


KINDS = {
    "numbers": lambda i: i,
    "float, int": lambda i: (0.5 * i, i),
    "arrays": lambda i: (np.full(3, i, np.float32), np.int64(i)),
    "tensors": lambda i: (torch.full((2, 2), i), torch.tensor(i), bool(i % 2)),
    "a dict": lambda i: {"x": torch.full((2,), 0.5 * i), "more": {"y": i, "z": [np.ones(2), i]}},
    "a named tuple": lambda i: Point(np.arange(i, i + 3), i),
}


def leaves(tree):
    if isinstance(tree, dict):
        return [leaf for part in tree.values() for leaf in leaves(part)]
    return [leaf for part in tree for leaf in leaves(part)] if isinstance(tree, tuple | list) else [tree]


@pytest.mark.parametrize("kind", KINDS)
def test_items_are_put_together_as_torch_does_it(kind):
    items = Items(KINDS[kind])
    batch = source_of("data", items).take(TAKEN)
    first = items[0]
    assert type(batch) is (type(first) if isinstance(first, tuple | dict) else np.ndarray)
    expected = leaves(default_collate([items[int(i)] for i in TAKEN]))
    assert all(type(leaf) is np.ndarray for leaf in leaves(batch))
    assert [(a.dtype, a.tolist()) for a in leaves(batch)] == [(b.numpy().dtype, b.tolist()) for b in expected]


def test_a_list_of_numbers_is_a_row():
    batch = source_of("data", Items(lambda i: {"ids": [i, 2, 3], "image": [[i, 1], [2, 3]]})).take(TAKEN)
    assert batch["ids"].shape == (3, 3)
    assert batch["image"].shape == (3, 2, 2)


def test_a_list_of_examples_is_a_dataset_by_examples():
    x, y = source_of("data", Examples([(np.ones(2), 0), (np.zeros(2), 1)])).take(np.array([1, 0]))
    assert x.tolist() == [[0, 0], [1, 1]]
    assert y.tolist() == [1, 0]


def test_getitems_is_asked_for_all_at_once():
    class Table(Items):
        def __getitems__(self, indices):
            asked.append(indices)
            return [self.make(index) for index in indices]

    asked = []
    assert source_of("data", Table(lambda i: (i, -i))).take(TAKEN)[1].tolist() == [-4, -1, -1]
    assert asked == [[4, 1, 1]]
    table = Table(lambda i: i)
    table.__class__.__getitems__ = lambda self, indices: [0]
    with pytest.raises(ValueError, match="__getitems__ returned 1 items for 3 indices"):
        source_of("data", table).take(TAKEN)


def test_a_collate_fn_makes_the_batch():
    ragged = Items(torch.arange)
    examples = Examples(ragged, lambda items: {"x": torch.nn.utils.rnn.pad_sequence(items, batch_first=True), "n": 3})
    batch = source_of("data", examples).take(np.array([1, 3]))
    assert type(batch["x"]) is np.ndarray
    assert batch["x"].tolist() == [[0, 0, 0], [0, 1, 2]]
    assert batch["n"] == 3


# -- errors


def but_for_one(good, bad):
    return Items(lambda i: bad if i == 1 else good)


@pytest.mark.parametrize(
    ("items", "error", "message"),
    [
        (but_for_one(np.zeros(3), np.zeros(2)), ValueError, "data[1] is float64 of shape (2,), and data[4] is float64"),
        (but_for_one((1, 2.5), (1, 2)), ValueError, "data[1][1] is int64 of shape (), and data[4][1] is float64"),
        (but_for_one((1, 2), (1, 2, 3)), ValueError, "data[1] is a tuple of 3 parts, and data[4] is a tuple of 2"),
        (but_for_one((1, 2), 3), ValueError, "data[1] is a int, and data[4] is a tuple of 2 parts"),
        (but_for_one({"x": 1}, {"y": 1}), ValueError, "data[1] is a dict of 'y', and data[4] is a dict of 'x'"),
        (Items(lambda i: (i, "text")), TypeError, "data[4][1]: expected a number, an array, a tensor"),
        (Items(lambda i: {"x": None}), TypeError, "data[4]['x']: expected a number"),
        (Items(lambda i: np.str_("text")), TypeError, "data[4]: expected numbers, found"),
        (Items(lambda i: 2**70), TypeError, "data[4]: expected numbers, found 1180591620717411303424"),
        (Items(lambda i: [[1, 2], [3]]), ValueError, "data[4]: found lists of different lengths"),
        (Items(lambda i: {}[i]), RuntimeError, "data[4]: KeyError: 4"),
    ],
)
def test_an_item_that_does_not_fit_is_named(items, error, message):
    with pytest.raises(error) as caught:
        source_of("data", items).take(TAKEN)
    assert message in str(caught.value)


def test_an_error_in_a_collate_fn_names_the_examples():
    with pytest.raises(
        RuntimeError, match=r"collate_fn: ZeroDivisionError: .*examples data\[4\], data\[1\], data\[1\]"
    ):
        source_of("data", Examples(Items(int), lambda items: 1 / 0)).take(TAKEN)


class Stream(IterableDataset):
    def __iter__(self):
        return iter(())


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        (Items(int, length=0), ValueError, "data: expected at least one example"),
        (iter([(1, 2)]), TypeError, "data: a builtins.list_iterator can only be read from its beginning"),
        (Stream(), TypeError, "yields single examples; expected batches: torch.utils.data.DataLoader("),
        (DataLoader(Stream()), TypeError, "DataLoader can only be read from its beginning, which only fit supports"),
        (Dataset(), TypeError, "or a dataset with len() and [index], found torch"),
        (Items, TypeError, "found builtins.type"),
    ],
    ids=["no items", "an iterator", "a stream", "a loader of a stream", "no length", "a class"],
)
def test_data_that_is_none_is_refused(data, error, message):
    with pytest.raises(error) as caught:
        source_of("data", data)
    assert message in str(caught.value)


def test_examples_are_checked():
    with pytest.raises(TypeError, match="items: expected len"):
        Examples(iter([]))
    with pytest.raises(TypeError, match="collate_fn: expected a function, found str"):
        Examples([1], "pad")


# -- DataLoaders


@pytest.mark.parametrize("options", [{}, {"shuffle": True}, {"batch_size": 4, "drop_last": True}, {"batch_size": None}])
def test_of_a_loader_the_dataset_is_taken(options):
    loader = DataLoader(Items(KINDS["tensors"]), **options)
    assert source_of("data", loader).take(TAKEN)[1].tolist() == [4, 1, 1]


def test_the_collate_fn_of_a_loader_is_its_own():
    loader = DataLoader(Items(int), collate_fn=lambda items: torch.tensor(items) + 100)
    assert source_of("data", loader).take(TAKEN).tolist() == [104, 101, 101]


def test_a_tensor_dataset_is_its_tensors():
    dataset = TensorDataset(torch.arange(12.0).reshape(6, 2), torch.arange(6))
    for data in (dataset, DataLoader(dataset, batch_size=2)):
        x, y = source_of("data", data).take(TAKEN)
        assert x.tolist() == [[8, 9], [2, 3], [2, 3]]
        assert y.tolist() == [4, 1, 1]
    assert source_of("data", Subset(dataset, [5, 0])).take(np.array([1, 0]))[1].tolist() == [0, 5]


# -- sent to workers


class Held(Dataset):
    """Holds its examples in memory, and counts the reads."""

    def __init__(self):
        self.x = np.arange(60_000.0).reshape(6, -1)
        self.y = torch.arange(6)
        self.read = np.zeros(6, np.int64)

    def __len__(self):
        return 6

    def __getitem__(self, index):
        self.read[index] += 1
        return torch.from_numpy(self.x[index]), self.y[index], self.read[index]


def test_a_sent_dataset_reads_and_writes_its_own_memory():
    source = source_of("data", Held())
    with source.shared(max_readers=4, local=False) as shared:
        first, second = shared.open(), shared.open()
        assert first.take(TAKEN)[2].tolist() == [1, 1, 2]
        assert second.take(TAKEN)[2].tolist() == [1, 1, 2]
        assert first.take(TAKEN)[0].tolist() == Held().x[TAKEN].tolist()
        stream, *arrays = shared.channel.snapshot().value
        assert len(stream) < 1000
        assert sorted(array.nbytes for array in arrays) == [48, 48, 480_000]


def test_what_plain_pickle_cannot_send():
    pytest.importorskip("cloudpickle")
    offset = 100
    with source_of("data", Items(lambda i: i + offset)).shared(max_readers=4, local=False) as shared:
        assert shared.open().take(TAKEN).tolist() == [104, 101, 101]


def test_a_dataset_that_cannot_be_sent_says_why(tmp_path):
    items = Items(int)
    with open(tmp_path / "examples", "w") as items.file:
        sent = source_of("data", items).shared(max_readers=4, local=False)
        with pytest.raises(TypeError, match=r"data: the dataset cannot be sent .*open files.*in __getitem__"), sent:
            pass
        with source_of("data", items).shared(max_readers=4, local=True) as shared:  # the serial engine sends nothing
            assert shared.open().take(TAKEN).tolist() == [4, 1, 1]
