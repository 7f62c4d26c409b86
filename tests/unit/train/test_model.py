"""FunctionModel: accepted models and return values."""

import functools

import numpy as np
import pytest

from networks import Layer
from untorn.errors import NonFiniteLossError
from untorn.train.models.function import FunctionModel

PARAMS = {"w": np.zeros((2, 3)), "b": np.zeros(3), "t": np.zeros(())}
GRADS = {"w": np.ones((2, 3)), "b": np.ones(3), "t": np.ones(())}


def answer(value, params=PARAMS):
    """Return the outcome of a model that returns this."""
    return FunctionModel(lambda params, batch: value).replica(None)(params, None, None)


@pytest.mark.parametrize("loss", [1.5, np.float32(1.5), np.array(1.5), 1, np.array([1.5])[0]])
def test_a_loss_is_a_number(loss):
    gradient = answer((loss, GRADS))
    assert gradient.loss == float(loss)
    assert type(gradient.loss) is float
    assert gradient.metrics == {}
    assert [leaf.shape for leaf in gradient.leaves] == [(2, 3), (3,), ()]


def test_metrics_come_sorted_by_name():
    metrics = answer((1.0, GRADS, {"b": np.float32(0.5), "a": 1, "c": float("nan")})).metrics
    assert list(metrics) == ["a", "b", "c"]
    assert metrics["b"] == 0.5


@pytest.mark.parametrize(
    "leaf", [np.ones(3, np.float32), np.ones(3, int), np.ones(3, bool), np.ones(6)[::2], np.ones(3, np.float16)]
)
def test_gradients_may_have_another_dtype_or_layout(leaf):
    answer((1.0, GRADS | {"b": leaf}))


@pytest.mark.parametrize("leaf", [2.0, 2, np.float32(2), np.float64(2)])
def test_the_gradient_of_a_number_may_be_a_number(leaf):
    answer((1.0, GRADS | {"t": leaf}))


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        (None, TypeError, "must return (loss, grads) or (loss, grads, metrics), found NoneType"),
        ((1.0,), TypeError, "found tuple of length 1"),
        ((1.0, GRADS, {}, 4), TypeError, "found tuple of length 4"),
        ([1.0, GRADS], TypeError, "found list"),
        ((np.ones(3), GRADS), TypeError, "the loss must be a single number, found an array of shape (3,)"),
        (("a", GRADS), TypeError, "the loss must be a single number, found str"),
        ((None, GRADS), TypeError, "the loss must be a single number, found NoneType"),
        ((1j, GRADS), TypeError, "the loss must be a single number, found complex"),
        ((1.0, GRADS, {"acc": np.ones(2)}), TypeError, "metric 'acc' must be a single number"),
        ((1.0, GRADS, {f"m{i}": i for i in range(17)}), ValueError, "17 metrics: at most 16 are supported"),
        ((1.0, list(GRADS.values())), ValueError, "differs from the parameters at (the value itself)"),
        ((1.0, {"w": GRADS["w"]}), ValueError, "expected dict of w, b, t, found dict of w"),
        ((1.0, GRADS | {"b": np.ones(4)}), ValueError, "the gradient of b has another shape: expected float64 array of "
         "shape (3,), found float64 array of shape (4,)"),
        ((1.0, GRADS | {"b": np.ones((1, 3))}), ValueError, "the gradient of b has another shape"),
        ((1.0, GRADS | {"b": [1.0, 1.0, 1.0]}), ValueError, "differs from the parameters at b"),
        ((1.0, GRADS | {"b": np.ones(3, complex)}), ValueError, "the gradient of b has another dtype"),
        ((1.0, GRADS | {"b": 2.0}), ValueError, "the gradient of b has another shape"),
        ((1.0, GRADS | {"b": object()}), TypeError, "the gradient tree: b"),
        ((1.0, None), ValueError, "differs from the parameters"),
    ],
)  # fmt: skip
def test_a_wrong_answer_is_named(value, error, message):
    with pytest.raises(error) as caught:
        answer(value)
    assert message in str(caught.value)


@pytest.mark.parametrize("metrics", [None, 0.5, [0.5], "accuracy"])
def test_metrics_that_are_no_dict_are_named(metrics):
    with pytest.raises(TypeError, match="metrics"):
        answer((1.0, GRADS, metrics))


def test_a_wrong_place_deep_in_the_tree_is_named():
    params = {"head": [Layer(np.zeros(2), np.zeros(1))]}
    with pytest.raises(ValueError, match="the gradient of head/0/b has another shape"):
        answer((1.0, {"head": [Layer(np.zeros(2), np.zeros(2))]}), params)
    with pytest.raises(ValueError, match="differs from the parameters at head: expected list of 0, found list of 0, 1"):
        answer((1.0, {"head": [params["head"][0]] * 2}), params)
    with pytest.raises(ValueError, match="at head/0"):
        answer((1.0, {"head": [(np.zeros(2), np.zeros(1))]}), params)


@pytest.mark.parametrize("loss", [np.nan, np.inf, -np.inf, np.float32("nan"), np.array(np.nan)])
def test_a_loss_that_is_not_finite(loss):
    with pytest.raises(NonFiniteLossError, match="the loss is"):
        answer((loss, GRADS))


class Model:
    def loss_and_grad(self, params, batch):
        return 2.0, GRADS


class RandomModel:
    def loss_and_grad(self, params, batch, rng):
        return float(rng), GRADS


def test_a_model_may_be_an_object():
    assert FunctionModel(Model()).replica(None)(PARAMS, None, None).loss == 2.0
    assert FunctionModel(RandomModel()).replica(None)(PARAMS, None, 7).loss == 7.0


@pytest.mark.parametrize("model", [None, 3, "mlp", {"w": 1}])
def test_what_is_no_model_is_named(model):
    with pytest.raises(TypeError, match=f"model: expected a function .* found {type(model).__name__}"):
        FunctionModel(model)


def plain(params, batch):
    """A model without rng."""


def with_rng(params, batch, rng):
    """A model with rng as a positional argument."""


def with_generator(params, batch, generator):
    """A model with rng as a positional argument of another name."""


def with_optional_rng(params, batch, rng=None):
    """A model with rng as a keyword argument."""


def with_option(params, batch, scale=1.0):
    """A model with an optional argument other than rng."""


def with_keyword(params, batch, *, scale=1.0):
    """A model with a keyword argument other than rng."""


def with_rest(params, batch, *rest):
    """A model that accepts any argument."""


def with_scale(params, scale, batch):
    """A model with a leading argument, for functools.partial."""


@pytest.mark.parametrize(
    ("function", "takes"),
    [
        (plain, False),
        (with_rng, True),
        (with_generator, True),
        (with_optional_rng, True),
        (with_option, False),
        (with_keyword, False),
        (with_rest, False),
        (lambda p, b, rng: None, True),
        (lambda p, b: None, False),
        (functools.partial(with_rng), True),
        (functools.partial(with_option, scale=2.0), False),
        (functools.partial(with_optional_rng, rng=1), False),
        (RandomModel(), True),
        (Model(), False),
        (np.dot, False),
    ],
)
def test_who_takes_an_rng(function, takes):
    assert FunctionModel(function).replica(None).takes_rng is takes
