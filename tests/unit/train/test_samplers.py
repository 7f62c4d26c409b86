"""DataLoaders with a sampler or batch_sampler: their order is kept by every engine and after resuming."""

from __future__ import annotations

import random
from itertools import count

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import (
    DataLoader,
    Dataset,
    DistributedSampler,
    RandomSampler,
    Sampler,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from untorn.torch import TorchModel
from untorn.train import SGD, Callback, Trainer, weights_sha256
from untorn.train.data import batches_of, source_of

EXAMPLES = 40
Y = (np.arange(EXAMPLES) % 10 == 0).astype(np.int64)
X = np.random.default_rng(1).normal(size=(EXAMPLES, 3)).astype(np.float32)
X[:, 0] = np.arange(EXAMPLES)
TENSORS = TensorDataset(torch.from_numpy(X), torch.from_numpy(Y))
WEIGHTS = np.where(Y == 1, 9.0, 1.0)


class Items(Dataset):
    """The same examples, item by item."""

    def __len__(self):
        return EXAMPLES

    def __getitem__(self, index):
        return X[index], Y[index]


class Chance(Sampler):
    """Draws from the global random numbers."""

    def __iter__(self):
        picks = [random.randrange(EXAMPLES), np.random.randint(EXAMPLES), int(torch.randint(EXAMPLES, ()))]
        return iter(picks * 4)

    def __len__(self):
        return 12


class Own(Chance):
    """Draws from its own random numbers."""

    def __init__(self):
        self.random = np.random.default_rng(0)

    def __iter__(self):
        return iter(self.random.integers(EXAMPLES, size=12))


class Buckets(Sampler):
    """Batches of random sizes."""

    def __iter__(self):
        order = torch.randperm(EXAMPLES)
        return iter([part.tolist() for part in order.split([7, 7, 12, 5, 9])])

    def __len__(self):
        return 5


SAMPLERS = {
    "weighted": lambda: WeightedRandomSampler(WEIGHTS, EXAMPLES),
    "weighted, fewer": lambda: WeightedRandomSampler(WEIGHTS, 12, generator=torch.Generator().manual_seed(3)),
    "subset": lambda: SubsetRandomSampler(range(5, 25)),
    "with replacement": lambda: RandomSampler(TENSORS, replacement=True),
    "more than there are": lambda: RandomSampler(TENSORS, num_samples=EXAMPLES + 12),
    "distributed": lambda: DistributedSampler(TENSORS, num_replicas=2, rank=1),
    "list": lambda: [1, 3, 3, -1, 0, 9, 8, 2],
    "chance": Chance,
    "own": Own,
}


def orders(sampler, epochs=3, seed=0, resume=False):
    source = source_of("data", DataLoader(TENSORS, sampler=sampler), in_epochs=True)
    if resume:
        source.replay()
    return [source.order(seed, epoch, shuffle=True).tolist() for epoch in epochs]


@pytest.mark.parametrize("name", SAMPLERS)
def test_an_order_depends_on_the_seed_and_the_epoch_alone(name):
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    every = orders(SAMPLERS[name](), range(3))
    assert states == (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())
    torch.manual_seed(5)
    random.seed(5)
    assert orders(SAMPLERS[name](), [2], resume=True) == every[2:]
    if name != "list":
        assert every[0] != every[1]
    if name in ("weighted", "chance"):
        assert orders(SAMPLERS[name](), range(3), seed=1) != every


def test_a_generator_of_its_own_gives_what_it_gives_in_a_plain_loop():
    sampler = WeightedRandomSampler(WEIGHTS, 12, generator=torch.Generator().manual_seed(3))
    assert orders(SAMPLERS["weighted, fewer"](), range(3)) == [list(sampler) for _ in range(3)]


def test_the_epoch_is_set():
    sampler = SAMPLERS["distributed"]()
    expected = []
    for epoch in (4, 5):
        sampler.set_epoch(epoch)
        expected.append(list(sampler))
    assert orders(sampler, [4, 5]) == expected


class Recording(Callback):
    def __init__(self):
        self.positive = []

    def on_epoch_end(self, epoch, logs):
        self.positive.append(logs["positive"])


def trained(data, tmp_path=None, *, epochs=2, cut=True, **arguments):
    torch.manual_seed(0)
    model = TorchModel(
        nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.2), nn.Linear(4, 2)),
        nn.CrossEntropyLoss(),
        metrics={"positive": lambda outputs, target: target.float().mean()},
    )
    recording = Recording()
    with Trainer(model, optimizer=SGD(0.01), shards=2, **arguments) as trainer:
        trainer.fit(
            data, epochs=epochs, callbacks=[recording], checkpoint_dir=tmp_path, resume=tmp_path is not None,
            **({"batch_size": 8} if cut else {}),
        )  # fmt: skip
        return weights_sha256(trainer.params), recording.positive


def test_rare_classes_are_as_frequent_as_the_weights_say_and_workers_give_the_same_bits(tmp_path):
    def loader(dataset=TENSORS):
        return DataLoader(dataset, sampler=WeightedRandomSampler(WEIGHTS, EXAMPLES))

    expected, positive = trained(loader(), engine="serial")
    assert all(0.3 < share < 0.7 for share in positive)
    assert trained(loader(Items()), workers=2)[0] == expected
    trained(loader(), tmp_path, epochs=1, engine="serial")
    assert trained(loader(), tmp_path, epochs=2, engine="serial")[0] == expected


def test_batches_of_a_batch_sampler_are_its_own(tmp_path):
    def loader():
        return DataLoader(Items(), batch_sampler=Buckets())

    expected, _ = trained(loader(), engine="serial", cut=False)
    trained(loader(), tmp_path, epochs=1, engine="serial", cut=False)
    assert trained(loader(), tmp_path, epochs=2, engine="serial", cut=False)[0] == expected
    batches = batches_of(loader())
    batches.begin(0, limit=None, replay=False)
    batches.set_epoch(0)
    assert [len(y) for _, y in batches] == [7, 7, 12, 5, 9]
    with pytest.raises(ValueError, match="leave batch_size out"):
        trained(loader(), engine="serial")


def test_an_endless_batch_sampler_is_read_as_far_as_an_epoch_goes():
    class Endless(Buckets):
        def __iter__(self):
            return ([number % EXAMPLES] for number in count())

    batches = batches_of(DataLoader(Items(), batch_sampler=Endless()))
    batches.begin(0, limit=3, replay=False)
    batches.set_epoch(0)
    assert [int(x[0, 0]) for x, _ in batches] == [0, 1, 2]


@pytest.mark.parametrize(
    ("options", "expected"),
    [({"sampler": [3, 3, 1]}, [3, 3, 1]), ({"batch_sampler": [[4], [5, 0]]}, [4, 5, 0])],
)
def test_what_is_evaluated_is_what_is_chosen_once(options, expected):
    source = source_of("data", DataLoader(TENSORS, **options))
    assert source.examples == 3
    assert source.take(np.array([0, 1, 2]))[0][:, 0].tolist() == expected


class Lying(Chance):
    def __init__(self, length, given):
        self.length, self.given = length, given

    def __iter__(self):
        return iter(self.given)

    def __len__(self):
        return self.length


class Endless(Sampler):
    def __iter__(self):
        return count()


@pytest.mark.parametrize(
    ("sampler", "error", "message"),
    [
        (Lying(3, [1, 2]), ValueError, "has len() 3, but yielded 2 indices"),
        (Lying(1, [1, 2]), ValueError, "has len() 1, but yielded more indices"),
        (Lying(2, [1, EXAMPLES]), ValueError, "yielded index 40, with only 40 examples"),
        (Lying(1, ["a"]), TypeError, "yielded 'a'; expected an index"),
        (Endless(), TypeError, "iterable of batches"),
    ],
)
def test_what_a_sampler_does_wrong_is_named(sampler, error, message):
    with pytest.raises(error) as caught:
        orders(sampler, [0])
    assert message in str(caught.value)
