"""Modules with the weights of a channel, for readers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
from torch import nn

__all__ = ["loader"]

_M = TypeVar("_M", bound=nn.Module)


def loader(make: Callable[[], _M]) -> Callable[[Mapping[str, Any]], _M]:
    """Return a function for Subscriber.cached(): it makes a module with a published ``state_dict()``, or with the
    weights that a Trainer of a TorchModel publishes, in eval mode.

    A module itself is not published, because only its class's code could make it again: ``make`` does. Published
    tensors become the module's parameters without a copy; NumPy arrays are copied.

    Args:
        make: makes the module, with any weights: its class, or a function in a module.

    The function raises what ``load_state_dict`` does if the names or shapes differ.

    Example:
        >>> import torch, untorn
        >>> from untorn.torch import loader
        >>> def make() -> torch.nn.Module:
        ...     return torch.nn.Linear(2, 1)
        >>> with untorn.publish(make().state_dict()) as publisher:
        ...     reader = publisher.subscriber()                     # in any process
        ...     module = reader.cached(loader(make))                # made once per version and process
        ...     module is reader.cached(loader(make)), module.training
        (True, False)
    """
    return partial(_loaded, make)


def _loaded(make: Callable[[], _M], state: Mapping[str, Any]) -> _M:
    module = make()
    tensors = {name: torch.tensor(part) if isinstance(part, np.ndarray) else part for name, part in state.items()}
    own = dict([*module.named_parameters(), *module.named_buffers()])
    if tensors.keys() == own.keys() != module.state_dict().keys():
        _fill(own, tensors)
    else:
        module.load_state_dict(tensors, assign=True)
    module.eval()
    return module


def _fill(own: Mapping[str, torch.Tensor], tensors: Mapping[str, torch.Tensor]) -> None:
    """Have parameters and buffers take these tensors' memory. A Trainer publishes tied ones once, and those that are
    not persistent too; load_state_dict() would untie the first, and refuse the others."""
    for name, tensor in own.items():
        if tensors[name].shape != tensor.shape:
            raise RuntimeError(
                f"{name}: the published shape is {tuple(tensors[name].shape)}, and that of the module that was made is "
                f"{tuple(tensor.shape)}"
            )
        tensor.data = tensors[name]
