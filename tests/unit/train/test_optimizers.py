"""The optimizers: their arguments, rates and schedules, and their arithmetic against torch.optim over many steps."""

import dataclasses
import math

import numpy as np
import pytest

from untorn.share.lowlevel import extra
from untorn.train import SGD, Adagrad, Adam, AdamW, RMSprop, TorchSchedule, Trainer
from untorn.train.data.sampler import epoch_order

EVERY = [SGD, Adam, AdamW, RMSprop, Adagrad]
STEPS = 300
PARAMETERS = 257


@pytest.mark.parametrize("optimizer", EVERY)
@pytest.mark.parametrize(
    ("rate", "error", "message"),
    [
        (0, ValueError, "learning_rate must be greater than 0"),
        (-1.0, ValueError, "learning_rate must be finite and not negative, found -1.0"),
        (math.inf, ValueError, "learning_rate must be finite"),
        (math.nan, ValueError, "learning_rate must be finite"),
        ("0.1", TypeError, "learning_rate must be a number or a function of the step, found str"),
        (True, TypeError, "learning_rate must be a number or a function of the step, found bool"),
    ],
)
def test_a_wrong_learning_rate_is_named(optimizer, rate, error, message):
    with pytest.raises(error) as caught:
        optimizer(rate)
    assert f"{optimizer.__name__}: {message}" in str(caught.value)


@pytest.mark.parametrize(
    ("optimizer", "arguments", "error", "message"),
    [
        (SGD, {"momentum": 1.0}, ValueError, "SGD: momentum must be below 1"),
        (SGD, {"momentum": -0.5}, ValueError, "SGD: momentum must be finite and not negative"),
        (SGD, {"nesterov": True}, ValueError, "SGD: nesterov needs momentum"),
        (SGD, {"weight_decay": -1}, ValueError, "SGD: weight_decay must be finite and not negative"),
        (SGD, {"weight_decay": None}, TypeError, "SGD: weight_decay must be a number, found NoneType"),
        (Adam, {"betas": 0.9}, TypeError, "Adam: betas must be two numbers such as (0.9, 0.999), found 0.9"),
        (Adam, {"betas": (0.9,)}, TypeError, "Adam: betas must be two numbers"),
        (Adam, {"betas": (1.0, 0.9)}, ValueError, "Adam: betas[0] must be below 1, found 1.0"),
        (AdamW, {"betas": (0.9, "b")}, TypeError, "AdamW: betas[1] must be a number, found str"),
        (AdamW, {"weight_decay": math.nan}, ValueError, "AdamW: weight_decay must be finite"),
        (Adam, {"eps": -1e-8}, ValueError, "Adam: eps must be finite and not negative"),
        (RMSprop, {"alpha": 1}, ValueError, "RMSprop: alpha must be below 1, found 1"),
        (RMSprop, {"momentum": 2}, ValueError, "RMSprop: momentum must be below 1, found 2"),
        (RMSprop, {"eps": True}, TypeError, "RMSprop: eps must be a number, found bool"),
        (Adagrad, {"lr_decay": -1}, ValueError, "Adagrad: lr_decay must be finite and not negative"),
        (Adagrad, {"initial_accumulator_value": -1}, ValueError, "Adagrad: initial_accumulator_value must be finite"),
    ],
)
def test_a_wrong_argument_is_named(optimizer, arguments, error, message):
    with pytest.raises(error) as caught:
        optimizer(0.1, **arguments)
    assert message in str(caught.value)


@pytest.mark.parametrize("optimizer", EVERY)
def test_it_is_a_value(optimizer):
    assert optimizer(0.1) == optimizer(0.1) != optimizer(0.2)
    assert hash(optimizer(1)) == hash(optimizer(1))
    with pytest.raises(AttributeError):
        optimizer(0.1).learning_rate = 1.0


def test_the_state_that_they_keep():
    assert SGD(0.1).state_names == ()
    assert SGD(0.1, momentum=0.5).state_names == ("momentum",)
    assert Adam().state_names == AdamW().state_names == ("exp_avg", "exp_avg_sq")
    assert Adam(amsgrad=True).state_names == ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")
    assert RMSprop().state_names == ("square_avg",)
    assert RMSprop(momentum=0.5, centered=True).state_names == ("square_avg", "momentum", "grad_avg")
    assert Adagrad(initial_accumulator_value=3).initial_state == {"sum": 3.0}


@pytest.mark.parametrize("optimizer", [Adam, AdamW, RMSprop, Adagrad])
def test_the_defaults_are_torchs(optimizer):
    torch = pytest.importorskip("torch")
    defaults = getattr(torch.optim, optimizer.__name__)([torch.zeros(1)]).defaults
    for name, value in named(optimizer()).items():
        assert defaults[name] == value, name


def named(optimizer):
    """Return the fields under the names of torch."""
    names = [field.name for field in dataclasses.fields(optimizer) if field.name != "groups"]
    fields = {name: getattr(optimizer, name) for name in names}
    return {"lr": fields.pop("learning_rate")} | fields


# -- rates


def test_the_rates_of_a_step_do_not_depend_on_the_epoch_that_it_is_in():
    for optimizer in (Adam(0.1, betas=(0.5, 0.25)), AdamW(lambda step: 1 / (step + 1)), Adagrad(lr_decay=0.1)):
        whole = optimizer.rates(0, 10)
        parts = [optimizer.rates(first, steps) for first, steps in ((0, 3), (3, 1), (4, 6), (10, 0))]
        assert np.concatenate(parts).tobytes() == whole.tobytes()


def test_the_bias_corrections_are_made_in_double():
    assert Adam(0.5, betas=(0.5, 0.75)).rates(1, 1).tolist() == [[0.5 / 0.75, 1.0, 1 / math.sqrt(1 - 0.75**2), 0.5, 2]]
    assert AdamW(0.5, betas=(0, 0), weight_decay=0.5).rates(7, 2)[:, :3].tolist() == [[0.5, 0.75, 1.0]] * 2
    assert Adagrad(0.5, lr_decay=0.25).rates(4, 1).tolist() == [[0.25, 1.0, 1.0, 0.5, 5]]
    assert SGD(0.5).rates(100, 1).tolist() == RMSprop(0.5).rates(100, 1).tolist() == [[0.5, 1.0, 1.0, 0.5, 101]]


# -- schedules


class Number:
    """A rate as an array without dimensions, as optax's schedules return it."""

    ndim = 0

    def __float__(self):
        return 0.25

    def __repr__(self):
        return "Number()"


@pytest.mark.parametrize("value", [0.25, 1, 0, np.float32(0.25), np.array(0.25), Number()], ids=repr)
def test_a_schedule_gives_numbers_of_any_kind(value):
    assert SGD(lambda step: value).rates(3, 1)[0, 0] == float(value)


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        (math.nan, ValueError, "must be finite and not negative, found nan"),
        (math.inf, ValueError, "must be finite and not negative, found inf"),
        (-0.1, ValueError, "must be finite and not negative, found -0.1"),
        (None, TypeError, "must be a number, found NoneType"),
        ("0.1", TypeError, "must be a number, found str"),
        (True, TypeError, "must be a number, found bool"),
        (1j, TypeError, "must be a number, found complex"),
        (np.ones(1), TypeError, "must be a number, found ndarray"),
    ],
    ids=str,
)
def test_a_wrong_rate_is_named_with_its_step(value, error, message):
    optimizer = Adam(lambda step: 0.1 if step < 17 else value)
    assert optimizer.rates(0, 17).shape == (17, 5)
    with pytest.raises(error) as caught:
        optimizer.rates(10, 20)
    assert f"Adam: learning_rate(17) {message}" in str(caught.value)


def test_a_schedule_counts_steps_over_epochs_and_fits():
    asked = []

    def schedule(step):
        asked.append(step)
        return 0.5 if step % 2 else 0.0

    def slope(params, batch):
        return 0.0, {"w": np.ones(1)}

    with Trainer(slope, {"w": np.zeros(1)}, optimizer=SGD(schedule), engine="serial", shards=1) as trainer:
        trainer.fit((np.zeros((7, 1)),), epochs=2, batch_size=2)
        trainer.fit((np.zeros((3, 1)),), epochs=1, batch_size=1)
        assert trainer.step == 11
        assert trainer.params["w"] == -0.5 * 5
    assert set(asked) == set(range(len(set(asked))))
    assert set(asked) >= set(range(11))


def test_optax_schedules_are_schedules():
    optax = pytest.importorskip("optax")
    schedule = optax.warmup_cosine_decay_schedule(0.0, 0.1, 5, 20)
    assert AdamW(schedule).rates(0, 25)[:, 1].tolist() == [1 - 0.01 * float(schedule(step)) for step in range(25)]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("StepLR", {"step_size": 3, "gamma": 0.5}),
        ("CosineAnnealingLR", {"T_max": 15}),
        ("OneCycleLR", {"max_lr": 0.1, "total_steps": 20}),
        ("LambdaLR", {"lr_lambda": lambda step: 1 / (1 + step)}),
    ],
)
def test_torchs_schedulers_are_schedules(name, options):
    torch = pytest.importorskip("torch")

    def fresh():
        optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.1, momentum=0.9)
        return optimizer, getattr(torch.optim.lr_scheduler, name)(optimizer, **options)

    optimizer, scheduler = fresh()
    expected = []
    for _ in range(20):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if len(expected) < 20:
            scheduler.step()
    schedule = TorchSchedule(fresh()[1])
    assert [schedule(step) for step in (5, 19)] == [expected[5], expected[19]]
    assert SGD(schedule).rates(0, 20)[:, 0].tolist() == expected


def test_what_is_no_schedule_of_torch_is_named():
    torch = pytest.importorskip("torch")
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(torch.optim.SGD([torch.zeros(1)], lr=0.1))
    with pytest.raises(TypeError, match="ReduceLROnPlateau needs a metric"):
        TorchSchedule(plateau)
    with pytest.raises(TypeError, match=r"expected a torch\.optim\.lr_scheduler, found float"):
        TorchSchedule(0.1)


# -- the arithmetic


def bowl(params, batch):
    """A quadratic whose minimum moves with the example, so that the gradient stays large. Some are always 0."""
    error = params["w"] - batch[0][0] if batch[0][0].any() else np.zeros_like(params["w"])
    error[::16] = 0
    return float((error**2).mean()), {"w": error}


def targets_of(dtype):
    """Return the examples, one per step; some steps have a gradient of zero."""
    rng = np.random.default_rng(5)
    targets = rng.normal(size=(STEPS, PARAMETERS)) * np.exp2(rng.integers(-8, 3, PARAMETERS))
    targets[::29] = 0
    return targets.astype(dtype)


def start_of(dtype):
    return np.random.default_rng(6).normal(size=PARAMETERS).astype(dtype)


def trained(optimizer, dtype, **arguments):
    """Train for two calls of fit with 300 steps each, of one example and one shard; the step count continues."""
    with Trainer(bowl, {"w": start_of(dtype)}, optimizer=optimizer, engine="serial", shards=1, **arguments) as trainer:
        trainer.fit((targets_of(dtype),), epochs=1, batch_size=1)
        trainer.fit((targets_of(dtype),), epochs=1, batch_size=1)
        return trainer.params["w"]


def by_torch(optimizer, dtype, *, clip_norm=None):
    torch = pytest.importorskip("torch")
    options = named(optimizer)
    schedule = options["lr"] if callable(options["lr"]) else None
    if schedule is not None:
        options["lr"] = schedule(0)
    targets, w = targets_of(dtype), torch.from_numpy(start_of(dtype))
    other = getattr(torch.optim, type(optimizer).__name__)([w], **options)
    order = np.concatenate([epoch_order(0, epoch, STEPS) for epoch in range(2)])
    for step, example in enumerate(order):
        w.grad = torch.from_numpy(bowl({"w": w.numpy()}, (targets[[example]],))[1]["w"])
        if clip_norm is not None:
            torch.nn.utils.clip_grad_norm_([w], clip_norm)
        if schedule is not None:
            other.param_groups[0]["lr"] = schedule(step)
        other.step()
    return w.numpy()


def assert_equal_within_rounding(got, expected, start):
    """Compare with a tolerance, since rounding errors add up along the path of a parameter."""
    assert got.dtype == expected.dtype
    assert np.isfinite(got).all()
    assert (got != start).any()
    atol = 100 * np.finfo(got.dtype).eps * np.abs(expected).max()
    np.testing.assert_allclose(got, expected, rtol=2000 * np.finfo(got.dtype).eps, atol=atol)


SETTINGS = [
    SGD(0.01),
    SGD(0.01, weight_decay=0.1),
    SGD(0.01, momentum=0.9),
    SGD(0.01, momentum=0.9, nesterov=True),
    SGD(0.01, momentum=0.9, weight_decay=0.1),
    SGD(0.01, momentum=0.9, nesterov=True, weight_decay=0.1),
    SGD(1, momentum=0.5),
    Adam(),
    Adam(0.05, betas=(0.5, 0.9), eps=1e-3),
    Adam(0.01, betas=(0.0, 0.99)),
    Adam(0.01, betas=(0.3, 0.5), eps=1e-2),
    Adam(0.01, weight_decay=0.1),
    Adam(0.01, amsgrad=True),
    Adam(0.01, amsgrad=True, weight_decay=0.01, betas=(0.8, 0.95)),
    AdamW(),
    AdamW(0.02, weight_decay=0.3),
    AdamW(0.01, weight_decay=0, eps=1e-6),
    AdamW(0.01, amsgrad=True, betas=(0.95, 0.9)),
    RMSprop(),
    RMSprop(0.005, alpha=0.9, eps=1e-3),
    RMSprop(0.005, weight_decay=0.1),
    RMSprop(0.001, momentum=0.9),
    RMSprop(0.001, centered=True, eps=1e-3),
    RMSprop(0.001, alpha=0.3, momentum=0.5, centered=True, weight_decay=0.1, eps=1e-2),
    Adagrad(),
    Adagrad(0.1, lr_decay=0.01),
    Adagrad(0.1, initial_accumulator_value=0.5, weight_decay=0.1),
    Adagrad(0.05, eps=1e-3, lr_decay=1),
    Adam(lambda step: 0.02 / (1 + step)),
    AdamW(lambda step: 0.02 * (step % 7)),
]


def name_of(optimizer):
    return str(optimizer).split("<function")[0]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("optimizer", SETTINGS, ids=name_of)
def test_it_is_torchs(optimizer, dtype):
    assert_equal_within_rounding(trained(optimizer, dtype), by_torch(optimizer, dtype), start_of(dtype))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("clip_norm", [0.5, 5, 1e6])
def test_clipping_is_torchs(clip_norm, dtype):
    optimizer = SGD(0.01, momentum=0.9, weight_decay=0.1)
    got = trained(optimizer, dtype, clip_norm=clip_norm)
    assert_equal_within_rounding(got, by_torch(optimizer, dtype, clip_norm=clip_norm), start_of(dtype))
    assert (got.tobytes() == trained(optimizer, dtype).tobytes()) == (clip_norm == 1e6)


@pytest.mark.parametrize("optimizer", [Adam(), RMSprop(centered=True), Adagrad()], ids=name_of)
def test_parameters_without_a_gradient_stay(optimizer):
    assert (trained(optimizer, np.float32)[::16] == start_of(np.float32)[::16]).all()


def test_a_centered_mean_square_that_rounds_to_less_than_nothing_counts_as_nothing():
    """torch.optim.RMSprop returns NaN here."""

    def constant(params, batch):
        return 0.0, {"w": np.linspace(0.1, 3, PARAMETERS, dtype=np.float32)}

    optimizer = RMSprop(1e-9, alpha=0.9, centered=True, eps=1e-3)
    with Trainer(constant, {"w": start_of(np.float32)}, optimizer=optimizer, engine="serial", shards=1) as trainer:
        trainer.fit((np.zeros((400, 1)),), epochs=1, batch_size=1)
        assert np.isfinite(trainer.params["w"]).all()
        squares, means = (extra(trainer.snapshot())[name]["w"] for name in ("square_avg", "grad_avg"))
        assert (squares - means**2 < 0).any()
