"""The cases of the PyTorch benchmark: model, examples, batch and optimizer, the same for each contestant.

torch is imported inside functions, so that the benchmarks can be listed where it is not installed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor, nn

CLASSES = 10
TOKENS, SEQUENCE = 64, 32
#: low, so that training does not diverge, in whatever order a scheme applies its updates
LEARNING_RATE = 1e-4


@dataclass(frozen=True)
class Case:
    """One training; a turn is an epoch of ``steps`` steps.

    Attributes:
        name: of the network, for the table.
        make_module: creates the network with new weights.
        make_inputs: (generator, examples) -> array, one example per row.
        batch: examples per step, of all processes together.
        steps: per turn.
        optimizer: its name in torch.optim and untorn.
    """

    name: str
    make_module: Callable[[], nn.Module]
    make_inputs: Callable[[np.random.Generator, int], np.ndarray]
    batch: int
    steps: int
    optimizer: str = "SGD"

    @property
    def examples(self) -> int:
        """Number of examples, which is that of one turn."""
        return self.batch * self.steps

    def module(self) -> nn.Module:
        """Return the network with its initial weights, the same in every process."""
        import torch

        torch.manual_seed(0)
        return self.make_module()

    def parameters(self) -> int:
        """Number of trained values."""
        return sum(parameter.numel() for parameter in self.module().parameters())

    def data(self) -> tuple[np.ndarray, np.ndarray]:
        """Return inputs and classes, the same in every process."""
        rng = np.random.default_rng(1)
        return self.make_inputs(rng, self.examples), rng.integers(0, CLASSES, self.examples)

    def order(self, turn: int) -> np.ndarray:
        """Return the indices of the examples in the order of this turn."""
        return np.random.default_rng([2, turn]).permutation(self.examples)

    def check(self, module: nn.Module, *, trains: bool = True) -> None:
        """Check the result of a contestant. Raises RuntimeError if it has not done its work."""
        import torch

        x, y = (torch.from_numpy(part[: self.batch]) for part in self.data())
        with torch.no_grad():
            number = float(loss()(module(x), y))
        if not math.isfinite(number):
            raise RuntimeError(f"{self.name}: the loss is {number} in the end")
        pairs = zip(module.parameters(), self.module().parameters(), strict=True)
        still = [torch.equal(now, first) for now, first in pairs]
        if any(still) if trains else not all(still):
            raise RuntimeError(f"{self.name}: {sum(still)} of {len(still)} parameters have not changed")

    def torch_optimizer(self, parameters: Iterable[Tensor]) -> Any:
        """Return torch's optimizer in its fused form, which is the fastest on a CPU."""
        import torch

        return getattr(torch.optim, self.optimizer)(parameters, lr=LEARNING_RATE, fused=True)

    def untorn_optimizer(self) -> Any:
        """Return untorn's optimizer."""
        import untorn

        return getattr(untorn, self.optimizer)(LEARNING_RATE)


def loss() -> nn.Module:
    """Compute the loss of every case."""
    from torch import nn

    return nn.CrossEntropyLoss()


def mlp(width: int) -> nn.Module:
    """Create an MLP 64-width-width-10 with relu."""
    from torch import nn

    hidden = [nn.Linear(64, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU()]
    return nn.Sequential(*hidden, nn.Linear(width, CLASSES))


def vectors(rng: np.random.Generator, examples: int) -> np.ndarray:
    """Create inputs of the MLP."""
    return rng.standard_normal((examples, 64), dtype=np.float32)


def convolutional() -> nn.Module:
    """Create two convolutions with pooling, and two dense layers."""
    from torch import nn

    features = [nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    features += [nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*features, nn.Flatten(), nn.Linear(32 * 7 * 7, 48), nn.ReLU(), nn.Linear(48, CLASSES))


def images(rng: np.random.Generator, examples: int) -> np.ndarray:
    """Create inputs of the convolutional network."""
    return rng.standard_normal((examples, 1, 28, 28), dtype=np.float32)


def transformer() -> nn.Module:
    """Create two encoder layers, without dropout: all contestants would have to draw the same random numbers."""
    from torch import nn

    layer = nn.TransformerEncoderLayer(64, nhead=4, dim_feedforward=256, dropout=0.0, batch_first=True)
    encoder = nn.TransformerEncoder(layer, num_layers=2, enable_nested_tensor=False)
    return nn.Sequential(nn.Embedding(TOKENS, 64), encoder, nn.Flatten(), nn.Linear(64 * SEQUENCE, CLASSES))


def sequences(rng: np.random.Generator, examples: int) -> np.ndarray:
    """Create inputs of the transformer."""
    return rng.integers(0, TOKENS, (examples, SEQUENCE))
