"""Models of well-known example programs, written anew: what each trains, on which batches, with which optimizer.

======================  =============================================================  ================================
class                   after                                                          data
======================  =============================================================  ================================
ConvNet                 pytorch/examples, mnist                                        scikit-learn's digits, enlarged
Vae                     pytorch/examples, vae                                          the same
TextLstm                pytorch/examples, word_language_model: carried state, clipping generated text
CharGpt                 nanoGPT, its character model: no decay on biases and norms     generated text
ActorCritic             pytorch/examples, reinforcement_learning: the newest policy    16 poles on carts
                        acts
GraphNet                pytorch/examples, gcn                                          a generated graph
======================  =============================================================  ================================

They have the structure of the originals, at sizes of some milliseconds per step. A loss is a mean over the examples;
that of the original VAE is a sum.
"""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

import untorn
from benchmarks.peers.carts import Carts
from benchmarks.peers.digits_images import digits

__all__ = ["ORIGINALS", "Original"]


class Original(ABC):
    """A model, its batches and its optimizer. A turn makes one step for each of ``steps`` batches."""

    what: str
    steps: int
    clip_norm: float | None = None
    #: buffers with a row for each example, which are carried from step to step
    carried: tuple[str, ...] = ()
    #: whether the batches depend on the newest weights
    acts = False

    @abstractmethod
    def module(self) -> nn.Module:
        """Return the module with its initial weights, always the same."""

    @abstractmethod
    def batches(self, module: nn.Module) -> Iterator[tuple[NDArray[Any], ...]]:
        """Yield the batches of a turn, made with the newest weights of ``module`` if it acts."""

    @abstractmethod
    def loss(self, module: nn.Module, batch: Any) -> Tensor:
        """Compute the mean loss of a batch of tensors."""

    def optimizer(self) -> Any:
        """Return the optimizer for untorn."""
        return untorn.Adam(1e-3)

    def torch_optimizer(self, module: nn.Module) -> torch.optim.Optimizer:
        """Return the optimizer for the plain loop."""
        return torch.optim.Adam(module.parameters(), lr=1e-3)


def seeded(make: Callable[[], nn.Module]) -> nn.Module:
    """Return a module whose initial weights are always the same."""
    torch.manual_seed(0)
    return make()


LETTERS = 32


@functools.cache
def text(length: int) -> NDArray[np.int64]:
    """Return letters, each likely to be one of four that depend on the letter before."""
    rng = np.random.default_rng(0)
    likely = rng.integers(0, LETTERS, (LETTERS, 4))
    choices, letters = rng.integers(0, 4, length), np.zeros(length, np.int64)
    for index in range(1, length):
        letters[index] = likely[letters[index - 1], choices[index]]
    return letters


class ConvNet(Original):
    """Two convolutions and two dense layers, with dropout, trained with torch.optim.Adadelta."""

    what, steps, batch = "MNIST network", 6, 64

    def module(self) -> nn.Module:
        """Return the network."""
        return seeded(
            lambda: nn.Sequential(
                *(nn.Conv2d(1, 32, 3), nn.ReLU(), nn.Conv2d(32, 64, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(0.25)),
                *(nn.Flatten(), nn.Linear(9216, 128), nn.ReLU(), nn.Dropout(0.5), nn.Linear(128, 10)),
            )
        )

    def batches(self, module: nn.Module) -> Iterator[tuple[NDArray[Any], ...]]:
        """Yield images and digits."""
        x, y = digits()
        for first in range(0, self.steps * self.batch, self.batch):
            yield x[first : first + self.batch], y[first : first + self.batch]

    def loss(self, module: nn.Module, batch: Any) -> Tensor:
        """Compute the negative log-likelihood."""
        x, y = batch
        return functional.nll_loss(functional.log_softmax(module(x), dim=1), y)

    def optimizer(self) -> Any:
        """Return a factory of torch's optimizer, which runs in the calling process."""
        return functools.partial(torch.optim.Adadelta, lr=1.0)

    def torch_optimizer(self, module: nn.Module) -> torch.optim.Optimizer:
        """Return the same optimizer."""
        return torch.optim.Adadelta(module.parameters(), lr=1.0)


class Vae(Original):
    """A variational autoencoder with a code of 20 numbers."""

    what, steps, batch = "VAE", 10, 128

    def module(self) -> nn.Module:
        """Return encoder, mean and log-variance, and decoder."""
        return seeded(
            lambda: nn.ModuleDict(
                {
                    "encode": nn.Sequential(nn.Flatten(), nn.Linear(784, 400), nn.ReLU()),
                    "mean": nn.Linear(400, 20),
                    "log_variance": nn.Linear(400, 20),
                    "decode": nn.Sequential(nn.Linear(20, 400), nn.ReLU(), nn.Linear(400, 784), nn.Sigmoid()),
                }
            )
        )

    def batches(self, module: nn.Module) -> Iterator[tuple[NDArray[Any], ...]]:
        """Yield images."""
        x, _ = digits()
        for first in range(0, self.steps * self.batch, self.batch):
            yield (x[first : first + self.batch],)

    def loss(self, module: Any, batch: Any) -> Tensor:
        """Compute the reconstruction error and the divergence, per image."""
        (x,) = batch
        hidden = module["encode"](x)
        mean, log_variance = module["mean"](hidden), module["log_variance"](hidden)
        code = mean + torch.exp(0.5 * log_variance) * torch.randn_like(mean)
        error = functional.binary_cross_entropy(module["decode"](code), x.flatten(1), reduction="sum")
        divergence = -0.5 * torch.sum(1 + log_variance - mean.pow(2) - log_variance.exp())
        return (error + divergence) / len(x)


class Recurrent(nn.Module):
    """An embedding, an LSTM whose state is carried from batch to batch, and a decoder."""

    def __init__(self, rows: int, width: int) -> None:
        super().__init__()
        self.embed, self.out = nn.Embedding(LETTERS, width), nn.Linear(width, LETTERS)
        self.lstm = nn.LSTM(width, width, num_layers=2, batch_first=True)
        for name in ("h", "c"):
            self.register_buffer(name, torch.zeros(rows, 2, width))

    def forward(self, letters: Tensor) -> Tensor:
        """Return the scores of the letter after each."""
        state = tuple(part.transpose(0, 1).contiguous() for part in (self.h, self.c))
        outputs, (h, c) = self.lstm(self.embed(letters), state)
        if self.training:
            self.h, self.c = h.transpose(0, 1).detach(), c.transpose(0, 1).detach()
        return self.out(outputs)


class TextLstm(Original):
    """A language model over texts that go on from batch to batch, with clipped gradients."""

    what, steps, rows, length = "LSTM language model", 6, 20, 35
    clip_norm, carried = 0.25, ("h", "c")

    def module(self) -> nn.Module:
        """Return the model."""
        return seeded(lambda: Recurrent(self.rows, 128))

    def batches(self, module: nn.Module) -> Iterator[tuple[NDArray[Any], ...]]:
        """Yield the next piece of each text, and the same one letter later."""
        each = self.steps * self.length
        texts = text(self.rows * each + 1)
        now, later = (texts[shift : shift + self.rows * each].reshape(self.rows, each) for shift in (0, 1))
        for first in range(0, each, self.length):
            yield now[:, first : first + self.length], later[:, first : first + self.length]

    def loss(self, module: nn.Module, batch: Any) -> Tensor:
        """Compute the cross-entropy of each letter's successor."""
        now, later = batch
        return functional.cross_entropy(module(now).flatten(0, 1), later.flatten())

    def optimizer(self) -> Any:
        """Return SGD."""
        return untorn.SGD(2.0)

    def torch_optimizer(self, module: nn.Module) -> torch.optim.Optimizer:
        """Return SGD."""
        return torch.optim.SGD(module.parameters(), lr=2.0)


class Block(nn.Module):
    """Causal self-attention and an MLP, each after a norm."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.mix = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        """Return the residual stream after this block."""
        batch, length, width = x.shape
        parts = self.qkv(self.norm1(x)).view(batch, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        attended = functional.scaled_dot_product_attention(*parts, is_causal=True)
        x = x + self.mix(attended.transpose(1, 2).reshape(batch, length, width))
        return x + self.mlp(self.norm2(x))


class Gpt(nn.Module):
    """A small GPT; the embedding and the last layer share their weights."""

    def __init__(self, length: int, width: int, heads: int, layers: int) -> None:
        super().__init__()
        self.letters, self.places = nn.Embedding(LETTERS, width), nn.Embedding(length, width)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(layers)))
        self.norm, self.out = nn.LayerNorm(width), nn.Linear(width, LETTERS, bias=False)
        self.out.weight = self.letters.weight
        for part in self.modules():
            if isinstance(part, nn.Linear | nn.Embedding):
                nn.init.normal_(part.weight, std=0.02)

    def forward(self, letters: Tensor) -> Tensor:
        """Return the scores of the letter after each."""
        x = self.letters(letters) + self.places(torch.arange(letters.shape[1]))
        return self.out(self.norm(self.blocks(x)))


class CharGpt(Original):
    """A GPT over characters, trained with AdamW that decays only matrices, and clipped gradients."""

    what, steps, batch, length = "nanoGPT, characters", 6, 12, 64
    clip_norm = 1.0

    def module(self) -> nn.Module:
        """Return a GPT of two layers."""
        return seeded(lambda: Gpt(self.length, 96, 4, 2))

    def batches(self, module: nn.Module) -> Iterator[tuple[NDArray[Any], ...]]:
        """Yield pieces of the text from random places, and the same one letter later."""
        rng, letters = np.random.default_rng(0), text(10_000)
        for _ in range(self.steps):
            places = rng.integers(0, len(letters) - self.length, (self.batch, 1)) + np.arange(self.length)
            yield letters[places], letters[places + 1]

    loss = TextLstm.loss

    def optimizer(self) -> Any:
        """Return AdamW with a group of all vectors."""
        vectors = [name for name, each in self.module().named_parameters() if each.ndim < 2]
        groups = [{"params": vectors, "weight_decay": 0.0}]
        return untorn.AdamW(1e-3, betas=(0.9, 0.99), weight_decay=0.1, groups=groups)

    def torch_optimizer(self, module: nn.Module) -> torch.optim.Optimizer:
        """Return the same, with two groups."""
        groups = [
            {"params": [each for each in module.parameters() if (each.ndim < 2) == vector], "weight_decay": decay}
            for vector, decay in ((False, 0.1), (True, 0.0))
        ]
        return torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.99))


class ActorCritic(Original):
    """A policy and a value that share a layer; each batch is 8 moves of 16 carts under the newest policy."""

    what, steps, carts, moves = "actor and critic", 20, 16, 8
    acts = True

    def module(self) -> nn.Module:
        """Return the layer, the policy and the value."""
        return seeded(
            lambda: nn.ModuleDict(
                {
                    "shared": nn.Sequential(nn.Linear(4, 128), nn.ReLU()),
                    "policy": nn.Linear(128, 2),
                    "value": nn.Linear(128, 1),
                }
            )
        )

    def batches(self, module: Any) -> Iterator[tuple[NDArray[Any], ...]]:
        """Yield states, moves and discounted returns."""
        carts, rng = Carts(self.carts), np.random.default_rng(1)

        def outputs(states: NDArray[np.float32]) -> tuple[NDArray[Any], NDArray[Any]]:
            with torch.no_grad():
                hidden = module["shared"](torch.from_numpy(states))
                likely = torch.softmax(module["policy"](hidden), 1)[:, 1]
                return likely.numpy(), module["value"](hidden)[:, 0].numpy()

        for _ in range(self.steps):
            seen = []
            for _ in range(self.moves):
                states = carts.states.copy()
                right = (rng.random(self.carts) < outputs(states)[0]).astype(np.int64)
                seen.append((states, right, *carts.move(right)))
            future, returns = outputs(carts.states)[1], []
            for _, _, reward, fallen in reversed(seen):
                future = (reward + 0.99 * future * ~fallen).astype(np.float32)
                returns.append(future)
            states, moves = (np.concatenate([each[part] for each in seen]) for part in (0, 1))
            yield states, moves, np.concatenate(returns[::-1])

    def loss(self, module: Any, batch: Any) -> Tensor:
        """Compute the loss of the policy, by advantages, and of the value."""
        states, moves, returns = batch
        hidden = module["shared"](states)
        value = module["value"](hidden)[:, 0]
        chosen = functional.log_softmax(module["policy"](hidden), 1).gather(1, moves[:, None])[:, 0]
        return -(chosen * (returns - value.detach())).mean() + functional.smooth_l1_loss(value, returns)


class GraphLayer(nn.Module):
    """A graph convolution (Kipf and Welling, 2017): the normalised sum over the neighbours of each node."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, outputs)

    def forward(self, x: Tensor, sources: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
        """Return the new features of all nodes."""
        made = self.linear(x)
        return torch.zeros_like(made).index_add(0, targets, made[sources] * weights[:, None])


class Graph(nn.Module):
    """Two graph convolutions over one graph, which the module keeps."""

    def __init__(self, nodes: int, features: int, classes: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList([GraphLayer(features, 16), GraphLayer(16, classes)])
        rng = np.random.default_rng(0)
        ends = rng.integers(0, nodes, (2, 2 * nodes))
        itself = np.arange(nodes)
        sources, targets = np.concatenate([ends, ends[::-1], [itself, itself]], axis=1)
        degrees = np.bincount(targets, minlength=nodes)
        weights = 1 / np.sqrt(degrees[sources] * degrees[targets])
        self.edges = [torch.from_numpy(each) for each in (sources, targets, weights.astype(np.float32))]
        self.x = torch.from_numpy((rng.random((nodes, features)) < 0.02).astype(np.float32))

    def forward(self, nodes: Tensor) -> Tensor:
        """Return the scores of the classes of these nodes."""
        hidden = functional.relu(self.layers[0](self.x, *self.edges))
        return self.layers[1](hidden, *self.edges)[nodes]


class GraphNet(Original):
    """Each step computes the whole graph, and a loss over its labelled nodes."""

    what, steps, nodes, classes = "graph network", 10, 2700, 7

    def module(self) -> nn.Module:
        """Return the network and its graph."""
        return seeded(lambda: Graph(self.nodes, 256, self.classes))

    def batches(self, module: nn.Module) -> Iterator[tuple[NDArray[Any], ...]]:
        """Yield the labelled nodes and their classes."""
        rng = np.random.default_rng(2)
        labelled = rng.choice(self.nodes, 140, replace=False), rng.integers(0, self.classes, 140)
        for _ in range(self.steps):
            yield labelled

    def loss(self, module: nn.Module, batch: Any) -> Tensor:
        """Compute the cross-entropy."""
        nodes, classes = batch
        return functional.cross_entropy(module(nodes), classes)


ORIGINALS = {each.__name__: each for each in (ConvNet, Vae, TextLstm, CharGpt, ActorCritic, GraphNet)}
