"""Models and optimizers of other libraries."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple, Protocol, assert_type

import jax.numpy as jnp
import numpy as np
import optax  # type: ignore[import-untyped]  # pyright: ignore[reportMissingTypeStubs]
import torch
from torch import nn

from untorn import SGD, Adam, Trainer
from untorn.jax import JaxModel
from untorn.torch import TorchModel


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.head(x))


def trains_modules() -> Net:
    with Trainer(TorchModel(Net(), nn.MSELoss()), optimizer=SGD(0.1), workers=2) as trainer:
        assert_type(trainer, Trainer[TorchModel[Net]])
        assert_type(trainer.model, TorchModel[Net])
        module = trainer.module()
        assert_type(module, Net)
        assert_type(module.head, nn.Linear)
        module.tail()  # refused
    Trainer(nn.MSELoss, optimizer=SGD(0.1))  # refused
    assert_type(TorchModel(Net, nn.MSELoss()), TorchModel[Net])
    TorchModel(3, nn.MSELoss())  # refused
    return module


def names_no_module(model: TorchModel) -> nn.Module:
    assert_type(model, TorchModel[nn.Module])
    return Trainer(model, optimizer=SGD(0.1)).module()


def loss_fn(params: dict[str, Any], batch: tuple[Any, Any]) -> Any:
    x, y = batch
    return jnp.mean((x @ params["w"] - y) ** 2)


def trains_pytrees() -> None:
    trainer = Trainer(JaxModel(loss_fn, {"w": np.zeros(2, np.float32)}), optimizer=Adam(1e-3))
    assert_type(trainer, Trainer[JaxModel])
    assert_type(trainer.module(), Any)


class Init(Protocol):
    def __call__(self, params: Any) -> Any: ...


class Update(Protocol):
    def __call__(self, updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]: ...


class Transformation(NamedTuple):
    """As optax has it, whose types mypy does not see."""

    init: Init
    update: Update


class HalfTransformation(NamedTuple):
    init: Init


def takes_transformations(model: JaxModel, whole: Transformation, half: HalfTransformation) -> None:
    Trainer(model, optimizer=whole)
    Trainer(model, optimizer=half)  # refused
    Trainer(model, optimizer=optax.sgd(0.1))
    Trainer(model, optimizer=optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-3)))


def takes_optimizers_of_torch(model: TorchModel[Net]) -> None:
    Trainer(model, optimizer=torch.optim.NAdam)
    Trainer(model, optimizer=partial(torch.optim.SGD, lr=0.1, momentum=0.9))
    Trainer(model, optimizer=lambda params: torch.optim.AdamW(params, lr=1e-3))
    Trainer(model, optimizer=torch.optim.SGD(Net().parameters(), lr=0.1))  # refused
    Trainer(model, optimizer=nn.MSELoss)  # refused
