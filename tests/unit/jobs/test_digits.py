"""The digits job: its gradient, its split, and what it learns."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from untorn.jobs import digits, load_job

pytest.importorskip("sklearn")
threadpoolctl = pytest.importorskip("threadpoolctl")


def test_the_gradient_equals_central_differences():
    rng = np.random.default_rng(7)
    params = digits.init_params(3, dtype=np.float64)
    for name in params:
        if name.startswith("b"):
            params[name] = rng.normal(scale=0.1, size=params[name].shape)  # off the relu's corner
    batch = rng.random((9, 64)), rng.integers(0, 10, 9)
    _, grads, _ = digits.loss_and_grad(params, batch)
    assert list(grads) == list(params)
    step = 1e-6
    for name, value in params.items():
        assert grads[name].shape == value.shape
        assert grads[name].dtype == value.dtype
        for index in rng.choice(value.size, size=min(value.size, 25), replace=False):
            losses = []
            for sign in (1, -1):
                moved = {key: array.copy() for key, array in params.items()}
                moved[name].flat[index] += sign * step
                losses.append(digits.loss_and_grad(moved, batch)[0])
            numeric = (losses[0] - losses[1]) / (2 * step)
            assert grads[name].flat[index] == pytest.approx(numeric, rel=1e-4, abs=1e-8), (name, index)


def test_means_over_the_batch():
    (x, y), _ = digits.load_data(0)
    params = digits.init_params(0, dtype=np.float64)
    whole = digits.loss_and_grad(params, (x[:32], y[:32]))
    halves = [digits.loss_and_grad(params, (x[part], y[part])) for part in (slice(0, 16), slice(16, 32))]
    assert whole[0] == pytest.approx((halves[0][0] + halves[1][0]) / 2)
    assert whole[2]["accuracy"] == (halves[0][2]["accuracy"] + halves[1][2]["accuracy"]) / 2
    for name, grad in whole[1].items():
        np.testing.assert_allclose(grad, (halves[0][1][name] + halves[1][1][name]) / 2, atol=1e-12)


def test_enormous_scores_stay_finite():
    params = {name: value * 1e4 for name, value in digits.init_params(0).items()}
    loss, grads, _ = digits.loss_and_grad(params, (np.ones((4, 64), np.float32), np.arange(4)))
    assert np.isfinite(loss)
    assert all(np.isfinite(grad).all() for grad in grads.values())


def test_parameters_are_only_read():
    params = digits.init_params(0)
    for value in params.values():
        value.flags.writeable = False
    x, y = np.ones((4, 64), np.float32), np.arange(4)
    x.flags.writeable = y.flags.writeable = False
    digits.loss_and_grad(params, (x, y))
    assert digits.predict(params, x).shape == (4,)


def test_the_split_is_fixed_by_the_seed_whole_and_stratified():
    (x, y), (x_test, y_test) = digits.load_data(5)
    assert (len(y), len(y_test)) == (1438, 359)
    assert x.dtype == np.float32
    assert y.dtype == np.int64
    assert x.min() == 0
    assert x.max() == 1
    for label in range(10):
        total = (y == label).sum() + (y_test == label).sum()
        assert abs((y_test == label).sum() - 0.2 * total) <= 0.5
    again = digits.load_data(5)
    assert np.array_equal(again[0][0], x)
    assert np.array_equal(again[1][1], y_test)
    assert not np.array_equal(digits.load_data(6)[1][0], x_test)

    from sklearn.datasets import load_digits

    everything = np.concatenate([x, x_test])
    assert sorted(map(bytes, everything)) == sorted(map(bytes, (load_digits().data / 16).astype(np.float32)))


def test_shifts_are_of_the_training_images_alone():
    job = load_job("digits", seed=2)
    (x, y), held_out = digits.load_data(2)
    assert np.array_equal(job.data[0][: len(x)], x)
    assert len(job.data[1]) == 5 * len(y)
    assert np.array_equal(job.validation_data[0], held_out[0])


def test_shifts_move_by_one_pixel():
    image = np.arange(1, 65, dtype=np.float32).reshape(1, 8, 8)
    x, y = digits.with_shifts(image.reshape(1, 64), np.array([3]))
    plain, down, up, right, left = x.reshape(5, 8, 8)
    assert np.array_equal(plain, image[0])
    assert np.array_equal(down[1:], image[0, :-1])
    assert not down[0].any()
    assert np.array_equal(up[:-1], image[0, 1:])
    assert np.array_equal(right[:, 1:], image[0, :, :-1])
    assert np.array_equal(left[:, :-1], image[0, :, 1:])
    assert y.tolist() == [3] * 5


@threadpoolctl.threadpool_limits.wrap(limits=1)  # as a worker has it; for arrays this small, more take much longer
def test_it_learns():
    """The job as it stands, with its optimizer written out in NumPy."""
    job = load_job("digits", seed=0)
    params = job.initial_params(0)
    x, y = job.load_data()
    x_test, y_test = job.load_validation_data()
    rate, decay, mu = job.optimizer.learning_rate, job.optimizer.weight_decay, job.optimizer.momentum
    momenta = {name: np.zeros_like(value) for name, value in params.items()}
    rng = np.random.default_rng(0)
    for _ in range(job.epochs):
        order = rng.permutation(len(y))
        for start in range(0, len(y), job.batch_size):
            part = order[start : start + job.batch_size]
            _, grads, _ = job.model(params, (x[part], y[part]))
            for name, grad in grads.items():
                direction = grad + decay * params[name]
                momenta[name] = mu * momenta[name] + direction
                params[name] = params[name] - rate * (direction + mu * momenta[name])
    assert np.mean(digits.predict(params, x_test) == y_test) >= 0.97


def test_without_scikit_learn_it_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ImportError, match=r"untorn\[digits\]"):
        load_job("digits", seed=0)
