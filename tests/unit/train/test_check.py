"""Trainer.check: sums instead of means, wrong gradients, and what a step costs."""

import numpy as np
import pytest

from untorn import SGD, LocalSteps, Trainer
from untorn.train.data import Examples
from untorn.train.run.check import Check, Slope

X = np.random.default_rng(0).normal(size=(128, 4))
Y = X.sum(1) + 0.5
W = np.random.default_rng(1).normal(size=4)


class Linear:
    """A linear model whose loss and gradient are multiplied, by the number of examples or a constant."""

    def __init__(self, loss=lambda count: 1, gradient=lambda count: 1):
        self.loss, self.gradient = loss, gradient

    def loss_and_grad(self, params, batch):
        x, y = batch
        error = x @ params["w"] + params["b"] - y
        loss, factor = (error**2).mean() * self.loss(len(x)), self.gradient(len(x))
        return loss, {"w": 2 * x.T @ error / len(x) * factor, "b": 2 * error.mean() * factor}


def params(dtype=np.float64):
    return {"w": W.astype(dtype), "b": np.zeros((), dtype)}


def checked(model, *, data=(X, Y), batch_size=32, dtype=np.float64, values=True, **settings):
    settings = {"optimizer": SGD(0.1), "engine": "serial", "shards": 2} | settings
    with Trainer(model, params(dtype) if values else None, **settings) as trainer:
        before = trainer.params
        found = trainer.check(data, batch_size=batch_size)
        assert (trainer.step, trainer.epoch, trainer.snapshot().version) == (0, 0, 1)
        assert all(np.array_equal(before[name], after) for name, after in trainer.params.items())
    return found


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_a_right_model(dtype):
    found = checked(Linear(), dtype=dtype, data=(X.astype(dtype), Y.astype(dtype)))
    assert found.ok
    assert not found.notes
    assert (found.loss_scale, found.gradient_scale, found.shards_matter) == ("mean", "mean", False)
    assert found.slopes.keys() == {"w", "b"}
    assert all(slope.agree for slope in found.slopes.values())
    assert repr(found).startswith("<Check: no problem>\n  loss ")
    assert "2 of 2 agree with the gradient" in str(found)


SUM = {"loss": int, "gradient": int}
WRONG = {
    "sums": (Linear(**SUM), ("sum", "sum"), "loss and gradient are sums over the batch: return means"),
    "loss": (Linear(loss=int), ("sum", "mean"), "the loss is a sum over the batch, and the gradient is a mean"),
    "gradient": (Linear(gradient=int), ("mean", "sum"), "the gradient is a sum .* divide the gradient by the number"),
    "factor": (
        Linear(gradient=lambda _: 1.02),
        ("mean", "mean"),
        "the gradient of '[wb]' is wrong: in a random direction",
    ),
    "sign": (Linear(gradient=lambda _: -1), ("mean", "mean"), "the gradient of '[wb]' is wrong"),
}


@pytest.mark.parametrize(("model", "scales", "text"), WRONG.values(), ids=WRONG)
def test_wrong_models(model, scales, text):
    found = checked(model)
    assert not found.ok
    assert (found.loss_scale, found.gradient_scale) == scales
    with pytest.raises(ValueError, match=text):
        raise ValueError("\n".join(found.problems))
    assert "problem" in repr(found)


def test_a_wrong_gradient_in_float32_is_found():
    narrow = X.astype(np.float32), Y.astype(np.float32)
    assert not checked(Linear(gradient=lambda _: 1.05), dtype=np.float32, data=narrow).ok


class OnlyFloat32(Linear):
    def loss_and_grad(self, params, batch):
        assert params["w"].dtype == np.float32
        return super().loss_and_grad(params, batch)


def test_a_model_that_takes_float32_alone():
    narrow = X.astype(np.float32), Y.astype(np.float32)
    assert checked(OnlyFloat32(), dtype=np.float32, data=narrow).ok
    assert not checked(OnlyFloat32(gradient=lambda _: 1.5), dtype=np.float32, data=narrow).ok


class CastsToFloat32(Linear):
    def loss_and_grad(self, params, batch):
        return super().loss_and_grad({name: leaf.astype(np.float32) for name, leaf in params.items()}, batch)


def test_a_model_that_computes_in_float32():
    narrow = X.astype(np.float32), Y.astype(np.float32)
    assert checked(CastsToFloat32(), data=narrow).ok
    assert not checked(CastsToFloat32(gradient=lambda _: 1.5), data=narrow).ok


def test_terms_between_examples_are_a_note():
    found = checked(Linear(loss=lambda count: 1 + np.log(count), gradient=lambda count: 1 + np.log(count)))
    assert found.ok
    assert found.loss_scale == "other"
    assert "no sums" in found.notes[0]


def test_costs():
    found = checked(Linear(), workers=3, engine="processes", shards=4)
    assert list(found.step_s) == sorted(found.step_s)
    assert {1, 3} <= found.step_s.keys()
    assert found.workers in found.step_s
    assert 0 < found.gradient_s < max(found.step_s.values())
    assert found.read_s > 0
    assert checked(Linear(), mode="async", workers=1, engine="processes", shards=None).ok


def test_all_kinds_of_data():
    items = Examples([(x, y) for x, y in zip(X, Y, strict=True)])
    assert checked(Linear(), data=items).ok
    batches = [(X[at : at + 16], Y[at : at + 16]) for at in range(0, 128, 16)]

    class Batches:
        def __iter__(self):
            return iter(batches)

    assert checked(Linear(), data=Batches(), batch_size=None).ok
    assert checked(Linear(), data=(X[:1], Y[:1])).shards_matter is None
    with pytest.raises(TypeError, match="an iterator would lose the batch"):
        checked(Linear(), data=iter(batches), batch_size=None)
    with pytest.raises(ValueError, match="batch_size: the data is an iterable of batches"):
        checked(Linear(), data=Batches())
    with pytest.raises(TypeError, match=r"check\(\) needs batch_size="):
        checked(Linear(), batch_size=None)


def test_local_steps_check_the_model_itself():
    assert checked(Linear(), optimizer=LocalSteps(SGD(0.1), steps=2), shards=None).ok


def test_losses_that_take_turns_are_refused():
    from untorn import Turns

    losses = {"a": Linear().loss_and_grad, "b": Linear().loss_and_grad}
    with pytest.raises(TypeError, match="several losses, a, b, which take turns"):
        checked(losses, optimizer=Turns(a=("w", SGD(0.1)), b=("b", SGD(0.1))))


def test_modules():
    torch = pytest.importorskip("torch")
    from torch import nn

    from untorn.torch import TorchModel

    data = X.astype(np.float32), (Y > 0).astype(np.int64)

    def summed(module, batch):
        return nn.functional.cross_entropy(module(batch[0]), batch[1], reduction="sum")

    def detached(module, batch):
        return (module(batch[0]) ** 2).mean() * (1 + (module.weight**2).sum().detach())

    torch.manual_seed(0)
    right = checked(TorchModel(nn.Linear(4, 2), nn.CrossEntropyLoss()), data=data, values=False)
    assert right.ok
    assert not right.notes
    assert right.slopes.keys() == {"all"}
    norm = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 2))
    assert checked(TorchModel(norm, nn.CrossEntropyLoss()), data=data, values=False).shards_matter
    found = checked(TorchModel(nn.Linear(4, 2), None, forward=summed), data=data, values=False)
    assert found.loss_scale == "sum"
    assert not found.ok
    found = checked(TorchModel(nn.Linear(4, 2), None, forward=detached), data=data, values=False)
    assert found.ok
    assert "detach" in found.notes[0]


def test_reports_say_every_problem():
    found = Check(
        problems=["a", "b"], notes=["c"], loss=0.0, loss_scale="unknown", gradient_scale="unknown", shards_matter=None,
        slopes={"w": Slope(gradient=1.0, numerical=2.0, agree=False)}, gradient_s=2.0, read_s=0.002, step_s={1: 2.5},
        workers=1,
    )  # fmt: skip
    assert str(found).splitlines() == [
        "<Check: 2 problems>",
        "  loss      0",
        "  gradient  unknown",
        "  slopes    0 of 1 agree with the gradient",
        "  shards    not known",
        "  shard     2.00 s for the gradient, 2 ms to read its examples",
        "  step      2.50 s with 1 worker",
        "  advice    1 worker",
        "  problem:  a",
        "  problem:  b",
        "  note:     c",
    ]
