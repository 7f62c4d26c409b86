"""untorn.torch.Accelerated: a plain loop's own module, optimizer and scheduler, with gradients of several workers."""

from __future__ import annotations

import functools
import os
import signal
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from untorn.errors import ClosedError, NonFiniteLossError, WorkerError
from untorn.torch import Accelerated
from untorn.train.data.sampler import shard_rng

SEED = 5
cross_entropy = nn.CrossEntropyLoss()


pytestmark = pytest.mark.usefixtures("one_torch_thread")


def made() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Unflatten(1, (1, 4)), nn.Conv1d(1, 6, 3), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(0.3), nn.Flatten(),
        nn.Linear(12, 3),
    )  # fmt: skip


def batches(count: int = 12) -> list[Any]:
    """Return batches, the last of which is smaller."""
    draw = np.random.default_rng(0)
    sizes = [24] * (count - 1) + [10]
    return [
        (torch.from_numpy(draw.normal(size=(n, 4)).astype(np.float32)), torch.from_numpy(draw.integers(0, 3, n)))
        for n in sizes
    ]


def trained(module: nn.Module, backward: Callable[[Any], torch.Tensor], after: Any = lambda step: None) -> Any:
    """Run an ordinary loop: two batches per step, clipping, a scheduler, an evaluation. Return all that it computes."""
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-2)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=6)
    found = []
    for step in range(6):
        optimizer.zero_grad()
        losses = [backward(batch).item() for batch in batches()[2 * step : 2 * step + 2]]
        norm = nn.utils.clip_grad_norm_(module.parameters(), 0.5).item()
        optimizer.step()
        scheduler.step()
        module.eval()
        with torch.no_grad():
            outputs = module(batches()[0][0]).numpy().tobytes()
        module.train()
        found.append((losses, norm, outputs))
        after(step)
    state = [*module.state_dict().values(), *(s["exp_avg_sq"] for s in optimizer.state.values())]
    return found, [tensor.numpy().tobytes() for tensor in state]


@functools.cache
def reference(shards: int) -> Any:
    module = made()
    with Accelerated(module, cross_entropy, engine="serial", shards=shards, seed=SEED) as accelerated:
        return trained(module, accelerated.backward)


def test_with_one_shard_the_loop_has_the_bits_of_the_plain_one():
    module, calls = made(), iter(range(100))

    def backward(batch: Any) -> torch.Tensor:
        torch.manual_seed(int(shard_rng(SEED, next(calls), 0, 1).integers(2**63)))  # of dropout
        loss = cross_entropy(module(batch[0]), batch[1])
        loss.backward()
        return loss

    assert trained(module, backward) == reference(1)


def test_several_shards_give_the_mean_of_their_gradients():
    one, two = nn.Linear(4, 3), nn.Linear(4, 3)
    two.load_state_dict(one.state_dict())
    x, y = batches()[0]
    with Accelerated(one, cross_entropy, engine="serial", shards=2) as accelerated:
        loss = accelerated.backward((x, y))
    halves = [cross_entropy(two(x[half]), y[half]) / 2 for half in (slice(12), slice(12, 24))]
    for half in halves:
        half.backward()
    assert loss.item() == pytest.approx(sum(half.item() for half in halves), abs=0)
    assert (loss.dtype, loss.shape, loss.requires_grad) == (torch.float64, (), False)
    assert torch.equal(one.weight.grad, two.weight.grad)


def test_any_number_of_workers_and_kills_give_the_same_bits():
    module = made()
    with Accelerated(module, cross_entropy, workers=2, shards=3, seed=SEED, start_method="forkserver") as accelerated:

        def after(step: int) -> None:
            if step in (0, 3):
                os.kill(accelerated.pids[0], signal.SIGKILL)
            if step == 1:
                accelerated.resize(3)
            if step == 4:
                accelerated.resize(1)

        assert trained(module, accelerated.backward, after) == reference(3)
        assert accelerated.restarts >= 1
        assert (accelerated.workers, accelerated.shards, accelerated.calls) == (1, 3, 12)


def test_values_that_the_loop_sets_count():
    module = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    found = []
    with Accelerated(module, cross_entropy, engine="serial", shards=2) as accelerated:
        for change in (list, module[1].weight.data.zero_, lambda: module.load_state_dict(before)):
            change()
            module.zero_grad()
            accelerated.backward(batches()[0])
            found.append((module[0].weight.grad.clone(), module[1].running_mean.clone()))
            assert module[1].num_batches_tracked == (2 if len(found) == 2 else 1)
    assert torch.equal(found[0][0], found[2][0])
    assert not torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[2][1])
    assert not torch.equal(found[0][1], before["1.running_mean"])


def test_optimizers_that_call_a_closure():
    def losses(module: nn.Module, backward: Any) -> list[float]:
        optimizer = torch.optim.LBFGS(module.parameters(), max_iter=4, line_search_fn="strong_wolfe")

        def closure() -> float:
            optimizer.zero_grad()
            return backward(batches()[0])

        return [optimizer.step(closure).item() for _ in range(3)]

    torch.manual_seed(0)
    plain, module = nn.Linear(4, 3), nn.Linear(4, 3)
    module.load_state_dict(plain.state_dict())

    def backward(batch: Any) -> torch.Tensor:
        loss = cross_entropy(plain(batch[0]), batch[1])
        loss.backward()
        return loss

    with Accelerated(module, cross_entropy, engine="serial", shards=1) as accelerated:
        assert losses(module, accelerated.backward) == losses(plain, backward)
    assert torch.equal(module.weight, plain.weight)


def first_loss(module: nn.Module, batch: Any) -> Any:
    return module["first"](batch["x"]).square().mean()


def both_loss(module: nn.Module, batch: Any) -> Any:
    return (module["first"](batch["x"]) * module["second"](batch["x"])).mean()


def test_two_losses_of_one_module_and_metrics():
    module = nn.ModuleDict({"first": nn.Linear(4, 1), "second": nn.Linear(4, 1)})
    batch = {"x": batches()[0][0].numpy()}
    settings: Any = {"engine": "serial", "shards": 1}
    with (
        Accelerated(module, forward=first_loss, **settings) as first,
        Accelerated(module, forward=both_loss, **settings) as both,
    ):
        first.backward(batch)
        assert module["second"].weight.grad is None
        alone = module["first"].weight.grad.clone()
        both.backward(batch)
        assert module["second"].weight.grad is not None
        assert not torch.equal(module["first"].weight.grad, alone)
    with Accelerated(
        nn.Linear(4, 3), cross_entropy, metrics={"right": lambda o, y: (o.argmax(1) == y).float().mean()}, **settings
    ) as accelerated:
        accelerated.backward(batches()[0])
        assert 0 <= accelerated.metrics["right"] <= 1
        assert repr(accelerated) == "<Accelerated Linear, 1 workers, 1 shards, 1 calls>"


class Failing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x[0, 0] > 100:
            raise RuntimeError("too large")
        return self.layer(x)


def test_after_an_error_the_loop_may_go_on():
    module = Failing()
    x, y = batches()[0]
    with Accelerated(module, cross_entropy, engine="serial", shards=2) as accelerated:
        accelerated.backward((x, y))
        gradient = module.layer.weight.grad.clone()
        with pytest.raises(WorkerError, match="too large"):
            accelerated.backward((x + 1000, y))
        with pytest.raises(NonFiniteLossError, match="the weights are those of the step before"):
            accelerated.backward((x * float("nan"), y))
        with pytest.raises(ValueError, match="batch: expected arrays with one example per row"):
            accelerated.backward((x, y[:3]))
        assert torch.equal(module.layer.weight.grad, gradient)
        assert accelerated.calls == 1
        accelerated.backward((x, y))
        assert torch.equal(module.layer.weight.grad, 2 * gradient)
        assert accelerated.calls == 2
    with pytest.raises(ClosedError):
        accelerated.backward((x, y))


def froze(module: Any) -> None:
    module[6].bias.requires_grad_(False)


def added(module: Any) -> None:
    module.append(nn.Linear(3, 3))


def replaced(module: Any) -> None:
    module[6].bias = nn.Parameter(torch.zeros(3))


def converted(module: Any) -> None:
    module.double()


def buffer(module: Any) -> None:
    module.register_buffer("mask", torch.ones(3))


def evaluated(module: Any) -> None:
    module[2].eval()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (froze, r"'6\.bias': requires_grad is False now; .* make another one"),
        (added, r"'7\.\w+': it is new"),
        (replaced, r"'6\.bias': it was replaced by another parameter"),
        (converted, r"'.*': expected float32 of shape .*, found float64"),
        (buffer, "'mask': buffers were added or removed"),
        (evaluated, r"module\.2: it is in evaluation mode, .*; call module\.train\(\)"),
    ],
)
def test_a_module_that_was_changed_is_refused(change, message):
    module = made()
    with Accelerated(module, cross_entropy, engine="serial", shards=1) as accelerated:
        change(module)
        with pytest.raises(ValueError, match=message):
            accelerated.backward(batches()[0])


def test_wrong_arguments_are_refused():
    module = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    unusual: Any = Accelerated
    with pytest.raises(TypeError, match=r"module: expected a torch\.nn\.Module, found SGD"):
        unusual(optimizer, cross_entropy)
    with pytest.raises(TypeError, match="found the optimizer SGD, which stays in the loop"):
        unusual(module, optimizer)
    with pytest.raises(TypeError, match="loss: expected a function"):
        unusual(module)
    with pytest.raises(TypeError, match=r"forward: expected a function .*, found a dict"):
        unusual(module, forward={"a": first_loss})
    with pytest.raises(ValueError, match="engine: expected 'processes' or 'serial', found 'ray'"):
        unusual(module, cross_entropy, engine="ray")
    with pytest.raises(TypeError, match="workers: expected a number, found 'auto'"):
        unusual(module, cross_entropy, workers="auto")
    with pytest.raises(ValueError, match="reduction='sum'"):
        unusual(module, nn.MSELoss(reduction="sum"))
    with pytest.raises(ValueError, match="nothing to train"):
        unusual(nn.Flatten(), cross_entropy)
