"""The digits job: its gradient against finite differences, its data, and what it learns."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("sklearn")

from untorn.jobs import digits, load_job


@pytest.fixture(scope="module")
def job():
    return load_job("digits", seed=0)


@pytest.fixture
def small(monkeypatch):
    """A small network in float64 and a batch for it: every parameter can be moved."""
    monkeypatch.setattr(digits, "LAYERS", (6, 5, 4, 3))
    rng = np.random.default_rng(7)
    params = digits.init_params(3, dtype=np.float64)
    for name in params:
        params[name] += 0.1 * rng.normal(size=params[name].shape)  # biases of 0 would hide mistakes
    return params, (rng.normal(size=(9, 6)), rng.integers(0, 3, 9))


def test_the_gradient_equals_central_differences_for_every_parameter(small):
    params, batch = small
    _, grads, _ = digits.loss_and_grad(params, batch)
    assert list(grads) == list(params)
    step = 1e-6
    for name, value in params.items():
        measured = np.zeros_like(value)
        for index in np.ndindex(value.shape):
            before = value[index]
            value[index] = before + step
            above = digits.loss_and_grad(params, batch)[0]
            value[index] = before - step
            below = digits.loss_and_grad(params, batch)[0]
            value[index] = before
            measured[index] = (above - below) / (2 * step)
        np.testing.assert_allclose(grads[name], measured, rtol=1e-6, atol=1e-8, err_msg=name)


def test_loss_and_gradient_are_means_over_the_batch(small):
    """What data-parallel training relies on: two parts, weighted by their examples, give the whole."""
    params, (x, y) = small
    loss, grads, metrics = digits.loss_and_grad(params, (x, y))
    parts = [(len(y[part]), digits.loss_and_grad(params, (x[part], y[part]))) for part in (slice(4), slice(4, 9))]
    assert loss == pytest.approx(sum(n * part[0] for n, part in parts) / 9)
    assert metrics["accuracy"] == pytest.approx(sum(n * part[2]["accuracy"] for n, part in parts) / 9)
    for name in params:
        np.testing.assert_allclose(grads[name], sum(n * part[1][name] for n, part in parts) / 9, atol=1e-12)


def test_it_only_reads_what_it_is_given(small):
    params, batch = small
    for array in (*params.values(), *batch):
        array.flags.writeable = False
    digits.loss_and_grad(params, batch)
    digits.predict(params, batch[0])


def test_huge_scores_stay_finite(small):
    params, (x, y) = small
    with np.errstate(all="raise", under="ignore"):
        loss, grads, _ = digits.loss_and_grad({name: value * 1e4 for name, value in params.items()}, (x, y))
    assert np.isfinite(loss)
    assert all(np.isfinite(grad).all() for grad in grads.values())


def test_gradients_have_the_parameters_types_and_shapes(job):
    params = job.initial_params(0)
    x, y = job.load_data()
    loss, grads, metrics = digits.loss_and_grad(params, (x[:8], y[:8]))
    assert isinstance(loss, float)
    assert 0 <= metrics["accuracy"] <= 1
    for name, value in params.items():
        assert (grads[name].dtype, grads[name].shape) == (np.float32, value.shape)


def test_the_split_is_80_to_20_and_every_class_is_in_both_in_proportion():
    (x, y), (x_test, y_test) = digits.load_data(0)
    assert len(x) + len(x_test) == 1797
    assert abs(len(x_test) - 0.2 * 1797) < 5
    assert (x.dtype, x.shape[1:], y.dtype) == (np.float32, (64,), np.int64)
    assert x.min() == 0
    assert x.max() == 1
    assert np.all(np.abs(np.bincount(y_test) - np.bincount(np.concatenate([y, y_test])) / 5) <= 0.5)


def test_no_test_image_is_trained_on_as_it_is():
    (x, _), (x_test, _) = digits.load_data(0)
    assert not {image.tobytes() for image in x} & {image.tobytes() for image in x_test}


def test_the_seed_decides_the_split_and_the_first_weights():
    same, other = (digits.load_data(seed) for seed in (5, 6))
    np.testing.assert_array_equal(same[1][0], digits.load_data(5)[1][0])
    assert not np.array_equal(same[1][0], other[1][0])
    np.testing.assert_array_equal(digits.init_params(5)["w0"], digits.init_params(5)["w0"])
    assert not np.array_equal(digits.init_params(5)["w0"], digits.init_params(6)["w0"])


def test_first_weights_are_he_initialised():
    params = digits.init_params(0)
    for layer, inputs in enumerate(digits.LAYERS[:-1]):
        assert params[f"w{layer}"].std() == pytest.approx(np.sqrt(2 / inputs), rel=0.1)
        assert not params[f"b{layer}"].any()


def test_shifts_move_by_one_pixel_and_lose_the_border():
    image = np.zeros((1, 8, 8), np.float32)
    image[0, 0, 3] = 1
    x, y = digits.with_shifts(image.reshape(1, 64), np.array([4]))
    assert x.shape == (5, 64)
    assert y.tolist() == [4] * 5
    found = [tuple(np.argwhere(moved.reshape(8, 8))[0]) for moved in x if moved.any()]
    assert sorted(found) == [(0, 2), (0, 3), (0, 4), (1, 3)]  # moved up, the pixel is gone


def test_a_few_epochs_of_plain_sgd_learn_it(job):
    """No trainer here: the model alone. The whole job's accuracy is tested with the trainer."""
    x, y = job.load_data()
    x_test, y_test = job.load_validation_data()
    params = job.initial_params(0)
    velocity = {name: np.zeros_like(value) for name, value in params.items()}
    rng = np.random.default_rng(0)
    for _ in range(5):
        order = rng.permutation(len(y))
        for start in range(0, len(y), job.batch_size):
            batch = order[start : start + job.batch_size]
            _, grads, _ = job.model(params, (x[batch], y[batch]))
            for name in params:
                velocity[name] = 0.9 * velocity[name] + grads[name]
                params[name] = params[name] - 0.05 * (grads[name] + 0.9 * velocity[name])
    assert np.mean(digits.predict(params, x_test) == y_test) > 0.93
