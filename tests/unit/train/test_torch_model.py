"""TorchModel: accepted modules and data, and the errors for others, in this process only.
tests/conformance/test_torch_training.py tests TorchModel in workers."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

import networks
from untorn import SGD, NonFiniteLossError, Trainer, WorkerError
from untorn.share.lowlevel import extra
from untorn.torch import TorchModel
from untorn.train import weights_sha256
from untorn.train.data.sampler import epoch_order
from untorn.train.optim.fused import AdamW


@pytest.fixture(autouse=True)
def same_initial_weights():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def trainer_of(model, **arguments):
    given = {"optimizer": SGD(0.1), "engine": "serial", "shards": 2, "seed": 1} | arguments
    return Trainer(model, **given)


def trained(module, data, loss=None, *, epochs=2, batch_size=8, metrics=None, forward=None, **arguments):
    """Return (the trained module, the params, the history)."""
    model = TorchModel(module, loss or nn.MSELoss(), metrics=metrics, forward=forward)
    with trainer_of(model, **arguments) as trainer:
        history = trainer.fit(data, epochs=epochs, batch_size=batch_size)
        return trainer.module(), trainer.params, history.history


def regression(examples=40, features=3, dtype=np.float32):
    x, y = networks.data_of(examples, features, dtype=dtype)
    return x, y[:, None]


def plain(module, data, *, epochs=2, batch_size=8, call=lambda module, x: module(x), lr=0.1):
    """Return the same from a plain PyTorch loop with one shard."""
    module = copy.deepcopy(module).train()
    optimizer = torch.optim.SGD([p for p in module.parameters() if p.requires_grad], lr=lr)
    x, y = map(torch.from_numpy, data)
    for epoch in range(epochs):
        order = epoch_order(1, epoch, len(x))
        for start in range(0, len(x), batch_size):
            batch = order[start : start + batch_size]
            optimizer.zero_grad()
            nn.functional.mse_loss(call(module, x[batch]), y[batch]).backward()
            optimizer.step()
    return module


def assert_same(got, expected):
    assert got.state_dict().keys() == expected.state_dict().keys()
    for name, value in expected.state_dict().items():
        torch.testing.assert_close(got.state_dict()[name], value, rtol=1e-4, atol=1e-6)


# -- parameters


def test_frozen_parameters_stay_bit_for_bit_and_have_no_gradient():
    module = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    module[0].requires_grad_(False)
    module.small = nn.Parameter(torch.ones(5, dtype=torch.float16), requires_grad=False)
    module.number = nn.Parameter(torch.tensor(7), requires_grad=False)
    model = TorchModel(module, nn.MSELoss())
    with trainer_of(model, optimizer=SGD(0.1, momentum=0.9)) as trainer:
        trainer.fit(regression(), epochs=2, batch_size=8)
        assert trainer._open().weights.layout.parameters == 5
        with trainer.snapshot() as snapshot:
            assert list(extra(snapshot)["momentum"]) == ["2.weight", "2.bias"]
        params, got = trainer.params, trainer.module()
    for name in ("0.weight", "0.bias", "small", "number"):
        assert params[name].tobytes() == module.get_parameter(name).detach().numpy().tobytes()
        assert not got.get_parameter(name).requires_grad
    assert not np.array_equal(params["2.weight"], module[2].weight.detach().numpy())


def test_frozen_parameters_cost_no_gradient_memory():
    module = nn.Sequential(nn.Linear(1000, 3).requires_grad_(False), nn.Linear(3, 1))
    with trainer_of(TorchModel(module, nn.MSELoss())) as trainer, trainer:
        assert trainer._open().weights.layout.absent_at == 128


def test_tied_parameters_are_there_once():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.out = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 1)
            self.b.weight = self.a.weight

        def forward(self, x):
            return self.out(torch.tanh(self.b(torch.tanh(self.a(x)))))

    module = Tied()
    got, params, _ = trained(module, regression(), shards=1)
    assert "b.weight" not in params
    assert got.a.weight is got.b.weight
    assert_same(got, plain(module, regression()))


def test_float64_and_float32_side_by_side_with_a_number():
    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(3, 4)
            self.outer = nn.Linear(4, 1).double()
            self.scale = nn.Parameter(torch.tensor(0.5))
            self.shift = nn.Parameter(torch.zeros((), dtype=torch.float64))

        def forward(self, x):
            return self.outer((torch.tanh(self.inner(x)) * self.scale).double()) + self.shift

    x, y = regression()
    module, data = Mixed(), (x, y.astype(np.float64))
    got, params, _ = trained(module, data, shards=1)
    assert {str(array.dtype) for array in params.values()} == {"float32", "float64"}
    assert params["scale"].shape == ()
    assert_same(got, plain(module, data))


def test_memory_formats_are_kept():
    module = nn.Sequential(
        nn.Unflatten(1, (3, 2, 2)), nn.Conv2d(3, 4, 2), nn.Flatten(), nn.Linear(4, 1)
    ).to(memory_format=torch.channels_last)  # fmt: skip
    data = regression(features=12)
    got, _, _ = trained(module, data, shards=1)
    assert_same(got, plain(module, data))
    assert got[1].weight.is_contiguous(memory_format=torch.channels_last)


def test_a_parameter_that_is_not_used_gets_a_gradient_of_zero():
    class Unused(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.unused = nn.Linear(3, 1), nn.Linear(3, 1)

        def forward(self, x):
            return self.used(x)

    module = Unused()
    got, _, _ = trained(module, regression())
    assert torch.equal(got.unused.weight, module.unused.weight)
    assert not torch.equal(got.used.weight, module.used.weight)


# -- data, loss, metrics


class Product(nn.Module):
    def __init__(self):
        super().__init__()
        self.line = nn.Linear(3, 1)

    def forward(self, left, right):
        return self.line(left) * right


def product_of(wrap):
    x, y = regression()
    return wrap(x, np.abs(x[:, :1]), y)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda a, b, y: (a, b, y),
        lambda a, b, y: [a, b, y],
        lambda a, b, y: {"target": y, "right": b, "left": a},
        lambda a, b, y: {"right": b, "left": a, "labels": y},
        lambda a, b, y: tuple(map(torch.from_numpy, (a, b, y))),
        lambda a, b, y: {"left": torch.from_numpy(a), "right": b, "target": torch.from_numpy(y)},
    ],
    ids=["tuple", "list", "target", "last key", "tensors", "some tensors"],
)
def test_several_inputs(wrap):
    module = Product()
    expected = trained(module, product_of(lambda a, b, y: (a, b, y)))[1]
    got = trained(module, product_of(wrap))[1]
    assert all(np.array_equal(got[name], expected[name]) for name in expected)


def mae(outputs, target):
    return (outputs - target).abs().mean()


def test_metrics_are_means_over_the_examples():
    module = nn.Linear(3, 1)
    x, y = regression(20)
    metrics = {"mae": mae, "count": lambda outputs, target: float(len(outputs))}
    history = trained(module, (x, y), metrics=metrics, epochs=1, batch_size=20, shards=3)[2]
    with torch.no_grad():
        expected = mae(module(torch.from_numpy(x)), torch.from_numpy(y)).item()
    assert history["mae"][0] == pytest.approx(expected, rel=1e-6)
    assert history["count"][0] == pytest.approx((6 * 6 + 7 * 7 + 7 * 7) / 20)


def backwards_batch(module, batch):
    """A model with its own forward."""
    outputs = module(batch["x"])
    return ((outputs - batch["y"]) ** 2).mean(), outputs


def test_forward_replaces_the_convention():
    module = nn.Linear(3, 1)
    x, y = regression()
    expected = trained(module, (x, y), metrics={"mae": mae})
    model = TorchModel(module, None, forward=backwards_batch, metrics={"mae": mae})
    with trainer_of(model) as trainer:
        history = trainer.fit({"x": x, "y": y}, epochs=2, batch_size=8)
        assert all(np.array_equal(trainer.params[name], expected[1][name]) for name in expected[1])
    assert history.history == expected[2]
    alone = trained(module, {"x": x, "y": y}, forward=lambda module, batch: backwards_batch(module, batch)[0])
    assert all(np.array_equal(alone[1][name], expected[1][name]) for name in expected[1])


def test_forward_and_loss_get_the_rng_of_the_shard_if_they_want_it():
    drawn = []

    def noisy(outputs, target, rng):
        drawn.append(rng.random())
        return ((outputs - target) ** 2).mean()

    def forward(module, batch, rng):
        return noisy(module(batch[0]), batch[1], rng)

    trained(nn.Linear(3, 1), regression(), noisy, epochs=1)
    first = drawn.copy()
    drawn.clear()
    trained(nn.Linear(3, 1), regression(), forward=forward, epochs=1)
    assert drawn == first
    assert len(set(drawn)) == 10


def test_random_numbers_of_torch_are_keyed_by_seed_step_and_shard():
    class Noise(nn.Module):
        def __init__(self):
            super().__init__()
            self.line = nn.Linear(3, 1)

        def forward(self, x):
            drawn.append(torch.rand(()).item())
            return self.line(x)

    drawn = []
    trained(Noise(), regression(), epochs=1)
    first = drawn.copy()
    assert len(set(first)) == 10
    drawn.clear()
    torch.rand(100)
    trained(Noise(), regression(), epochs=1)
    assert drawn == first
    drawn.clear()
    trained(Noise(), regression(), epochs=1, seed=2)
    assert not set(drawn) & set(first)


# -- buffers


class Counts(nn.Module):
    """Buffers of many kinds; ``change`` is called with the module and the batch."""

    def __init__(self, change, **buffers):
        super().__init__()
        self.line = nn.Linear(3, 1)
        self.change = change
        for name, value in buffers.items():
            self.register_buffer(name, value, persistent=not name.startswith("_"))

    def forward(self, x):
        if self.training:
            with torch.no_grad():
                self.change(self, x)
        return self.line(x)


def test_buffers_that_nobody_changes_stay_bit_for_bit():
    buffers = {
        "mask": torch.tensor([0.0, -0.0, float("inf"), -float("inf"), float("nan"), 1e-42, 0.1]),
        "_double": torch.full((3, 2), 1 / 3, dtype=torch.float64),
        "small": torch.tensor([0.1, 65504.0], dtype=torch.float16),
        "complex": torch.tensor([1 / 3 + 0.1j]),
        "flags": torch.tensor([True, False]),
        "numbers": torch.arange(1000),
        "empty": torch.zeros(0, 3),
    }
    module = Counts(lambda module, x: None, **buffers)
    got, params, _ = trained(module, regression(), shards=3)
    for name, value in buffers.items():
        assert params[name].tobytes() == value.numpy().tobytes()
        assert got.get_buffer(name).numpy().tobytes() == value.numpy().tobytes()
    assert "_double" not in got.state_dict()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64, torch.complex128])
def test_a_float_buffer_is_the_mean_over_the_shards_by_their_examples(dtype):
    def change(module, x):
        module.seen[0] += len(x)
        module.seen[2] = len(x) * (1j if dtype.is_complex else 1)

    module = Counts(change, seen=torch.tensor([1.0, 5.0, 0.0], dtype=dtype))
    _, params, _ = trained(module, regression(10), epochs=1, batch_size=10, shards=3)
    mean = (3 * 3 + 3 * 3 + 4 * 4) / 10
    expected = np.array([1 + mean, 5, mean * (1j if dtype.is_complex else 1)])
    np.testing.assert_allclose(params["seen"], expected, rtol=1e-6)
    assert params["seen"].dtype == module.seen.numpy().dtype


def test_a_large_float_buffer_changes_where_it_is_changed():
    def change(module, x):
        module.large[1500] = x[0, 0]
        module.large[7] += 1

    start = torch.rand(2000)
    _, params, _ = trained(Counts(change, large=start.clone()), regression(8), epochs=1, batch_size=8, shards=4)
    same = np.delete(params["large"], [7, 1500])
    assert same.tobytes() == np.delete(start.numpy(), [7, 1500]).tobytes()
    assert params["large"][7] == start[7] + 1


def test_other_buffers_have_the_value_of_the_first_shard_with_examples():
    def change(module, x):
        module.steps += 1
        module.examples += len(x)
        module.odd ^= True

    start = {"steps": torch.tensor(0), "examples": torch.tensor(0, dtype=torch.int32), "odd": torch.tensor([False])}
    data = regression(7)
    _, params, _ = trained(Counts(change, **start), data, epochs=1, batch_size=4, shards=3)
    order = [4 * shard // 3 for shard in range(4)], [3 * shard // 3 for shard in range(4)]
    assert params["steps"] == 2
    assert params["examples"] == sum(bounds[1] - bounds[0] for bounds in order)
    assert not params["odd"][0]
    _, params, _ = trained(Counts(change, **start), data, epochs=1, batch_size=2, shards=3)
    assert params["steps"] == 4  # the first shard of a batch of two is empty


def test_a_buffer_may_be_put_in_place_of_another():
    def change(module, x):
        module.last = x.mean(0)

    x, y = regression(8)
    _, params, _ = trained(Counts(change, last=torch.zeros(3)), (x, y), epochs=1, batch_size=8, shards=2)
    np.testing.assert_allclose(params["last"], x.mean(0), rtol=1e-5, atol=1e-6)


def test_a_buffer_that_changes_its_shape_is_an_error():
    def change(module, x):
        module.last = x[0, :2]

    with pytest.raises(WorkerError, match=r"buffer 'last': expected shape \(3,\)"):
        trained(Counts(change, last=torch.zeros(3)), regression())


def test_no_step_reads_what_a_buffer_has_become_in_another_shard():
    """Each shard begins with the buffer of the version, in every worker."""
    seen = []

    def change(module, x):
        seen.append(module.number.item())
        module.number += 1

    trained(Counts(change, number=torch.zeros(())), regression(16), epochs=1, batch_size=8, shards=4)
    assert seen == [0.0] * 4 + [1.0] * 4


# -- accumulate


@pytest.mark.parametrize("accumulate", [2, 3, 100])
def test_accumulated_gradients_are_those_of_the_whole_batch(accumulate):
    module = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 1))
    whole, _, history = trained(module, regression(), metrics={"mae": mae})
    parts, _, others = trained(module, regression(), metrics={"mae": mae}, accumulate=accumulate)
    assert_same(parts, whole)
    for name in history:
        np.testing.assert_allclose(others[name], history[name], rtol=1e-5)


def test_accumulate_for_functions_too():
    def fit(**arguments):
        given = {"optimizer": SGD(0.01), "engine": "serial", "shards": 3, "seed": 1} | arguments
        with Trainer(networks.line, networks.line_params(3), **given) as trainer:
            history = trainer.fit(networks.data_of(40, 3), epochs=3, batch_size=16)
            return trainer.params, history.history["loss"]

    whole, losses = fit()
    for accumulate in (2, 5):
        parts, others = fit(accumulate=accumulate)
        np.testing.assert_allclose(others, losses, rtol=1e-12)
        for name in whole:
            np.testing.assert_allclose(parts[name], whole[name], rtol=1e-12)


def test_the_parts_are_as_large_as_they_can_be_alike():
    sizes = []

    def note(module, batch):
        sizes.append(len(batch[0]))
        return backwards_batch(module, {"x": batch[0], "y": batch[1]})

    trained(nn.Linear(3, 1), regression(11), forward=note, epochs=1, batch_size=11, shards=1, accumulate=3)
    assert sizes == [3, 4, 4]


# -- module, evaluate, predict


def test_the_module_is_a_copy_with_the_newest_values():
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    before = copy.deepcopy(module.state_dict())
    with trainer_of(TorchModel(module, nn.MSELoss())) as trainer:
        for name, value in trainer.module().state_dict().items():
            assert torch.equal(value, before[name])
        trainer.fit(regression(), epochs=1, batch_size=8)
        got, params = trainer.module(), trainer.params
        trainer.fit(regression(), epochs=1, batch_size=8)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert all(np.array_equal(value.numpy(), params[name]) for name, value in got.state_dict().items())
    assert got[1].num_batches_tracked == 5
    assert got.training
    assert list(got.state_dict()) == list(before)
    module.load_state_dict(got.state_dict())
    with torch.no_grad():
        got[0].weight.zero_()
    assert params["0.weight"].any()


def test_evaluate_and_predict_use_the_newest_weights_in_evaluation_mode():
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 1))
    x, y = regression()
    with trainer_of(TorchModel(module, nn.MSELoss(), metrics={"mae": mae})) as trainer:
        for _ in range(2):
            trainer.fit((x, y), epochs=1, batch_size=8)
            state = torch.get_rng_state()
            measured = trainer.evaluate((x, y), batch_size=16)
            predicted = trainer.predict(torch.from_numpy(x), batch_size=7)
            assert torch.equal(torch.get_rng_state(), state)
            with torch.no_grad():
                expected = trainer.module().eval()(torch.from_numpy(x))
            np.testing.assert_allclose(predicted, expected.numpy(), rtol=1e-5, atol=1e-6)
            error = expected.numpy() - y
            assert measured["loss"] == pytest.approx((error**2).mean(), rel=1e-5)
            assert measured["mae"] == pytest.approx(np.abs(error).mean(), rel=1e-5)


def test_a_part_in_evaluation_mode_stays_in_it():
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    module[1].running_mean += 0.5
    module[1].eval()
    data = regression(41)  # the last batch has one example, which is enough
    with trainer_of(TorchModel(module, nn.MSELoss()), shards=1) as trainer:
        trainer.fit(data, epochs=2, batch_size=8, validation_data=data)
        got = trainer.module()
    assert [part.training for part in got.modules()] == [True, True, False, True]
    expected = plain(module, data, call=lambda module, x: module[2](module[1].eval()(module[0](x))))
    assert_same(got, expected)
    assert torch.equal(got[1].running_mean, module[1].running_mean)


def test_predict_with_several_inputs():
    a, b, y = product_of(lambda *data: data)
    with trainer_of(TorchModel(Product(), nn.MSELoss())) as trainer:
        trainer.fit((a, b, y), epochs=1, batch_size=8)
        predicted = trainer.predict((a, b))
        assert predicted.shape == (40, 1)
        assert np.array_equal(trainer.predict({"right": b, "left": a}), predicted)


def test_others_can_follow_the_weights():
    with trainer_of(TorchModel(nn.Linear(3, 1), nn.MSELoss())) as trainer, trainer.subscriber() as weights:
        trainer.fit(regression(), epochs=1, batch_size=8)
        with weights.snapshot() as snapshot:
            assert snapshot.version == 6
            assert snapshot.value["weight"].shape == (1, 3)


# -- refused modules


def test_what_is_no_module_is_refused():
    with pytest.raises(TypeError, match=r"module: expected a torch\.nn\.Module, found type"):
        TorchModel(nn.Linear, nn.MSELoss())
    with pytest.raises(TypeError, match="loss: expected a function"):
        TorchModel(nn.Linear(1, 1), None)
    with pytest.raises(TypeError, match="forward: expected a function"):
        TorchModel(nn.Linear(1, 1), None, forward=3)
    with pytest.raises(TypeError, match=r"metrics\['a'\]: expected a function"):
        TorchModel(nn.Linear(1, 1), nn.MSELoss(), metrics={"a": 1})


def linear_with(**tensors):
    module = nn.Linear(3, 1)
    for name, tensor in tensors.items():
        if isinstance(tensor, nn.Parameter):
            module.register_parameter(name, tensor)
        else:
            module.register_buffer(name, tensor)
    return module


def with_memory_of(module, function):
    """Store on the module the result of a function of the memory of its weight."""
    module.kept = function(module.weight.data)
    return module


@pytest.mark.parametrize(
    ("module", "error", "message"),
    [
        (nn.ReLU(), ValueError, "nothing to train"),
        (nn.Linear(3, 1).requires_grad_(False), ValueError, "nothing to train"),
        (nn.Linear(3, 1).half(), TypeError, r"parameter 'weight': expected float32 or float64, found torch\.float16"),
        (
            nn.Linear(3, 1, dtype=torch.complex64),
            TypeError,
            r"parameter 'weight': .* found torch\.complex64; .*view_as_real",
        ),
        (with_memory_of(nn.Linear(3, 1), lambda w: w.numpy()), TypeError, r"module\.kept: .* memory of 'weight'"),
        (
            with_memory_of(nn.Linear(3, 1), lambda w: [w.view(torch.int32)]),
            TypeError,
            r"module\.kept\[0\]: .* memory of 'weight'",
        ),
        (nn.Linear(3, 1).bfloat16(), TypeError, "parameter 'weight': expected a dtype that NumPy has, found torch.bfl"),
        (nn.LazyLinear(1), ValueError, "parameter 'weight': it has no shape yet"),
        (nn.Linear(3, 1, device="meta"), TypeError, "expected a dense tensor in CPU memory.*'meta'"),
        (linear_with(b=torch.zeros(2, dtype=torch.bfloat16)), TypeError, "buffer 'b': expected a dtype that NumPy has"),
        (linear_with(b=torch.eye(2).to_sparse()), TypeError, "buffer 'b': expected a dense tensor"),
    ],
    ids=[
        "none",
        "all frozen",
        "half",
        "complex",
        "array",
        "other dtype",
        "bfloat16",
        "lazy",
        "meta",
        "bfloat16 buffer",
        "sparse buffer",
    ],
)
def test_a_module_that_does_not_fit_is_refused_by_name(module, error, message):
    with pytest.raises(error, match=message):
        trainer_of(TorchModel(module, nn.MSELoss()))


class TakesShape(nn.Module):
    """A module whose buffer is resized in place to the rows of the first batch."""

    def __init__(self):
        super().__init__()
        self.line = nn.Linear(3, 1)
        self.register_buffer("seen", torch.zeros(1))

    def forward(self, x):
        self.seen.resize_(x.shape[1]).copy_(x.mean(0))
        return self.line(x)


def test_a_buffer_that_forward_resizes_is_refused_until_a_batch_has_run():
    model = TakesShape()
    with (
        trainer_of(TorchModel(model, nn.MSELoss())) as trainer,
        pytest.raises(WorkerError, match=r"buffer 'seen': expected shape \(1,\).*found \(3,\).*run one"),
    ):
        trainer.fit(regression(), epochs=1, batch_size=8)
    model(torch.zeros(2, 3))
    with trainer_of(TorchModel(model, nn.MSELoss())) as trainer:
        trainer.fit(regression(), epochs=1, batch_size=8)
        assert trainer.module().seen.shape == (3,)


def test_params_beside_a_model_that_brings_them_are_refused():
    with pytest.raises(TypeError, match="a TorchModel brings its own parameters"):
        Trainer(TorchModel(nn.Linear(3, 1), nn.MSELoss()), {"w": np.zeros(1)}, optimizer=SGD(0.1))
    with (
        trainer_of(networks.line, params=networks.line_params(3)) as trainer,
        pytest.raises(TypeError, match="plain function"),
    ):
        trainer.module()


def in_place(module, x):
    module.line.weight.clamp_(-0.01, 0.01)


def through_data(module, x):
    module.line.weight.data.mul_(0.5)


def by_assigning(module, x):
    module.line.weight.data = module.line.weight * 0.5


@pytest.mark.parametrize("write", [in_place, through_data, by_assigning])
def test_a_forward_that_writes_to_a_parameter_is_an_error_and_changes_nothing(write):
    module = Counts(write)
    before = module.line.weight.detach().numpy().copy()
    with trainer_of(TorchModel(module, nn.MSELoss())) as trainer:
        with pytest.raises(WorkerError, match="writes to its own parameters"):
            trainer.fit(regression(), epochs=1, batch_size=8)
        assert trainer.params["line.weight"].tobytes() == before.tobytes()


def test_a_forward_that_replaces_a_parameter_is_an_error():
    """The new tensor would be used, but not trained."""

    def replacing(module, x):
        module.line.weight = nn.Parameter(torch.zeros(1, 3))

    with pytest.raises(WorkerError, match=r"puts another parameter in the place of 'line\.weight'"):
        trained(Counts(replacing), regression())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TorchModel(nn.Linear(3, 1), nn.MSELoss), "found the class MSELoss; make one: MSELoss()"),
        (lambda: TorchModel(nn.Linear(3, 1), nn.MSELoss(), metrics=["mae"]), "metrics: expected a dict of functions"),
        (lambda: Trainer(nn.Linear(3, 1), optimizer=SGD(0.1)), "found the torch.nn.Module Linear; give untorn.torch."),
        (
            lambda: Trainer(mae, {"w": torch.zeros(2)}, optimizer=SGD(0.1)),
            "params: w: expected an array of float32 or float64, found a torch.Tensor; convert it with numpy.asarray()",
        ),
    ],
)
def test_what_newcomers_give_is_named(make, message):
    with pytest.raises(TypeError) as caught:
        make()
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "data", "message"),
    [
        ({"loss": nn.MSELoss(reduction="none")}, regression(), r"expected a tensor with one number.*shape \(4, 1\)"),
        ({"loss": lambda outputs, target: 1.0}, regression(), "expected a tensor with one number.*found float"),
        ({"loss": lambda outputs, target: outputs.detach().mean()}, regression(), "does not depend on any parameter"),
        ({}, (regression()[0],), r"data: expected inputs and a target.*found a tuple of length 1"),
        ({}, regression()[0], "data: expected inputs and a target.*found a Tensor"),
        ({}, {"x": regression()[0]}, "data: expected inputs and a target.*found a dict of length 1"),
        ({"metrics": {"mae": lambda outputs, target: outputs}}, regression(), "metric 'mae' must be a single number"),
        (
            {"forward": lambda module, batch: module(batch[0]).mean(), "metrics": {"mae": mae}},
            regression(),
            r"forward: expected \(loss, outputs\), since there are metrics",
        ),
    ],
    ids=["reduction", "a float", "detached", "tuple of one", "no tuple", "dict of one", "metric", "no outputs"],
)
def test_what_does_not_fit_is_named(arguments, data, message):
    with pytest.raises(WorkerError, match=message):
        trained(nn.Linear(3, 1), data, **arguments)


def test_a_loss_that_is_no_number_names_the_examples():
    x, y = regression()
    x[17] = np.nan
    with pytest.raises(NonFiniteLossError, match="the loss is nan in epoch 0, step"):
        trained(nn.Linear(3, 1), (x, y))


# -- the trainer's other parts, on a model with buffers and frozen parameters


def normalised():
    module = nn.Sequential(nn.Linear(3, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 1))
    module[0].requires_grad_(False)  # a bias before BatchNorm would have only rounding errors as its gradient
    module[1].running_var.fill_(1e6)  # a norm with the buffers would be huge
    return module


@pytest.mark.parametrize("clip_norm", [None, 0.05])
def test_adam_and_clipping_are_torchs(clip_norm):
    module, (x, y) = normalised(), regression()
    with trainer_of(TorchModel(module, nn.MSELoss()), optimizer=AdamW(0.01), clip_norm=clip_norm, shards=1) as trainer:
        trainer.fit((x, y), epochs=3, batch_size=8)
        got = trainer.module()
    expected = copy.deepcopy(module)
    parameters = [p for p in expected.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=0.01)
    for epoch in range(3):
        order = epoch_order(1, epoch, len(x))
        for start in range(0, len(x), 8):
            batch = order[start : start + 8]
            optimizer.zero_grad()
            nn.functional.mse_loss(expected(torch.from_numpy(x[batch])), torch.from_numpy(y[batch])).backward()
            if clip_norm is not None:
                nn.utils.clip_grad_norm_(parameters, clip_norm)
            optimizer.step()
    assert_same(got, expected)


def test_a_checkpoint_has_buffers_and_frozen_parameters(tmp_path):
    def train(epochs, load=None):
        with trainer_of(TorchModel(normalised(), nn.MSELoss()), optimizer=SGD(0.1, momentum=0.9)) as trainer:
            if load:
                trainer.load(load)
            trainer.fit(regression(), epochs=epochs, batch_size=8)
            trainer.save(tmp_path / "checkpoint")
            return weights_sha256(trainer.params)

    torch.manual_seed(0)
    whole = train(3)
    torch.manual_seed(0)
    train(1)
    assert train(2, tmp_path / "checkpoint") == whole
