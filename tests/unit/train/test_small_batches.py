"""Batch normalization and batches with fewer than two examples for each shard."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

from untorn import WorkerError
from untorn.torch import TorchModel
from untorn.train import SGD, Trainer, weights_sha256
from untorn.train.data.sampler import shard_bounds

X = np.random.default_rng(0).normal(size=(41, 6)).astype(np.float32)
Y = (X.sum(1) > 0).astype(np.int64)


def normalised():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))


def spatial():
    """A model in which one example has many values of each channel."""
    torch.manual_seed(0)
    features = nn.Sequential(nn.Unflatten(1, (1, 2, 3)), nn.Conv2d(1, 2, 2), nn.BatchNorm2d(2), nn.Flatten())
    return nn.Sequential(features, nn.Linear(4, 2))


def trained(examples, *, module=normalised, batch_size=8, drop_last=False, data=None, loss=None, shards=4, **arguments):
    arguments = {"engine": "serial"} | arguments
    model = TorchModel(module(), loss or nn.CrossEntropyLoss())
    with Trainer(model, optimizer=SGD(0.1), shards=shards, **arguments) as trainer:
        try:
            cut = {} if data else {"batch_size": batch_size, "shuffle": False, "drop_last": drop_last}
            trainer.fit(data or (X[:examples], Y[:examples]), epochs=1, **cut)
        finally:
            steps = trainer.step
        return trainer.params, steps


@pytest.mark.parametrize(
    ("size", "expected"), [(8, [2] * 4), (7, [2, 2, 3]), (5, [2, 3]), (3, [3]), (2, [2]), (1, [1])]
)
def test_a_small_batch_is_cut_into_fewer_shards(size, expected):
    sizes = {"shards": 4, "examples": 8 + size, "batch_size": 8}
    bounds = [shard_bounds(1, shard, **sizes, min_examples=2) for shard in range(4)]
    assert [stop - start for start, stop in bounds if stop > start] == expected
    assert bounds[0][0] == 8
    assert all(one[1] == other[0] for one, other in pairwise(bounds))
    assert bounds[-1][1] == 8 + size
    assert [shard_bounds(0, shard, **sizes, min_examples=2) for shard in range(4)] == [(0, 2), (2, 4), (4, 6), (6, 8)]


@pytest.mark.parametrize("examples", [40 - 8 + left for left in (2, 3, 5, 7)])
def test_what_a_plain_loop_trains_is_trained(examples):
    _, steps = trained(examples)
    assert steps == 5


def test_shards_of_two_are_those_of_a_plain_loop():
    module = normalised()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    optimizer.zero_grad()
    for part, share in ((slice(0, 2), 2 / 5), (slice(2, 5), 3 / 5)):
        (share * nn.functional.cross_entropy(module(torch.from_numpy(X[part])), torch.from_numpy(Y[part]))).backward()
    optimizer.step()
    params, _ = trained(5)
    for name, parameter in module.named_parameters():
        np.testing.assert_allclose(params[name], parameter.detach().numpy(), rtol=1e-5, atol=1e-6)


def test_workers_give_the_same_bits():
    assert weights_sha256(trained(37, workers=2)[0]) == weights_sha256(trained(37)[0])


@pytest.mark.parametrize(
    ("examples", "options", "message"),
    [
        (41, {}, "data: 41 examples in batches of 8 leave a last batch of one, and the model cannot be trained on one"),
        (41, {"shards": 1}, "drop_last=True"),
        (4, {"batch_size": 1}, "batch_size is 1"),
        (0, {"data": [[X[:8], Y[:8]], [X[:1], Y[:1]]]}, "a batch has a single example"),
        (9, {"mode": "async", "shards": None, "workers": 1, "engine": "serial"}, "drop_last=True"),
    ],
)
def test_a_single_example_is_refused_before_the_first_step(examples, options, message):
    if "data" in options:
        options = {"data": Stream(options["data"])}
    with pytest.raises(ValueError) as caught:
        trained(examples, **options)
    assert message in str(caught.value)
    assert "Expected more than 1 value per channel" in str(caught.value)


class Stream:
    """An iterable of batches, and nothing else."""

    def __init__(self, batches):
        self.batches = batches

    def __iter__(self):
        return iter(self.batches)


def test_drop_last_leaves_it_out():
    assert trained(41, drop_last=True)[1] == 5


def test_batches_of_a_stream_are_cut_likewise():
    batches = [[X[:8], Y[:8]], [X[8:13], Y[8:13]]]
    assert weights_sha256(trained(0, data=Stream(batches))[0]) == weights_sha256(trained(13)[0])


def test_parts_of_accumulated_gradients_have_two_examples():
    assert trained(37, shards=2, accumulate=3)[1] == 5


def test_one_example_is_enough_where_a_plain_loop_trains_it():
    assert trained(41, module=spatial)[1] == 6


def test_nothing_is_tried_where_it_does_not_matter():
    def loss(outputs, target):
        sizes.append(len(target))
        return nn.functional.cross_entropy(outputs, target)

    sizes = []
    trained(41, module=lambda: nn.Linear(6, 2), loss=loss)
    assert sum(sizes) == 41
    sizes.clear()
    trained(40, loss=loss)
    assert sum(sizes) == 40


def test_what_fails_anyway_is_told_by_the_worker():
    def loss(outputs, target):
        raise KeyError("mine")

    with pytest.raises(WorkerError, match="KeyError: 'mine'"):
        trained(37, loss=loss)


def test_trying_changes_no_random_number_and_no_buffer():
    module = normalised()
    torch.manual_seed(4)
    before = torch.get_rng_state()
    with Trainer(TorchModel(module, nn.CrossEntropyLoss()), optimizer=SGD(0.1), engine="serial", shards=4) as t:
        with pytest.raises(ValueError, match="drop_last"):
            t.fit((X, Y), epochs=1, batch_size=8)
        assert int(t.params["1.num_batches_tracked"]) == 0
    assert torch.equal(torch.get_rng_state(), before)
