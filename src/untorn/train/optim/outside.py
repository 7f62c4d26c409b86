"""Find what an optimizer keeps outside the state that can be published beside the weights.

::

    the optimizer, after some steps ────────── record() ──> {path: value} ──┐
    another one, begun from its state ──────── record() ──> {path: value} ──┴── changes() ──> such as "halves", "number"

A record walks through everything that the optimizer refers to: attributes, containers, other optimizers and schedulers,
what its functions have in their closures, and generators of random numbers. It cannot see what code in C or a module's
global variables keep; a step of both optimizers, which must give the same bits, finds that.
"""

from __future__ import annotations

import enum
import functools
import hashlib
import random
import types
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

__all__ = ["changes", "record"]

#: attributes that only warnings, profilers and new groups use; load_state_dict() of torch sets some of them
_IGNORED = frozenset({"_opt_called", "_is_initial", "_zero_grad_profile_name", "_hook_for_profile", "defaults"})
_ATOMS = (type(None), bool, int, float, complex, str, bytes, enum.Enum)
_OPAQUE = (type, types.ModuleType, types.BuiltinFunctionType, types.CodeType)
#: of a large array, a record has this number of elements
_SAMPLED = 1 << 16
_DEPTH = 40
#: a record has this number of objects at most
_OBJECTS = 200_000


def record(root: Any, parameters: Iterable[Any]) -> dict[str, Any]:
    """Return the values of everything that an optimizer refers to, by path, without its parameters and their gradients.

    Args:
        root: the optimizer.
        parameters: its parameters, tensors of torch.
    """
    found: dict[str, Any] = {}
    tensors = [each for parameter in parameters for each in (parameter, parameter.grad) if each is not None]
    seen = set(map(id, tensors))
    memory = {each.untyped_storage().data_ptr() for each in tensors if each.numel()}
    stack: list[tuple[str, Any]] = [("", root)]
    kept: list[Any] = []  # temporary objects, so that no other one gets their id
    while stack and len(found) + len(kept) < _OBJECTS:
        path, value = stack.pop()
        if path.count(".") + path.count("[") > _DEPTH:
            continue
        if isinstance(value, _ATOMS):
            found[path] = repr(value)
            continue
        if id(value) in seen or isinstance(value, _OPAQUE) or type(value).__module__.startswith(("jax.", "jaxlib.")):
            continue
        if not isinstance(value, tuple):  # which of two paths refers to it must not matter
            seen.add(id(value))
        kept.append(value)
        if _memory_of(value) in memory:  # a view of a parameter
            continue
        state = _state_of(value)
        if state is not None:
            found[path] = state
            continue
        stack += reversed(list(_parts(path, value)))
    return found


def changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Return the paths at which two records differ, shortened to a place that is easy to find, the shortest first."""
    differing = [path for path in {**before, **after} if before.get(path) != after.get(path)]
    parents = sorted({_shortened(path) for path in differing}, key=lambda path: (len(path), path))
    return [path for path in parents if not any(path.startswith((f"{other}.", f"{other}[")) for other in parents)]


def _shortened(path: str) -> str:
    """Return the path up to its third step, which is enough to find it."""
    steps = 0
    for place, letter in enumerate(path):
        steps += letter in ".["
        if steps == 3:
            return path[:place]
    return path


def _is_tensor(value: Any) -> bool:
    return type(value).__module__.partition(".")[0] == "torch" and hasattr(value, "data_ptr")


def _memory_of(value: Any) -> int | None:
    """Return the address of a tensor's memory; None for anything else."""
    if not _is_tensor(value) or not value.numel():
        return None
    try:
        address: int = value.untyped_storage().data_ptr()
    except (RuntimeError, NotImplementedError):  # a sparse tensor
        return None
    return address


def _state_of(value: Any) -> Any:
    """Return the state of an array, a tensor or a generator of random numbers, in a form that can be compared; None for
    any other object."""
    kind = type(value)
    if isinstance(value, np.ndarray) or _is_tensor(value):
        return _digest(value)
    if isinstance(value, np.generic):
        return repr(value)
    if isinstance(value, random.Random):
        return repr(value.getstate())
    if isinstance(value, np.random.Generator):
        return repr(value.bit_generator.state)
    if isinstance(value, np.random.RandomState):
        return repr(value.get_state())
    if kind.__module__ == "torch._C" and kind.__name__ == "Generator":
        return _digest(value.get_state())
    if kind.__module__ == "itertools" or kind.__name__.endswith("iterator"):
        return repr(value)
    return None


def _digest(value: Any) -> Any:
    try:
        array = np.asarray(value.detach().cpu() if hasattr(value, "detach") else value).reshape(-1)
    except (TypeError, RuntimeError, ValueError):  # such as bfloat16, or a sparse tensor
        return repr(value)
    sample = np.ascontiguousarray(array[:: max(1, array.size // _SAMPLED)])
    return str(array.dtype), array.size, hashlib.sha256(sample.tobytes() if not array.dtype.hasobject else b"").digest()


def _parts(path: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Yield what an object refers to, with paths."""
    dot = f"{path}." if path else ""
    if isinstance(value, dict):
        yield f"{path}.len()", len(value)
        for index, (key, item) in enumerate(value.items()):
            name = repr(key) if isinstance(key, str | int | float) else str(index)
            yield f"{path}[{name}]", item
    elif isinstance(value, list | tuple | set | frozenset) or type(value).__name__ == "deque":
        yield f"{path}.len()", len(value)
        for index, item in enumerate(value):
            yield f"{path}[{index}]", item
    if isinstance(value, functools.partial):
        yield from ((f"{dot}{name}", getattr(value, name)) for name in ("func", "args", "keywords"))
    elif isinstance(value, types.MethodType):
        yield f"{dot}__self__", value.__self__
        yield f"{dot}__func__", value.__func__
    elif isinstance(value, types.GeneratorType):
        yield f"{dot}(place)", value.gi_frame.f_lasti if value.gi_frame else -1
        yield from (
            (f"{dot}{name}", each) for name, each in (value.gi_frame.f_locals if value.gi_frame else {}).items()
        )
    elif isinstance(value, types.FunctionType):
        cells = value.__closure__ or ()
        for name, cell in zip(value.__code__.co_freevars, cells, strict=True):
            try:
                yield f"{dot}{name}", cell.cell_contents
            except ValueError:  # nothing yet
                continue
        yield f"{dot}__defaults__", value.__defaults__
        yield f"{dot}__kwdefaults__", value.__kwdefaults__
    names = dict(getattr(value, "__dict__", {}))
    for cls in type(value).__mro__:
        slots = cls.__dict__.get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if name not in ("__dict__", "__weakref__") and hasattr(value, name):
                names[name] = getattr(value, name)
    for name, item in names.items():
        if isinstance(name, str) and name not in _IGNORED:
            yield f"{dot}{name}", item
