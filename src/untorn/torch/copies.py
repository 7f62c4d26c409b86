"""Copies of PyTorch modules that ``copy.deepcopy`` and ``pickle`` refuse, as TorchModel needs them.

::

    user's module ── copied(values=False) ──> hollow module ── copied(values=False) ───> a replica in this process
                  │                                         └─ pickler_of ──> bytes ───> a replica in a worker
                  └─ copied(values=True) ──> Trainer.module()

In a *hollow* module parameters and buffers have their shapes and dtypes, but only one element of memory each. Objects
that other copies refuse or get wrong are replaced:

=========================== ==========================================================================================
a parametrized module       a new class with the same properties, for this copy only
a scripted, traced module   itself, saved and loaded by torch.jit
a compiled module           compiled again, with the same backend
a tensor of autograd        a leaf with its values. Modules compute these again in forward; a gradient that arrives at
                            the leaf shows one that does not
a tensor with the memory    the same elements of its copy: see torch/aliases.py
of a parameter
a function in this process  itself; or a copy, if its closure reaches the module, since a hook must see the copy
a hook of a parameter       the same on its copy
objects that pickle refuses see train/models/copying.py
=========================== ==========================================================================================

Copies are made with pickle: _Here pickles for this process, with tensors and functions outside the stream, and
pickler_of for another process.
"""

from __future__ import annotations

import copy
import io
import pickle
import types
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from torch.nn.utils import parametrize
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from untorn.quiet import silenced
from untorn.torch.aliases import Alias, Memory
from untorn.train.models.copying import Absent, Reduction, path_to, reduction, remade, within

__all__ = ["Copy", "Stale", "copied", "hooks_of", "one_number", "pickler_of", "recompute", "register_hooks"]

#: functions on gradients, of one parameter: what register_hook and register_post_accumulate_grad_hook were given
Hooks = list[tuple[torch.Tensor, list[Any], list[Any]]]


class Stale(NamedTuple):
    """A leaf in place of a tensor that was computed from parameters, and its place in the module."""

    path: str
    tensor: torch.Tensor


class Copy(NamedTuple):
    """A copy of a module, with its functions, its stale tensors, and its aliases of parameters."""

    module: nn.Module
    functions: dict[str, Any]
    stale: list[Stale]
    aliases: list[Alias]


def copied(
    module: nn.Module, functions: dict[str, Any], stale: list[Stale], aliases: list[Alias], *, values: bool
) -> Copy:
    """Return a copy of a module, with its known stale tensors and aliases, and copies of those functions (or containers
    of functions, or None) that reach it.

    With ``values`` it has the values of the parameters and buffers, and shares with the module what cannot be copied;
    otherwise it is hollow, and has an Absent there. Raises TypeError if the copy lacks parameters or buffers.
    """
    members = _members(module)
    joined = {name: function for name, function in functions.items() if _reaches(function, members)}
    here = _Here(module, members, values=values)
    made, joined, hooks, stale, aliases = here.copy((module, joined, hooks_of(module), stale, aliases))
    _check_same_names(module, made)
    if not values:
        _empty(made)
    register_hooks(hooks)
    return Copy(made, functions | joined, stale + here.stale, aliases + here.aliases)


def pickler_of(base: Any, model: Any) -> Any:
    """Return a class of picklers, derived from pickle's or cloudpickle's, for a model with a hollow module."""

    class ModulePickler(base):  # type: ignore[misc]  # of a class that is known at run time
        def reducer_override(self, value: Any) -> Any:
            found = _reduced(value)
            if found is None:
                try:
                    found = _asked(value, getattr(self, "dispatch_table", {}))
                except Exception as error:  # the object's own methods may raise any error
                    found = _absent(model, value, error)
            if found is not None:
                return found
            return super().reducer_override(value) if hasattr(base, "reducer_override") else NotImplemented

    return ModulePickler


class _Here(pickle.Pickler):
    """Pickles for this process: tensors, functions and classes are beside the stream."""

    _ITSELF = (type, types.BuiltinFunctionType, types.CodeType, torch.dtype, torch.jit.ScriptFunction)

    def __init__(self, root: nn.Module, members: dict[int, Any], *, values: bool) -> None:
        self._stream = io.BytesIO()
        super().__init__(self._stream, protocol=5)
        self._root = root
        self._members = members
        self._values = values
        self._beside: list[Any] = []
        self._places: dict[int, tuple[int, Any]] = {}  # with the object, so that no other gets its id
        self._shared: dict[int, Any] = {}
        #: copies of tensors and of modules that copy themselves, for copy.deepcopy
        self._memo: dict[int, Any] = {}
        if not values:
            self._memo |= {id(tensor): _hollow(tensor) for tensor in _tensors(root)}
        self._memory = Memory(root)
        self.stale: list[Stale] = []
        self.aliases: list[Alias] = []

    def copy(self, value: Any) -> Any:
        """Return a copy of the value."""
        self.dump(value)
        unpickler = pickle.Unpickler(io.BytesIO(self._stream.getbuffer()))
        unpickler.persistent_load = self._beside.__getitem__  # type: ignore[method-assign]
        return unpickler.load()

    def persistent_id(self, value: Any) -> int | None:
        """Return the index of the copy outside the stream, if it is there."""
        if type(value) in (str, int, float, bool, tuple, list, type(None)):
            return None
        if id(value) not in self._places:
            made = self._made(value)
            if made is None:
                return None
            self._places[id(value)] = (len(self._beside), value)
            self._beside.append(made)
        return self._places[id(value)][0]

    def _made(self, value: Any) -> Any:
        """Return the copy, or None for a value that goes into the stream."""
        if isinstance(value, torch.Tensor):
            return self._tensor(value)
        if isinstance(value, np.ndarray):
            self._memory.check_apart(value, path_to(self._root, value))
            return None
        if id(value) in self._shared or isinstance(value, self._ITSELF):
            return value
        if isinstance(value, types.FunctionType):
            return None if _reaches(value, self._members) else value
        if isinstance(value, nn.Module) and _copies_itself(value):
            try:
                return copy.deepcopy(value, self._memo)
            except Exception:  # whatever there is in it, it may be pickled
                return None
        return None

    def _tensor(self, value: torch.Tensor) -> torch.Tensor:
        if id(value) not in self._memo:
            alias = self._memory.alias(value, path_to(self._root, value))
            if alias is not None or value.grad_fn is not None:
                hollow = alias is not None and not self._values
                self._memo[id(value)] = made = one_number(value) if hollow else value.detach().clone()
            if value.grad_fn is not None and not self._values:
                made.requires_grad_(value.requires_grad)
                self.stale.append(Stale(path_to(self._root, value), made))
            if alias is not None:
                self.aliases.append(alias._replace(tensor=made))
        return copy.deepcopy(value, self._memo)

    def reducer_override(self, value: Any) -> Any:
        """Return how to copy an object that is not beside the stream."""
        if isinstance(value, types.FunctionType):
            self._shared[id(value.__globals__)] = value.__globals__
            return _function(value)
        if isinstance(value, types.MethodType):
            return types.MethodType, (value.__func__, value.__self__)
        if isinstance(value, types.CellType):
            contents = [value.cell_contents] if value != types.CellType() else []
            return types.CellType, (), contents, None, None, _fill_cell
        found = _reduced(value)
        if found is None:
            try:
                found = _asked(value, {})
            except Exception as error:  # whatever the object's own methods raise
                if not self._values:
                    return _absent(self._root, value, error)
                self._shared[id(value)] = value
                found = _same, (value,)
        return NotImplemented if found is None else found


def _same(value: Any) -> Any:
    return value


def _function(value: types.FunctionType) -> Reduction:
    state = (value.__defaults__, value.__kwdefaults__, value.__dict__)
    made = (value.__code__, value.__globals__, value.__name__, None, value.__closure__)
    return types.FunctionType, made, state, None, None, _fill_function


def _fill_function(function: Any, state: Any) -> None:
    function.__defaults__, function.__kwdefaults__, attributes = state
    function.__dict__.update(attributes)


def _fill_cell(cell: types.CellType, contents: list[Any]) -> None:
    for each in contents:
        cell.cell_contents = each


def _reduced(value: Any) -> Reduction | None:
    """Return how PyTorch's own objects, and those of train/models/copying.py, are made again."""
    if isinstance(value, torch.Tensor):
        return (_same, (value.detach(),)) if value.grad_fn is not None else None
    if isinstance(value, torch.jit.ScriptModule | torch.jit.ScriptFunction):
        return _loaded, (value.save_to_buffer(_extra_files={}),)
    if isinstance(value, nn.Module):
        if _is_parametrized(value):
            made = (parametrize.type_before_parametrizations(value), tuple(value.parametrizations))  # type: ignore[arg-type]
            return _parametrized, made, super(type(value), value).__getstate__()
        if (type(value).__module__, type(value).__name__) == ("torch._dynamo.eval_frame", "OptimizedModule"):
            return _compiled_anew(value)
        return None
    return remade(value)


def _asked(value: Any, registered: Any) -> Reduction | None:
    """Return the pickle reduction of an object; for a module whose __getstate__ raises an error, its attributes."""
    try:
        return reduction(value, registered)
    except Exception:
        if not isinstance(value, nn.Module):
            raise
        return object.__new__, (type(value),), value.__dict__, None, None, nn.Module.__setstate__


def _absent(holder: Any, value: Any, error: Exception) -> Reduction:
    path = path_to(holder, value)
    place = f"module{path.removeprefix('._module')}" if path else "the model"
    return Absent, (
        f"{place}: {type(value).__name__!r} objects cannot be copied or sent to workers ({error}), and forward uses "
        "this one; create it in forward if it is missing, or make it a global of the file that defines the module, "
        "which every process has",
    )


def _is_parametrized(module: nn.Module) -> bool:
    injected = vars(type(module)).get("__getstate__")
    return parametrize.is_parametrized(module) and getattr(injected, "__module__", "") == parametrize.__name__


def _parametrized(base: type[nn.Module], names: tuple[str, ...]) -> nn.Module:
    """Return a bare module of a class like those that register_parametrization makes."""
    module = base.__new__(base)
    parametrize._inject_new_class(module)  # noqa: SLF001 (what torch's own copying does)
    for name in names:
        parametrize._inject_property(module, name)  # noqa: SLF001 (likewise)
    return module


def _loaded(saved: bytes) -> Any:
    with silenced():  # the user's code is responsible for using scripts, which are deprecated
        return torch.jit.load(io.BytesIO(saved))  # type: ignore[no-untyped-call]


def _compiled_anew(value: Any) -> Reduction:
    from torch._dynamo.eval_frame import innermost_backend

    context = value.dynamo_ctx
    state = {name: part for name, part in value.__getstate__().items() if name != "dynamo_ctx"}
    made = (value._orig_mod, innermost_backend(context.callback), context.fullgraph, context._dynamic)  # noqa: SLF001 (torch has no public name for it)
    return _compiled, made, state, None, None, _update


def _compiled(module: nn.Module, backend: Any, fullgraph: bool, dynamic: bool | None) -> Any:
    return torch.compile(module, backend=backend, fullgraph=fullgraph, dynamic=dynamic)


def _update(value: Any, state: dict[str, Any]) -> None:
    value.__dict__.update(state)


def _copies_itself(module: nn.Module) -> bool:
    """Return whether it has its own, usable __deepcopy__. That of scripted modules is not usable, since it returns
    parameters with a history."""
    if isinstance(module, torch.jit.ScriptModule):
        return False
    found = getattr(type(module), "__deepcopy__", None)
    return found is not None and getattr(found, "__module__", "") != parametrize.__name__


def _members(module: nn.Module) -> dict[int, Any]:
    """Return the modules and tensors that it consists of, by id."""
    return {id(member): member for member in [*module.modules(), *_tensors(module)]}


def _tensors(module: nn.Module) -> list[torch.Tensor]:
    return [*module.parameters(), *module.buffers()]


def _reaches(value: Any, members: dict[int, Any], *, among: int = 10_000) -> bool:
    """Return whether one of the members is among its nearest parts."""
    if value is None or id(value) in members:
        return value is not None
    parts, seen = [value], {id(value)}
    for holder in parts:
        if len(parts) > among:
            break
        for _, part in within(holder):
            if id(part) in members:
                return True
            if id(part) not in seen:
                seen.add(id(part))
                parts.append(part)
    return False


def hooks_of(module: nn.Module) -> Hooks:
    """Return the functions on gradients that its parameters have."""
    return [(parameter, *hooks) for parameter in module.parameters() if any(hooks := _hooks_on(parameter))]


def _hooks_on(parameter: torch.Tensor) -> tuple[list[Any], list[Any]]:
    after = getattr(parameter, "_post_accumulate_grad_hooks", None)
    return list((parameter._backward_hooks or {}).values()), list((after or {}).values())  # noqa: SLF001 (torch has no public name for it)


def register_hooks(hooks: Hooks) -> None:
    """Register these functions on gradients, unless there are some already."""
    for parameter, on_gradient, after in hooks:
        if any(_hooks_on(parameter)) or not parameter.requires_grad:
            continue
        for function in on_gradient:
            parameter.register_hook(function)  # type: ignore[no-untyped-call]
        for function in after:
            parameter.register_post_accumulate_grad_hook(function)  # type: ignore[no-untyped-call]


def recompute(module: nn.Module) -> None:
    """Compute again the plain attributes of prune, weight_norm and spectral_norm, from the parameters."""
    with torch.no_grad():
        for owner in module.modules():
            for hook in owner._forward_pre_hooks.values():  # noqa: SLF001 (torch has no public name for it)
                if isinstance(hook, BasePruningMethod | WeightNorm):
                    hook(owner, ())
                elif isinstance(hook, SpectralNorm):
                    setattr(owner, hook.name, hook.compute_weight(owner, do_power_iteration=False))


def one_number(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor of this shape and dtype, all of whose elements are one number in memory."""
    return torch.zeros((), dtype=tensor.dtype).expand(tensor.shape)


def _hollow(tensor: torch.Tensor) -> torch.Tensor:
    if not isinstance(tensor, nn.Parameter):
        return one_number(tensor)
    hollow = nn.Parameter(one_number(tensor), requires_grad=tensor.requires_grad)
    hollow.__dict__.update(tensor.__dict__)
    return hollow


def _empty(module: nn.Module) -> None:
    """Make objects that copied themselves hollow."""
    for parameter in module.parameters():
        if any(parameter.stride()):
            parameter.data = one_number(parameter)


def _check_same_names(module: nn.Module, made: nn.Module) -> None:
    missing = sorted(set(_names(module)) - set(_names(made)))
    if missing:
        owner, _, name = missing[0].rpartition(".")
        raise TypeError(
            f"module{f'.{owner}' if owner else ''}: its copy has no {name!r}, since its __deepcopy__, __getstate__ or "
            "__reduce__ leaves it out; expected a copy with all parameters and buffers, since each worker needs one"
        )


def _names(module: nn.Module) -> Iterator[str]:
    yield from (name for name, _ in module.named_parameters())
    yield from (name for name, _ in module.named_buffers())
