"""A trial of an optimizer of torch: whether another one, begun from its state, is the same.

The trial makes a few steps with an optimizer, takes its state, and begins another one with it. Both must refer to equal
values, and make the same next step, bit for bit. If they do not, the optimizer keeps something where no version of the
weights can have it, and a training cannot continue from a checkpoint.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from untorn.train.optim.outside import changes, record
from untorn.train.optim.torch_state import Form, Places, StateDict

__all__ = ["STEPS", "differences", "left_alone"]

#: the steps of a trial: more than an optimizer needs until it has all its state
STEPS = 7
#: parameters with more elements than this are tried with stand-ins, of which no dimension is larger than the second
_ELEMENTS, _DIMENSION = 1 << 20, 8

Make = Callable[[list[Any]], Any]


def differences(make: Make, parameters: list[Any], names: list[str] | None) -> list[str]:
    """Return what differs between an optimizer and one that was begun from its state; empty if nothing does.

    Args:
        make: makes the optimizer from a list of parameters.
        parameters: parameters of the shapes and dtypes; not changed.
        names: the names of the arrays if its state is taken as Places; None for StateDict.
    """
    elements = sum(parameter.numel() for parameter in parameters)
    if elements > _ELEMENTS:
        shapes = [tuple(min(size, _DIMENSION) for size in parameter.shape) for parameter in parameters]
        with contextlib.suppress(Exception):  # it may depend on the shapes
            return _tried(make, parameters, shapes, names)
    try:
        return _tried(make, parameters, [tuple(parameter.shape) for parameter in parameters], names)
    except Exception as error:
        return [f"what a trial of {STEPS} steps could not find ({type(error).__name__}: {error})"]


def _tried(make: Make, parameters: list[Any], shapes: list[tuple[int, ...]], names: list[str] | None) -> list[str]:
    import torch

    rng = np.random.default_rng(0)
    dtypes = [parameter.dtype for parameter in parameters]

    def drawn() -> list[Any]:
        return [torch.from_numpy(rng.normal(size=shape)).to(dtype) for shape, dtype in zip(shapes, dtypes, strict=True)]

    def begun(values: list[Any]) -> tuple[Any, list[Any]]:
        made = [torch.nn.Parameter(value.clone()) for value in values]
        return make(made), made

    def step(optimizer: Any, made: list[Any], gradients: list[Any]) -> None:
        for parameter, gradient in zip(made, gradients, strict=True):
            parameter.grad = gradient.clone()
        optimizer.step()

    first, trained = begun(drawn())
    groups = [dict(group) for group in first.param_groups]
    of_maker = record(make, [])
    for _ in range(STEPS):
        step(first, trained, drawn())
    form: Form = StateDict.of(first) if names is None else Places.of(first, trained, groups)
    if names is not None and form.names != names:
        late = sorted(set(form.names).symmetric_difference(names))
        return [f"the entries {_listed(late)} of its state, which not every step has"]
    arrays = zip(form.names, form.arrays(first, trained), strict=True)
    second, others = begun(trained)
    form.restore(second, others, {name: array.copy() for name, array in arrays if array is not None})
    gradients = drawn()
    for parameter, other in zip(trained, others, strict=True):
        other.grad = parameter.grad
    found = changes(record(first, trained), record(second, others)) + changes(of_maker, record(make, []))
    if found:
        return [f"its attributes {_listed(found)}" if len(found) > 1 else f"its attribute {found[0]}"]
    step(first, trained, gradients)
    step(second, others, gradients)
    if all(_bytes(one) == _bytes(other) for one, other in zip(trained, others, strict=True)):
        return []
    return ["something that no attribute has, such as global variables or random numbers"]


def _listed(names: list[str]) -> str:
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")


def _bytes(parameter: Any) -> bytes:
    array: NDArray[Any] = parameter.detach().numpy()
    return array.tobytes()


@contextlib.contextmanager
def left_alone() -> Iterator[None]:
    """Let the generators of random numbers of this process be the same after the block as before it."""
    import torch

    own, of_numpy, of_torch = random.getstate(), np.random.get_state(), torch.random.get_rng_state()
    try:
        yield
    finally:
        random.setstate(own)
        np.random.set_state(of_numpy)
        torch.random.set_rng_state(of_torch)
