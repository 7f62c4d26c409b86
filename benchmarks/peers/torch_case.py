"""What the PyTorch contestants train: model, examples, batch and optimizer, the same for each of them.

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
#: low, so that nothing diverges, whatever order the updates of a scheme come in
LEARNING_RATE = 1e-4


@dataclass(frozen=True)
class Case:
    """One training, of which one turn makes ``steps`` steps: an epoch.

    Attributes:
        name: what is trained, as the table says it.
        make_module: the network, with fresh weights.
        make_inputs: (generator, examples) -> array, one example per row.
        batch: examples per step, of all processes together.
        steps: per turn.
        optimizer: the name that torch.optim and untorn have for it.
    """

    name: str
    make_module: Callable[[], nn.Module]
    make_inputs: Callable[[np.random.Generator, int], np.ndarray]
    batch: int
    steps: int
    optimizer: str = "SGD"

    @property
    def examples(self) -> int:
        """How many examples there are: those of one turn."""
        return self.batch * self.steps

    def module(self) -> nn.Module:
        """The network with its first weights, the same in every process."""
        import torch

        torch.manual_seed(0)
        return self.make_module()

    def parameters(self) -> int:
        """How many numbers are trained."""
        return sum(parameter.numel() for parameter in self.module().parameters())

    def data(self) -> tuple[np.ndarray, np.ndarray]:
        """Inputs and classes, the same in every process."""
        rng = np.random.default_rng(1)
        return self.make_inputs(rng, self.examples), rng.integers(0, CLASSES, self.examples)

    def order(self, turn: int) -> np.ndarray:
        """The examples in the order in which this turn takes them."""
        return np.random.default_rng([2, turn]).permutation(self.examples)

    def check(self, module: nn.Module, *, trains: bool = True) -> None:
        """Look at what a contestant has in the end. Raises RuntimeError if it has not done its work."""
        import torch

        x, y = (torch.from_numpy(part[: self.batch]) for part in self.data())
        with torch.no_grad():
            number = float(loss()(module(x), y))
        if not math.isfinite(number):
            raise RuntimeError(f"{self.name}: the loss is {number} in the end")
        pairs = zip(module.parameters(), self.module().parameters(), strict=True)
        still = [torch.equal(now, first) for now, first in pairs]
        if any(still) if trains else not all(still):
            raise RuntimeError(f"{self.name}: {sum(still)} of {len(still)} parameters are what they were at first")

    def torch_optimizer(self, parameters: Iterable[Tensor]) -> Any:
        """The optimizer as torch has it, in its fused form: the fastest on a processor."""
        import torch

        return getattr(torch.optim, self.optimizer)(parameters, lr=LEARNING_RATE, fused=True)

    def untorn_optimizer(self) -> Any:
        """The optimizer as untorn has it."""
        import untorn

        return getattr(untorn, self.optimizer)(LEARNING_RATE)


def loss() -> nn.Module:
    """The loss of every case."""
    from torch import nn

    return nn.CrossEntropyLoss()


def mlp(width: int) -> nn.Module:
    """64-width-width-10 with relu."""
    from torch import nn

    hidden = [nn.Linear(64, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU()]
    return nn.Sequential(*hidden, nn.Linear(width, CLASSES))


def vectors(rng: np.random.Generator, examples: int) -> np.ndarray:
    """Inputs of the MLP."""
    return rng.standard_normal((examples, 64), dtype=np.float32)


def convolutional() -> nn.Module:
    """Two convolutions with pooling, and two dense layers."""
    from torch import nn

    features = [nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    features += [nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*features, nn.Flatten(), nn.Linear(32 * 7 * 7, 48), nn.ReLU(), nn.Linear(48, CLASSES))


def images(rng: np.random.Generator, examples: int) -> np.ndarray:
    """Inputs of the convolutional network."""
    return rng.standard_normal((examples, 1, 28, 28), dtype=np.float32)


def transformer() -> nn.Module:
    """Two encoder layers, without dropout: every contestant would have to draw the same random numbers."""
    from torch import nn

    layer = nn.TransformerEncoderLayer(64, nhead=4, dim_feedforward=256, dropout=0.0, batch_first=True)
    encoder = nn.TransformerEncoder(layer, num_layers=2, enable_nested_tensor=False)
    return nn.Sequential(nn.Embedding(TOKENS, 64), encoder, nn.Flatten(), nn.Linear(64 * SEQUENCE, CLASSES))


def sequences(rng: np.random.Generator, examples: int) -> np.ndarray:
    """Inputs of the transformer."""
    return rng.integers(0, TOKENS, (examples, SEQUENCE))
