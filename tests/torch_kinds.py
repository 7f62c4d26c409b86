"""Kinds of PyTorch modules that a plain loop trains and ``copy.deepcopy`` or ``pickle`` refuses, or copies wrongly.

Each function makes one: 6 numbers in, 6 out. They are a table, KINDS, by name.
"""

from __future__ import annotations

import copy
import functools
import logging
import os
import queue
import sys
import threading
import types
import warnings
import weakref
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

KINDS = {}


def kind(function):
    KINDS[function.__name__] = function
    return function


def make(name: str) -> nn.Module:
    """One of them, with the same weights each time."""
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some are deprecated, and still in use
        return KINDS[name]()


def linear() -> nn.Linear:
    return nn.Linear(6, 6)


class Symmetric(nn.Module):
    def forward(self, w):
        return w.triu() + w.triu(1).T


class Doubled(nn.Module):
    def forward(self, w):
        return 2 * w

    def right_inverse(self, w):
        return w / 2


class Split(nn.Module):
    def forward(self, size, direction):
        return size * direction

    def right_inverse(self, w):
        return w.norm(), w / w.norm()


class Scaled(nn.Module):
    """A parametrization with a parameter, a buffer and a parametrization of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(6, 1))
        self.register_buffer("calls", torch.zeros(()))
        self.mix = nn.Linear(6, 6, bias=False)
        parametrize.register_parametrization(self.mix, "weight", Symmetric())

    def forward(self, w):
        self.calls += 1
        return self.mix(w) * self.scale


def parametrized(*parts: nn.Module, names=("weight",)) -> nn.Module:
    made = linear()
    for name in names:
        for part in parts:
            parametrize.register_parametrization(made, name, part)
    return made


for _name, _wrap in {
    "old_weight_norm": nn.utils.weight_norm,
    "old_spectral_norm": nn.utils.spectral_norm,
    "weight_norm": parametrizations.weight_norm,
    "spectral_norm": parametrizations.spectral_norm,
    "orthogonal": parametrizations.orthogonal,
    "cayley": partial(parametrizations.orthogonal, orthogonal_map="cayley"),
    "old_weight_norm_of_two": lambda m: nn.utils.weight_norm(nn.utils.weight_norm(m), "bias", dim=None),
    "pruned": partial(prune.l1_unstructured, name="weight", amount=0.3),
    "pruned_at_random": partial(prune.random_structured, name="weight", amount=2, dim=1),
    "pruned_twice": lambda m: prune.l1_unstructured(prune.random_unstructured(m, "weight", 2), "weight", 5),
}.items():
    KINDS[_name] = lambda wrap=_wrap: wrap(linear())
KINDS["own_parametrization"] = lambda: parametrized(Symmetric())
KINDS["chained_parametrizations"] = lambda: parametrized(Symmetric(), Doubled())
KINDS["right_inverse_of_two"] = lambda: parametrized(Split())
KINDS["parametrization_with_parameters"] = lambda: parametrized(Scaled())
KINDS["two_parametrized_tensors"] = lambda: parametrized(Doubled(), names=("weight", "bias"))


@kind
def trained_before():
    made = nn.Sequential(nn.utils.weight_norm(linear()), prune.l1_unstructured(linear(), "weight", 0.3))
    made(torch.ones(2, 6)).sum().backward()
    return made


class Keeps(nn.Module):
    """Keeps what it computes on the way: in an attribute, in a list, in a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = linear()
        self.hidden, self.all, self.named = None, [], {}

    def forward(self, x):
        self.hidden = torch.tanh(self.inner(x))
        self.all = [*self.all[-1:], self.hidden]
        self.named["node"] = self.hidden.grad_fn
        return self.hidden + self.hidden.mean()


@kind
def keeps_activations():
    made = Keeps()
    made(torch.ones(3, 6))
    return made


class Penalised(nn.Module):
    """A hook, a function that knows the module, puts what forward reads next where it can be seen."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = linear(), linear()
        self.seen = []
        self.first.register_forward_hook(lambda module, inputs, output: self.seen.append(output))
        self.second.register_forward_pre_hook(self._scale)
        self.handle = self.second.register_forward_hook(partial(self._shift, by=0.5))

    def _scale(self, module, inputs):
        return (inputs[0] * 2,)

    def _shift(self, module, inputs, output, by):
        return output + by

    def forward(self, x):
        y = self.second(torch.tanh(self.first(x)))
        return y + self.seen.pop().mean()


@kind
def hooks_that_know_the_module():
    made = Penalised()
    made(torch.ones(2, 6))
    made.seen.append(made.first.weight.sum())  # and something that is left over, with a history
    return made


@kind
def patched_forward():
    made = linear()
    original = made.forward
    made.forward = lambda x: original(x) * 2
    return made


@kind
def method_bound_by_hand():
    made = linear()
    made.forward = types.MethodType(lambda self, x: nn.functional.linear(x, self.weight.T, self.bias), made)
    return made


@kind
def hooks_of_parameters():
    made = linear()
    mask = torch.ones(6, 6).tril()
    made.weight.register_hook(lambda gradient: gradient * mask)
    made.bias.register_hook(lambda gradient: gradient + made.bias.detach())
    return made


class Holds(nn.Module):
    """A module with an attribute, and what forward does with it."""

    def __init__(self, part, use) -> None:
        super().__init__()
        self.inner = linear()
        self.part = part
        self.use = use

    def forward(self, x):
        return self.inner(x) * self.use(self.part)


def acquired(lock) -> float:
    with lock:
        return 1.5


@kind
def lock():
    return Holds(threading.Lock(), acquired)


@kind
def held_lock():
    made = threading.RLock()
    made.acquire()
    return Holds(made, acquired)


@kind
def condition_event_queue():
    def use(part):
        part[1].set()
        part[2].put(1)
        return acquired(part[0]) + part[2].get(timeout=60) + part[1].is_set()

    return Holds([threading.Condition(), threading.Event(), queue.Queue()], use)


@kind
def pool_of_threads():
    return Holds(pool(), lambda part: part.submit(abs, -2.0).result(timeout=60))


def pool():
    made = ThreadPoolExecutor(1)
    made.submit(abs, 1).result()
    weakref.finalize(made, made.shutdown)
    return made


@kind
def generator_that_is_not_used():
    return Holds((number for number in range(3)), lambda part: 2.0)


@kind
def file_to_write_to():
    made = open(os.devnull, "w")  # noqa: SIM115  # the module's
    return Holds(made, lambda part: float(part.write("step") > 0))


@kind
def file_to_read_from():
    made = open(__file__, "rb")  # noqa: SIM115  # the module's
    made.seek(3)

    def use(part):
        part.seek(0)
        return len(part.read(7)) / 7

    return Holds(made, use)


@kind
def stream_and_logger():
    return Holds(
        [sys.stderr, logging.getLogger("test")], lambda part: 1.0 + part[1].isEnabledFor(5) + part[0].write("")
    )


@kind
def functions_and_modules():
    @functools.lru_cache
    def twice(number):
        return 2 * number

    return Holds([lambda number: number + 1, twice, np, types.MappingProxyType({"k": 3})], use_functions)


def use_functions(part):
    add, twice, numpy, proxy = part
    return float(add(twice(numpy.float64(proxy["k"]))))


@kind
def class_made_in_a_function():
    class Local(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = linear()

        def forward(self, x):
            return self.inner(x) + 1

    return Local()


class Child(nn.Module):
    """Knows its parent, weakly."""

    def __init__(self, parent) -> None:
        super().__init__()
        self.parent = weakref.ref(parent)
        self.__dict__["proxy"] = weakref.proxy(parent)  # a module's own way would register it
        self.others = weakref.WeakKeyDictionary({parent: 2.0})

    def forward(self, x):
        parent = self.parent()
        return parent.inner(x) * self.proxy.scale * self.others[parent]


@kind
def weak_references():
    made = nn.Module()
    made.inner, made.scale = linear(), nn.Parameter(torch.ones(6))
    made.child = Child(made)
    made.forward = made.child.forward
    return made


@kind
def scripted():
    return torch.jit.script(nn.Sequential(linear(), nn.BatchNorm1d(6), nn.Tanh(), linear()))


@kind
def traced():
    return torch.jit.trace(nn.Sequential(linear(), nn.Tanh(), linear()), torch.ones(2, 6))


@kind
def scripted_inside():
    function = torch.jit.script(halved)
    return nn.Sequential(linear(), torch.jit.script(nn.Sequential(linear(), nn.Tanh())), Holds(function, use_function))


def halved(x: torch.Tensor) -> torch.Tensor:
    return x / 2


def use_function(function):
    return function(torch.ones(1))


@kind
def traced_by_fx():
    return torch.fx.symbolic_trace(nn.Sequential(linear(), nn.Tanh(), linear()))


@kind
def compiled():
    return torch.compile(nn.Sequential(linear(), nn.Tanh(), linear()), backend="eager", dynamic=True)


@kind
def compiled_in_place():
    made = nn.Sequential(linear(), nn.Tanh(), linear())
    made.compile(backend="eager", dynamic=True)
    return made


@kind
def data_parallel():
    return nn.DataParallel(linear())


class CopiesItself(nn.Module):
    """Refuses what others do, and copies itself."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = linear()
        self.copies = 0

    def forward(self, x):
        return self.inner(x)

    def __deepcopy__(self, memo):
        made = type(self)()
        made.load_state_dict(self.state_dict())
        made.copies = self.copies + 1
        return made


@kind
def copies_itself():
    return CopiesItself()


class RefusesToTravel(nn.Module):
    """Neither pickle nor copy gets it."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = linear()

    def forward(self, x):
        return self.inner(x)

    def __getstate__(self):
        raise TypeError("save the state_dict instead")

    def __deepcopy__(self, memo):
        raise TypeError("make another one instead")


@kind
def refuses_to_travel():
    return RefusesToTravel()


class LeavesSomeAtHome(RefusesToTravel):
    """Its state is not all there is, and what it left is made again."""

    def __init__(self) -> None:
        super().__init__()
        self.scratch = memoryview(bytearray(3))

    def __getstate__(self):
        return {name: part for name, part in self.__dict__.items() if name != "scratch"}

    def __setstate__(self, state):
        super().__setstate__(state)
        self.scratch = memoryview(bytearray(3))

    __deepcopy__ = None

    def forward(self, x):
        return self.inner(x) * len(self.scratch)


@kind
def leaves_some_at_home():
    return LeavesSomeAtHome()


class Lists(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.each = nn.ParameterList([torch.ones(6), torch.full((6,), 2.0)])
        self.named = nn.ParameterDict({"a": torch.ones(6), "b": nn.Parameter(torch.zeros(6))})
        self.register_buffer("shift", torch.ones(6), persistent=False)
        self.tied = nn.ModuleList([linear(), linear()])
        self.tied[1].weight = self.tied[0].weight
        self.alias = self.tied[0]

    def forward(self, x):
        x = self.tied[1](torch.tanh(self.alias(x) * self.each[0] + self.each[1]))
        return x * self.named["a"] + self.named["b"] + self.shift


@kind
def lists_and_dicts_of_parameters():
    return Lists()


@kind
def lazy():
    made = nn.Sequential(nn.LazyLinear(6), nn.LazyBatchNorm1d())
    made(torch.randn(4, 6))
    return made


@kind
def quantisation_aware():
    from torch.ao import quantization

    made = nn.Sequential(linear())
    made.qconfig = quantization.QConfig(
        quantization.FakeQuantize.with_args(observer=quantization.MovingAverageMinMaxObserver),
        quantization.FakeQuantize.with_args(
            observer=quantization.MinMaxObserver, dtype=torch.qint8, quant_min=-128, quant_max=127
        ),
    )
    return quantization.prepare_qat(made.train())


@kind
def copied_already():
    return copy.deepcopy(parametrized(Symmetric()))


class Shares(nn.Module):
    """A module that has the memory of its parameters and of a buffer a second time: all of it, and parts."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = linear()
        self.register_buffer("calls", torch.ones(2))
        weight = self.linear.weight.data
        self.weight, self.parts = weight, {"transposed": weight.t(), "some": [weight[1:, ::2]]}
        self.row = self.linear.weight[0]
        self.first_call = self.calls[:1]

    def forward(self, x):
        self.calls.add_(1.0)
        some = self.weight + self.parts["transposed"] + self.parts["some"][0].sum() * self.first_call
        return self.linear(x) + 0.1 * x @ some + self.row.detach()


KINDS["memory_of_a_parameter"] = Shares
