"""Tables: embeddings with sparse gradients, of which an update changes the rows that a batch reaches.

==================================  ===================================================================================
SGD, Adagrad                        the bits of ``sparse=False``: a row without a gradient stays in any case
SparseAdam, Adagrad, SGD of torch   a plain loop's weights, to rounding
Adam                                a plain loop's steps for the rows that it reaches; the others keep their bits
momentum, decay, other libraries    the bits of ``sparse=False``
==================================  ===================================================================================
"""

from __future__ import annotations

import functools
import os
import signal

import numpy as np
import pytest

pytest.importorskip("torch")

import torch
from torch import nn

from untorn import SGD, Adagrad, Adam, AdamW, LocalSteps, RMSprop, Trainer
from untorn.torch import TorchModel
from untorn.train import Callback, weights_sha256
from untorn.train.data.sampler import epoch_order

SEED, BATCH, EXAMPLES, ROWS = 5, 16, 160, 300
SPARSE_ADAM = functools.partial(torch.optim.SparseAdam, lr=0.01)


pytestmark = pytest.mark.usefixtures("one_torch_thread")


class Words(nn.Module):
    """Tables: for words, for bags of words, one of float64, and one that only some batches reach. The first two may be
    one; torch sums the gradient of an EmbeddingBag in another order if it is dense, so then it is an EmbeddingBag."""

    def __init__(self, sparse: bool, shared: bool) -> None:
        super().__init__()
        self.words = nn.Embedding(ROWS, 7, sparse=sparse)
        self.shared = shared
        self.bags = nn.Embedding(ROWS, 7, sparse=sparse)
        if shared:
            self.bags = nn.EmbeddingBag(ROWS, 7, mode="sum", sparse=sparse)
            self.bags.weight = self.words.weight
        self.rare = nn.Embedding(ROWS, 7, sparse=sparse)
        self.wide = nn.Embedding(65, 2, sparse=sparse, dtype=torch.float64)

    def forward(self, x):
        bags = self.bags(x[:, 1:4])
        found = self.words(x[:, 0]) * (bags if self.shared else bags.sum(1))
        if x[:, 0].max() > ROWS - 20:
            found = found + self.rare(x[:, 1])
        return found.sum(1) + self.wide(x[:, 2] % 65).sum(1)


def made(sparse: bool = True, *, shared: bool = False) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Words(sparse, shared)


@functools.cache
def data() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    return rng.zipf(1.3, (EXAMPLES, 4)) % ROWS, rng.normal(size=EXAMPLES)


def trained(optimizer, *, sparse=True, epochs=2, callbacks=(), module=None, x=None, **arguments):
    arguments = {"engine": "serial", "shards": 1, "seed": SEED} | arguments
    if "workers" in arguments:
        del arguments["engine"]
    model = TorchModel(module or made(sparse), nn.functional.mse_loss)
    with Trainer(model, optimizer=optimizer, **arguments) as trainer:
        trainer.fit((data()[0] if x is None else x, data()[1]), epochs=epochs, batch_size=BATCH, callbacks=callbacks)
        return {name: np.array(value) for name, value in trainer.params.items()}


def plain_loop(make, *, epochs=2) -> dict[str, np.ndarray]:
    module, (x, y) = made(shared=True), map(torch.from_numpy, data())
    optimizer = make(list(module.parameters()))
    used = 0
    for epoch in range(epochs):
        for indices in torch.from_numpy(epoch_order(SEED, epoch, EXAMPLES)).split(BATCH):
            optimizer.zero_grad()
            nn.functional.mse_loss(module(x[indices]), y[indices]).backward()
            used += module.rare.weight.grad is not None
            optimizer.step()
    assert 0 < used < epochs * EXAMPLES // BATCH
    return {name: tensor.numpy() for name, tensor in module.state_dict().items()}


def assert_same(found, expected):
    for name in expected.keys() & found.keys():
        np.testing.assert_array_equal(found[name], expected[name], err_msg=name)


PAIRS = {
    "sgd": (SGD(0.1), functools.partial(torch.optim.SGD, lr=0.1)),
    "adagrad": (
        Adagrad(0.05, lr_decay=0.01, initial_accumulator_value=0.1),
        functools.partial(torch.optim.Adagrad, lr=0.05, lr_decay=0.01, initial_accumulator_value=0.1),
    ),
    "SparseAdam": (SPARSE_ADAM, SPARSE_ADAM),
    "a large eps": (functools.partial(torch.optim.SparseAdam, lr=0.05, betas=(0.8, 0.9), eps=0.1),) * 2,
}


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")  # torch's own Adagrad
@pytest.mark.parametrize("name", PAIRS)
def test_a_step_is_that_of_a_plain_loop(name):
    ours, theirs = PAIRS[name]
    expected = plain_loop(theirs)
    for key, found in trained(ours, module=made(shared=True)).items():
        np.testing.assert_allclose(found, expected[key], rtol=2e-4, atol=2e-5, err_msg=key)


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize(
    "optimizer",
    [SGD(0.1), Adagrad(0.05), SGD(0.1, momentum=0.9), AdamW(0.01), RMSprop(0.01), Adam(0.01, weight_decay=0.1)],
    ids=repr,
)
def test_rows_have_the_bits_of_dense_gradients(optimizer, shards):
    assert_same(trained(optimizer, shards=shards), trained(optimizer, sparse=False, shards=shards))


def test_async_training_has_the_bits_of_dense_gradients():
    options = {"mode": "async", "max_staleness": 0, "shards": None}
    assert_same(trained(SGD(0.1), **options), trained(SGD(0.1), sparse=False, **options))


@pytest.mark.parametrize("options", [{"clip_norm": 0.1}, {"accumulate": 3}], ids=str)
def test_other_sums_differ_by_rounding(options):
    """Squares are summed by ranges, and those of a table are others; parts of a shard are added row by row."""
    found, expected = (trained(SGD(0.1), shards=2, sparse=sparse, **options) for sparse in (True, False))
    for name, each in found.items():
        np.testing.assert_allclose(each, expected[name], rtol=1e-4, atol=1e-6, err_msg=name)


def test_an_optimizer_of_another_library_gets_dense_gradients():
    optimizer = functools.partial(torch.optim.NAdam, lr=0.01)
    assert_same(trained(optimizer, shards=2), trained(optimizer, sparse=False, shards=2))


def test_groups_of_local_steps_get_dense_gradients():
    optimizer = LocalSteps(Adam(0.01), steps=2)
    assert_same(trained(optimizer, shards=2), trained(optimizer, sparse=False, shards=2))


def test_adam_leaves_rows_without_a_gradient_as_they_are():
    x = data()[0] % 100
    found, begun = trained(Adam(0.01, amsgrad=True), x=x), made().state_dict()
    reached = np.isin(np.arange(ROWS), x[:, 0])
    changed = (found["words.weight"] != begun["words.weight"].numpy()).any(1)
    assert (changed == reached).all()
    assert 20 < changed.sum() < 100


def test_adam_makes_dense_steps_if_every_row_has_a_gradient():
    """Of 65 rows, of which some are in each of two words of a set."""
    x = np.arange(EXAMPLES * 4).reshape(EXAMPLES, 4) % 65

    def trained_on_all(sparse):
        torch.manual_seed(0)
        module = nn.Sequential(nn.Embedding(65, 7, sparse=sparse), nn.Flatten(), nn.Linear(28, 1), nn.Flatten(0))
        with Trainer(TorchModel(module, nn.functional.mse_loss), optimizer=Adam(0.01), shards=2, engine="serial") as t:
            t.fit((x, data()[1]), epochs=4, batch_size=EXAMPLES)
            return {name: np.array(value) for name, value in t.params.items()}

    assert_same(trained_on_all(sparse=True), trained_on_all(sparse=False))


class Tied(nn.Module):
    """A table that forward also multiplies with, so that its gradient is dense: in all batches, or in some."""

    def __init__(self, sparse: bool, above: int) -> None:
        super().__init__()
        self.words, self.above = nn.Embedding(ROWS, 7, sparse=sparse), above

    def forward(self, x):
        found = self.words(x[:, 0])
        if x.max() > self.above:
            return (found @ self.words.weight.T).mean(1)
        return found.sum(1)


@pytest.mark.parametrize("above", [-1, ROWS - 10])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_gradient_may_be_dense_now_and_then(above, accumulate):
    torch.manual_seed(0)
    ones = Tied(True, above).state_dict()["words.weight"]

    def trained_tied(sparse):
        module = Tied(sparse, above)
        module.load_state_dict({"words.weight": ones})
        return trained(SGD(0.5), module=module, shards=3, accumulate=accumulate)

    assert_same(trained_tied(sparse=True), trained_tied(sparse=False))


def test_a_checkpoint_and_single_steps_continue_with_the_same_bits(tmp_path):
    expected = trained(SPARSE_ADAM, shards=2, epochs=3)
    for epochs in (1, 3):
        model = TorchModel(made(), nn.functional.mse_loss)
        with Trainer(model, optimizer=SPARSE_ADAM, shards=2, seed=SEED, engine="serial") as trainer:
            trainer.fit(data(), epochs=epochs, batch_size=BATCH, checkpoint_dir=tmp_path, resume=epochs == 3)
            found = trainer.params
    assert_same(found, expected)
    with Trainer(TorchModel(made(), nn.functional.mse_loss), optimizer=SPARSE_ADAM, shards=2, engine="serial") as one:
        for indices in epoch_order(SEED, 0, EXAMPLES).reshape(-1, BATCH):
            one.step(tuple(part[indices] for part in data()))
        stepped = one.params
    assert_same(stepped, trained(SPARSE_ADAM, shards=2, epochs=1))


def test_a_subscriber_keeps_its_version():
    """Slots come and go while snapshots hold some, so versions are written over older ones of any age."""
    held, model = [], TorchModel(made(), nn.functional.mse_loss)

    class Holding(Callback):
        def on_batch_end(self, batch, logs):
            if batch % 3 == 0:
                snapshot = weights.snapshot()
                held.append((snapshot, weights_sha256(snapshot.value)))
            if len(held) > 4:
                del held[batch % 4]

    with Trainer(model, optimizer=Adam(0.01), shards=2, seed=SEED, engine="serial") as trainer:
        with trainer.subscriber() as weights:
            trainer.fit(data(), epochs=4, batch_size=BATCH, callbacks=[Holding()])
        found = {name: np.array(value) for name, value in trainer.params.items()}
        assert len(held) > 3
        for snapshot, digest in held:
            assert weights_sha256(snapshot.value) == digest
        held.clear()
    assert_same(found, trained(Adam(0.01), shards=2, epochs=4))


class Killing(Callback):
    """Kills a worker behind every third step."""

    def __init__(self) -> None:
        self.kills = 0

    def on_batch_end(self, batch, logs):
        if batch % 4 == 0:
            os.kill(self.trainer.pids[batch // 4 % 2], signal.SIGKILL)
            self.kills += 1


def test_workers_give_the_bits_of_the_serial_engine():
    optimizer = Adam(0.01, groups=[{"params": ["rare.weight"], "weight_decay": 0.1}, {"params": ["wide*"], "eps": 0.1}])
    given = {"shards": 5, "module": made(shared=True), "epochs": 1}
    found = trained(optimizer, workers=3, start_method="forkserver", **given)
    assert_same(found, trained(optimizer, **given))


def test_kills_change_nothing():
    killing = Killing()
    given = {"shards": 4, "epochs": 2}
    workers = {"workers": 2, "start_method": "forkserver", "max_restarts": 1000}
    found = trained(SPARSE_ADAM, callbacks=[killing], **workers, **given)
    assert killing.kills
    assert_same(found, trained(SPARSE_ADAM, **given))


# -- errors


class Dense(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words, self.out = nn.Embedding(9, 3, sparse=True), nn.Linear(3, 1)

    def forward(self, x):
        return self.out(self.words(x)).squeeze(1)


def test_sparse_adam_trains_tables_only():
    with pytest.raises(TypeError, match=r"SparseAdam: expected .*sparse=True.*found 'out.weight'.*untorn.Adam"):
        Trainer(TorchModel(Dense(), nn.functional.mse_loss), optimizer=torch.optim.SparseAdam)


@pytest.mark.parametrize(
    ("settings", "message"), [({"betas": (2, 0.9)}, "Invalid beta"), ({"maximize": True}, "SparseAdam: .* negate")]
)
def test_settings_of_sparse_adam(settings, message):
    model = TorchModel(made(), nn.functional.mse_loss)
    with pytest.raises((TypeError, ValueError), match=message):
        Trainer(model, optimizer=functools.partial(torch.optim.SparseAdam, **settings))


def test_nodes_refuse_adam():
    model = TorchModel(Dense(), nn.functional.mse_loss)
    with pytest.raises(ValueError, match=r"parameter 'words.weight' has sparse gradients.*Write sparse=False"):
        Trainer(model, optimizer=Adam(0.1), engine="loopback", nodes=2)


def test_a_gradient_that_is_not_finite_is_named():
    module = made()
    module.words.weight.data[3] = np.inf
    with pytest.raises(Exception, match=r"(gradient of parameter words.weight has a NaN|loss is)"):
        trained(SGD(0.1), module=module)
