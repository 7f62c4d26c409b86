"""The state that is published beside the weights before the first step, of parameters in one group or in several."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from untorn.share.lowlevel import Decoder, Layout, flatten
from untorn.train.optim.base import SKIPPED

__all__ = ["HasState", "state_of"]


class HasState(Protocol):
    """An optimizer that keeps buffers of state for each parameter."""

    @property
    def initial_state(self) -> Mapping[str, float]:
        """The name of each buffer, and the number that fills it before the first step."""

    @property
    def counts_steps(self) -> bool:
        """Whether a step depends on how many steps the parameter has made before."""


def state_of(groups: Sequence[HasState], assignment: Sequence[int], trained: Any) -> dict[str, Any] | None:
    """Return the buffers of state by name, each a tree like the parameters; None if there are none.

    The kernels know a buffer by its place among those of a parameter. So two groups share the buffers, and where they
    name one differently, it has both names. What a group does not need stays 0. Last, under the name "skipped", comes
    the number of steps that skipped each parameter, if a group depends on it.

    Args:
        groups: the optimizer of each group.
        assignment: the group of each parameter; empty if all are in the first.
        trained: the tree of parameters.
    """
    spec, parameters = flatten(trained)
    layout = Layout(spec)
    decoder = Decoder(layout.schema, layout.nbytes)
    initial = [list(each.initial_state.items()) for each in groups]
    state: dict[str, Any] = {}
    for place in range(max(map(len, initial))):
        names = dict.fromkeys(each[place][0] for each in initial if place < len(each))
        tree = decoder.value(bytearray(layout.nbytes))
        leaves = flatten(tree)[1]
        for leaf, group in zip(leaves, assignment or [0] * len(leaves), strict=True):
            leaf[...] = initial[group][place][1] if place < len(initial[group]) else 0.0
        state["|".join(names)] = tree
    if any(each.counts_steps for each in groups):
        state[SKIPPED] = np.zeros(len(parameters), np.int64)
    return state or None
