"""SGD: its arguments, and its arithmetic against a plain loop that does what torch.optim.SGD documents."""

import math

import numpy as np
import pytest

from untorn.train import SGD, Trainer

STEPS = 200


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"learning_rate": 0}, ValueError, "learning_rate must be greater than 0"),
        ({"learning_rate": -1.0}, ValueError, "learning_rate must be finite and not negative, found -1.0"),
        ({"learning_rate": math.inf}, ValueError, "learning_rate must be finite"),
        ({"learning_rate": math.nan}, ValueError, "learning_rate must be finite"),
        ({"learning_rate": "0.1"}, TypeError, "learning_rate must be a number, found str"),
        ({"learning_rate": True}, TypeError, "learning_rate must be a number, found bool"),
        ({"learning_rate": 0.1, "momentum": 1.0}, ValueError, "momentum must be below 1"),
        ({"learning_rate": 0.1, "momentum": -0.5}, ValueError, "momentum must be finite and not negative"),
        ({"learning_rate": 0.1, "nesterov": True}, ValueError, "nesterov needs momentum"),
        ({"learning_rate": 0.1, "weight_decay": -1}, ValueError, "weight_decay must be finite and not negative"),
        ({"learning_rate": 0.1, "weight_decay": None}, TypeError, "weight_decay must be a number, found NoneType"),
    ],
)
def test_a_wrong_argument_is_named(arguments, error, message):
    with pytest.raises(error) as caught:
        SGD(**arguments)
    assert message in str(caught.value)


def test_it_is_a_value():
    assert SGD(0.1, momentum=0.9) == SGD(0.1, momentum=0.9)
    assert hash(SGD(1)) == hash(SGD(1))
    with pytest.raises(AttributeError):
        SGD(0.1).learning_rate = 1.0
    assert SGD(0.1).state_names == ()
    assert SGD(0.1, momentum=0.5).state_names == ("momentum",)


def target_of(dtype):
    return np.random.default_rng(5).normal(size=1000).astype(dtype)


def bowl(params, batch):
    """A bowl whose bottom moves with the example, so that the gradient never settles."""
    error = params["w"] - batch[0][0]
    return float((error**2).mean()), {"w": error}


def trained(optimizer, dtype):
    """200 steps of the serial engine: epochs of one step, of one example, in one shard."""
    params = {"w": np.zeros(1000, dtype)}
    with Trainer(bowl, params, optimizer=optimizer, engine="serial", shards=1) as trainer:
        trainer.fit((target_of(dtype)[None],), epochs=STEPS, batch_size=1)
        return trainer.params["w"]


def by_hand(optimizer, dtype):
    """torch.optim.SGD's documented algorithm, dampening 0, in the dtype of the parameters."""
    rate, momentum, decay = (
        dtype(value) for value in (optimizer.learning_rate, optimizer.momentum, optimizer.weight_decay)
    )
    w, target = np.zeros(1000, dtype), target_of(dtype)
    velocity = None
    for _ in range(STEPS):
        direction = w - target
        if optimizer.weight_decay:
            direction = direction + decay * w
        if optimizer.momentum:
            velocity = direction if velocity is None else momentum * velocity + direction
            direction = direction + momentum * velocity if optimizer.nesterov else velocity
        w = w - rate * direction
    return w


OPTIONS = [
    SGD(0.01),
    SGD(0.01, weight_decay=0.1),
    SGD(0.01, momentum=0.9),
    SGD(0.01, momentum=0.9, nesterov=True),
    SGD(0.01, momentum=0.9, weight_decay=0.1),
    SGD(0.01, momentum=0.9, nesterov=True, weight_decay=0.1),
    SGD(1, momentum=0.5),
]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("optimizer", OPTIONS, ids=str)
def test_it_is_torchs_sgd(optimizer, dtype):
    got, expected = trained(optimizer, dtype), by_hand(optimizer, dtype)
    assert got.dtype == dtype
    assert (got != 0).all()
    np.testing.assert_allclose(got, expected, rtol=0, atol=200 * np.finfo(dtype).eps)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("optimizer", OPTIONS[:2], ids=str)
def test_without_momentum_it_is_the_same_to_the_bit(optimizer, dtype):
    assert trained(optimizer, dtype).tobytes() == by_hand(optimizer, dtype).tobytes()
