"""Copies of modules: the objects that a copy shares with the user's module, and the errors for others."""

from __future__ import annotations

import io
import pickle
import random
import threading
import warnings

import cloudpickle
import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

import torch_kinds
from untorn import WorkerError
from untorn.torch import TorchModel
from untorn.torch.copies import copied
from untorn.train import SGD, Trainer, weights_sha256
from untorn.train.models.copying import Absent, path_to

X = np.random.default_rng(3).normal(size=(16, 6)).astype(np.float32)
DATA = (X, X[:, ::-1].copy())


def serial(model, data=DATA, **arguments):
    with Trainer(model, optimizer=SGD(0.05), engine="serial", shards=2, **arguments) as trainer:
        trainer.fit(data, epochs=1, batch_size=8)
        return trainer.module()


def sent(model, base=cloudpickle.Pickler):
    """Return the model as a worker receives it."""
    stream = io.BytesIO()
    hollow = model.for_workers()
    hollow.pickler(base)(stream, protocol=5).dump(hollow)
    return pickle.loads(stream.getvalue())


def mse(outputs, target):
    return nn.functional.mse_loss(outputs, target)


class Draws(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Sequential(torch_kinds.Holds((number for number in range(9)), lambda part: 1.0 + next(part)))

    def forward(self, x):
        return self.block(x)


@pytest.fixture(autouse=True)
def deprecated():
    """Ignore deprecation warnings: some kinds are deprecated."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", FutureWarning)
        yield


@pytest.mark.parametrize("way", ["here", "sent"])
def test_what_cannot_be_copied_is_named_where_forward_uses_it(way):
    model = TorchModel(Draws(), mse)
    with pytest.raises((RuntimeError, WorkerError)) as caught:
        serial(model) if way == "here" else sent(model)._module(torch.from_numpy(X))
    assert "module.block[0].part: 'generator'" in str(caught.value) or "module.block.0.part: 'generator'" in str(
        caught.value
    )
    assert "create it in forward" in str(caught.value)
    assert next(model._module.block[0].part) == 0  # the user's own module is unchanged


def test_the_trained_module_shares_what_cannot_be_copied():
    module = torch_kinds.make("generator_that_is_not_used")
    assert serial(TorchModel(module, mse)).part is module.part


class Forgets(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(6, 6)

    def forward(self, x):
        return self.inner(x)

    def __deepcopy__(self, memo):
        made = type(self)()
        made.inner.bias = None
        return made


def test_a_copy_without_all_parameters_is_an_error_with_their_place():
    with pytest.raises(TypeError, match=r"module.0.inner: its copy has no 'bias', since its __deepcopy__"):
        Trainer(TorchModel(nn.Sequential(Forgets()), mse), optimizer=SGD(0.1))


class Frozen(nn.Module):
    """A module that uses a value computed from a parameter in its constructor."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.eye(6))
        self.bias = nn.Parameter(torch.zeros(6))
        self.doubled = self.weight * 2

    def forward(self, x):
        return x @ self.doubled + self.bias


def test_what_forward_does_not_compute_anew_is_named():
    with pytest.raises(WorkerError, match=r"module\[0\]\.doubled|module\.0\.doubled: it was computed from parameters"):
        serial(TorchModel(nn.Sequential(Frozen()), mse))


class Criterion(nn.Module):
    """A loss that is part of the module and has parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(6, 6)
        self.scale = nn.Parameter(torch.ones(6))

    def forward(self, x):
        return self.inner(x)

    def loss(self, outputs, target):
        return ((outputs - target) * self.scale).square().mean()


@pytest.mark.parametrize("wrap", [lambda module: module.loss, lambda module: lambda o, t: module.loss(o, t) * 2])
def test_a_loss_that_knows_the_module_has_the_parameters_that_are_trained(wrap):
    module = Criterion()
    trained = serial(TorchModel(module, wrap(module)))
    assert not torch.equal(trained.scale, torch.ones(6))
    assert torch.equal(module.scale, torch.ones(6))
    received = sent(TorchModel(module, wrap(module)))
    output = torch.ones(6, requires_grad=True)
    received.loss(output, torch.zeros(6)).backward()
    assert received._module.scale.grad is not None


def test_a_function_that_does_not_know_the_module_stays_itself():
    seen = []
    serial(TorchModel(nn.Linear(6, 6), lambda outputs, target: (seen.append(1), mse(outputs, target))[1]))
    assert len(seen) == 4


def test_hooks_see_the_copy():
    module = torch_kinds.make("hooks_that_know_the_module")
    left = module.seen[-1]
    serial(TorchModel(module, mse))
    assert module.seen[-1] is left


def test_a_copy_of_a_parametrized_module_has_a_class_of_its_own():
    module = parametrizations.weight_norm(nn.Linear(6, 6))
    trained = serial(TorchModel(module, mse))
    assert parametrize.is_parametrized(trained, "weight")
    assert isinstance(trained, nn.Linear)
    weight = trained.weight.detach().clone()
    parametrize.remove_parametrizations(trained, "weight")
    torch.testing.assert_close(trained.weight.detach(), weight)
    assert torch.isfinite(module(torch.from_numpy(X))).all()
    assert parametrize.is_parametrized(module, "weight")
    with parametrize.cached():
        assert module.weight is module.weight


@pytest.mark.parametrize("name", ["pruned", "old_weight_norm", "old_spectral_norm"])
def test_what_is_recomputed_is_of_the_trained_weights(name):
    module = torch_kinds.make(name)
    trained = serial(TorchModel(module, mse))
    at_once = trained.weight.clone()
    trained.eval()(torch.from_numpy(X))
    torch.testing.assert_close(at_once, trained.weight.detach(), rtol=1e-6, atol=1e-7)


def test_a_pruning_can_be_made_final():
    module = prune.l1_unstructured(nn.Linear(6, 6), "weight", 0.3)
    zeros = module.weight_mask == 0
    trained = prune.remove(serial(TorchModel(module, mse)), "weight")
    assert torch.equal(trained.weight == 0, zeros)
    assert prune.is_pruned(module)


def no_gradient(parameter):
    parameter.grad = None


def test_hooks_of_parameters_travel():
    module = nn.Linear(6, 6)
    module.weight.register_hook(lambda gradient: gradient * 0)
    module.bias.register_post_accumulate_grad_hook(no_gradient)
    for model in (TorchModel(module, mse), sent(TorchModel(module, mse))):
        made = copied(model._module, {}, [], [], values=False).module
        for parameter in made.parameters():
            parameter.data = torch.ones(parameter.shape)
        made(torch.from_numpy(X)).sum().backward()
        assert not made.weight.grad.any()
        assert made.bias.grad is None


def test_plain_pickle_is_enough_for_what_has_no_functions_of_a_session():
    for name in ("spectral_norm", "pruned", "trained_before", "scripted", "keeps_activations"):
        model = sent(TorchModel(torch_kinds.make(name), mse), pickle.Pickler)
        assert [each for each, _ in model._module.named_parameters()]


def test_a_function_that_changes_its_own_variable_and_calls_itself_is_copied_whole():
    module = nn.Linear(6, 6)

    def make():
        calls = 0

        def loss(outputs, target, depth=1, *, by=module):
            nonlocal calls
            calls += 1
            return loss(outputs, target, depth - 1) if depth else mse(outputs, target) + by.bias.square().sum()

        return loss, lambda: calls

    loss, calls = make()
    trained = serial(TorchModel(module, loss))
    assert calls() == 0
    assert trained.bias.norm() < module.bias.norm()


def test_a_wrapper_for_other_processes_is_refused():
    class Distributed(nn.parallel.DistributedDataParallel):
        def __init__(self, module) -> None:
            nn.Module.__init__(self)
            self.module = module

    with pytest.raises(TypeError, match=r"module\.0: a DistributedDataParallel.*\.module"):
        TorchModel(nn.Sequential(Distributed(nn.Linear(6, 6))), mse)


def test_an_absent_object_says_so_whatever_is_done_with_it():
    absent = pickle.loads(pickle.dumps(Absent("it is not here")))
    for use in (
        next,
        iter,
        len,
        bool,
        int,
        lambda a: a.write,
        lambda a: a[0],
        lambda a: a + 1,
        lambda a: a(),
        lambda a: 1 in a,
    ):
        with pytest.raises(RuntimeError, match="it is not here"):
            use(absent)
    assert repr(absent) == "<absent: it is not here>"


def test_the_path_to_an_object():
    module = nn.Sequential(nn.Linear(2, 2))
    inner = threading.Lock()
    module[0].logs = {"file": [None, inner]}
    assert path_to(module, inner) == ".0.logs['file'][1]"
    assert path_to(module, object()) == ""


class Noisy(nn.Module):
    """A module that draws from its own generators."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(6, 6)
        self.torchs = torch.Generator().manual_seed(1)
        self.numpys, self.legacy = np.random.default_rng(1), np.random.RandomState(1)
        self.pythons = random.Random(1)

    def forward(self, x):
        noise = torch.rand(len(x), 6, generator=self.torchs) + float(self.numpys.random() + self.legacy.rand())
        return self.inner(x) + noise * self.pythons.random()


def test_generators_of_the_module_are_seeded_for_each_shard():
    def run(**arguments):
        torch.manual_seed(0)
        module = Noisy()
        with Trainer(TorchModel(module, mse), optimizer=SGD(0.05), shards=4, **arguments) as trainer:
            trainer.fit(DATA, epochs=2, batch_size=8)
            assert module.pythons.getstate() == random.Random(1).getstate()
            return weights_sha256(trainer.params), trainer.predict(X[:4]).tolist()

    expected = run(engine="serial")
    assert run(workers=2) == expected


def shared(**tensors):
    module = nn.Linear(6, 6)
    for name, tensor in tensors.items():
        if isinstance(tensor, nn.Parameter):
            module.register_parameter(name, tensor)
        else:
            module.register_buffer(name, tensor)
    return module


def test_parameters_that_share_memory_are_refused():
    base, frozen = torch.zeros(12), nn.Parameter(torch.zeros(4), requires_grad=False)
    for names, module in {
        ("a", "b"): shared(a=nn.Parameter(base[:7]), b=nn.Parameter(base[6:])),
        ("c", "d"): shared(c=nn.Parameter(base), d=base[::3]),
        ("e", "f"): shared(e=nn.Parameter(base), f=nn.Parameter(base.view(3, 4).T)),
    }.items():
        with pytest.raises(ValueError, match="share memory") as caught:
            Trainer(TorchModel(module, mse), optimizer=SGD(0.1))
        assert all(f"'{name}'" in str(caught.value) for name in names)
    apart = shared(a=nn.Parameter(base[::2]), b=nn.Parameter(base[1::2]), c=frozen, d=frozen.detach()[1:])
    serial(TorchModel(apart, mse))
