"""Tables, parameters with sparse gradients, and the optimizers that can train them: see csrc/board_rows.h."""

from __future__ import annotations

from untorn import _core
from untorn.share.lowlevel import flatten
from untorn.train.models.base import Parts
from untorn.train.optim.base import Optimizer
from untorn.trees import path_of, paths

__all__ = ["check_tables"]


def check_tables(parts: Parts, optimizer: Optimizer, *, on_nodes: bool) -> None:
    """Raise TypeError or ValueError, naming the parameter, for a parameter that the optimizer cannot train.

    SparseAdam trains tables only. On nodes, a table is not trained with Adam: the sum that they exchange does not tell
    the rows that have no gradient from those whose gradient is zero, and Adam leaves only the first as they are.
    """
    names = [path_of(path) for path in paths(flatten(parts.trained)[0])]
    groups = optimizer.assignment or [0] * len(names)
    for name, group in zip(names, groups, strict=True):
        kernel, is_table = optimizer.kernels[group].optimizer, name in parts.tables
        if kernel == _core.KERNEL_SPARSE_ADAM and not is_table:
            raise TypeError(
                f"optimizer: SparseAdam: expected parameters of nn.Embedding(sparse=True) or EmbeddingBag only, found "
                f"{name!r}, whose gradient is dense; untorn.Adam(...) trains both kinds"
            )
        by_rows = optimizer.by_rows[group] and kernel in (_core.KERNEL_ADAM, _core.KERNEL_SPARSE_ADAM)
        if on_nodes and is_table and by_rows:
            raise ValueError(
                f"optimizer: parameter {name!r} has sparse gradients, and Adam would change only rows that have one, "
                "which nodes cannot tell: they exchange dense sums. Write sparse=False, or use SGD or Adagrad"
            )
