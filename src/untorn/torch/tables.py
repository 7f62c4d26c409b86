"""Tables: parameters with sparse gradients, of which a batch reaches a few rows, such as a word's vectors.

They are the weights of the module's ``Embedding(sparse=True)`` and ``EmbeddingBag(sparse=True)``. If forward uses one
in another way too, torch makes its gradient dense, and that is taken as it comes.
"""

from __future__ import annotations

import torch
from torch import nn

from untorn.train.models.base import Rows

__all__ = ["rows_of", "tables_of"]


def tables_of(module: nn.Module) -> frozenset[str]:
    """Return the names of the parameters that are trained, and whose gradient is sparse."""
    weights = [
        each.weight for each in module.modules() if isinstance(each, nn.Embedding | nn.EmbeddingBag) and each.sparse
    ]
    return frozenset(
        name
        for name, parameter in module.named_parameters()
        if parameter.requires_grad and any(parameter is weight for weight in weights)
    )


def rows_of(gradient: torch.Tensor) -> Rows:
    """Return a sparse gradient of a table, in the order in which the batch reached the rows."""
    values = gradient._values()  # noqa: SLF001 (values() refuses an uncoalesced tensor, and coalescing would sort it)
    indices = gradient._indices()[0]  # noqa: SLF001 (likewise)
    return Rows(indices.contiguous().numpy(), values.detach().contiguous().numpy(), tuple(gradient.shape))
