"""Batches that are dataclasses: cut into shards where every field can be cut."""

import dataclasses

import numpy as np
import pytest

from untorn import SGD, Trainer
from untorn.train import weights_sha256
from untorn.train.data.stream import checked_batch

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402

from untorn.torch import TorchModel  # noqa: E402

X = np.random.default_rng(0).normal(size=(64, 3)).astype(np.float32)
Y = (X.sum(1) > 0).astype(np.int64)


@dataclasses.dataclass
class Pair:
    x: torch.Tensor
    y: np.ndarray


@dataclasses.dataclass(frozen=True)
class Outer:
    pair: Pair
    weight: torch.Tensor
    text: str = dataclasses.field(default="", kw_only=True)


@dataclasses.dataclass(frozen=True, slots=True)
class Weighted:
    pair: Pair
    weight: torch.Tensor


#: the numbers of examples of each gradient, in this process
SEEN = []


def forward(module, batch):
    assert type(batch) is Weighted
    assert type(batch.pair) is Pair
    assert type(batch.pair.x) is type(batch.weight) is torch.Tensor
    assert type(batch.pair.y) is np.ndarray
    SEEN.append(len(batch.weight))
    losses = nn.functional.cross_entropy(module(batch.pair.x), torch.from_numpy(batch.pair.y), reduction="none")
    return (losses * batch.weight).mean()


def in_tuples(module, batch):
    x, y, weight = batch
    return (nn.functional.cross_entropy(module(x), y, reduction="none") * weight).mean()


def records():
    for at in range(0, 64, 16):
        part = slice(at, at + 16)
        yield Weighted(Pair(torch.from_numpy(X[part]), Y[part]), torch.ones(16))


def tuples():
    for record in records():
        yield record.pair.x, record.pair.y, record.weight


def trained(forward, batches, *, steps=False, **how):
    torch.manual_seed(0)
    with Trainer(TorchModel(nn.Linear(3, 2), None, forward=forward), optimizer=SGD(0.1), shards=2, **how) as trainer:
        if steps:
            for batch in batches:
                trainer.step(batch)
        else:
            trainer.fit(batches, epochs=1)
        return weights_sha256(trainer.params)


@pytest.mark.parametrize("steps", [False, True], ids=["stream", "steps"])
@pytest.mark.parametrize("how", [{"engine": "serial"}, {"workers": 2}], ids=["serial", "processes"])
def test_each_shard_has_its_examples(how, steps):
    SEEN.clear()
    wanted = trained(in_tuples, tuples(), engine="serial")
    assert trained(forward, records(), steps=steps, **how) == wanted
    if how == {"engine": "serial"}:
        assert SEEN == [8] * 8


def test_forms_may_change_from_step_to_step():
    def either(module, batch):
        return in_tuples(module, batch) if isinstance(batch, tuple) else forward(module, batch)

    mixed = [one if k % 2 else other for k, (one, other) in enumerate(zip(tuples(), records(), strict=True))]
    wanted = trained(in_tuples, tuples(), engine="serial")
    for steps in (False, True):
        assert trained(either, iter(mixed), steps=steps, engine="serial") == wanted


@dataclasses.dataclass
class Extra(Pair):
    """An object of this class has an attribute that is no field."""

    def __post_init__(self):
        self.more = 1


def local_class():
    @dataclasses.dataclass
    class Local:
        x: np.ndarray

    return Local(np.zeros((4, 2)))


X4, Y4 = torch.zeros(4, 2), np.zeros(4)
PIECES = {
    "a text": Outer(Pair(X4, Y4), torch.ones(4)),
    "unlike rows": Pair(X4, np.zeros(3)),
    "a number": Pair(torch.zeros(()), Y4),
    "no number": Pair(None, Y4),
    "bfloat16": Pair(X4.bfloat16(), Y4),
    "more than fields": Extra(X4, Y4),
    "a local class": local_class(),
    "no rows": Pair(torch.zeros(0, 2), np.zeros(0)),
}


@pytest.mark.parametrize("batch", PIECES.values(), ids=PIECES)
def test_the_others_arrive_in_one_piece(batch):
    found = checked_batch("batch", batch)
    assert found.spec is None
    assert found.leaves[0] is batch


def test_dataclasses_among_others():
    found = checked_batch("batch", {"pair": Pair(X4, Y4), "z": [Y4]})
    made = found.form.make(found.leaves)
    assert type(made["pair"]) is Pair
    assert made["pair"].x.shape == (4, 2)
    assert made["z"][0] is Y4
