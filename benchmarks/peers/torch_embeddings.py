"""Skip-gram with negative sampling (Mikolov et al., 2013) on generated words, and its training in one process."""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.peers.torch_crew import Seat

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class EmbeddingsCase:
    """A training: the number of words, the width of their vectors, the pairs of a batch, the negative words of a pair,
    the steps of a turn, and the optimizer, "sgd" or "adam"."""

    words: int
    width: int
    batch: int
    negatives: int
    steps: int
    optimizer: str

    @property
    def rate(self) -> float:
        """The learning rate."""
        return 0.5 if self.optimizer == "sgd" else 0.001

    def pairs(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the words of a turn, and beside each its context and the negative words."""
        rng = np.random.default_rng(0)
        rates = 1 / np.arange(1, self.words + 1)
        count = self.batch * self.steps
        drawn = rng.choice(self.words, (count, 2 + self.negatives), p=rates / rates.sum())
        return drawn[:, 0], drawn[:, 1:]

    def module(self) -> nn.Module:
        """Return a module with a table of vectors for words, and one for contexts."""
        import torch
        from torch import nn

        torch.manual_seed(0)
        tables = (nn.Embedding(self.words, self.width, sparse=True) for _ in range(2))
        return nn.ModuleDict(dict(zip(("word", "context"), tables, strict=True)))


def loss_of(module: Any, pairs: tuple[Tensor, Tensor]) -> Tensor:
    """Return the mean loss of pairs of words and contexts."""
    from torch.nn.functional import logsigmoid

    words, contexts = pairs
    scores = (module["word"](words).unsqueeze(1) * module["context"](contexts)).sum(2)
    return -(logsigmoid(scores[:, 0]) + logsigmoid(-scores[:, 1:]).sum(1)).mean()


def take_part(seat: Seat, connection: Connection) -> None:
    """Train with PyTorch: see torch_crew.Member."""
    import torch

    torch.set_num_threads(seat.threads)
    with contextlib.suppress(EOFError, ConnectionError):  # the benchmark is over, or interrupted
        while True:
            case, _ = connection.recv()
            module, (words, contexts) = case.module(), map(torch.from_numpy, case.pairs())
            make = torch.optim.SGD if case.optimizer == "sgd" else torch.optim.SparseAdam
            optimizer = make(list(module.parameters()), lr=case.rate)
            connection.send(0.0)
            while connection.recv():
                start = time.perf_counter()
                for batch in zip(words.split(case.batch), contexts.split(case.batch), strict=True):
                    optimizer.zero_grad()
                    loss_of(module, batch).backward()
                    optimizer.step()
                connection.send(time.perf_counter() - start)
            connection.send(0.0)
