"""Handwritten digits: a multi-layer perceptron in NumPy, with its own backward pass.

The data is scikit-learn's bundled digits set (1,797 scans of 8 x 8 pixels, ten classes, from UCI's "Optical
Recognition of Handwritten Digits"); nothing is downloaded. 80 % is for training, with copies of each image moved by one
pixel up, down, left and right, since a perceptron does not know that a moved digit is the same digit. The other 20 % is
held out unchanged::

    x (n, 64) ── w0, b0 ── relu ── w1, b1 ── relu ── w2, b2 ── softmax ── cross entropy with y (n,)

As in every recipe, the model function ``loss_and_grad(params, batch)`` does not depend on processes or shared memory.
It computes in the float type of the parameters, so its gradient can be checked in float64.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from untorn.jobs import Recipe

__all__ = ["init_params", "job", "load_data", "loss_and_grad", "predict", "with_shifts"]

Array = NDArray[Any]
Params = dict[str, Array]
Pair = tuple[Array, Array]

LAYERS = (64, 256, 128, 10)
TEST_SHARE = 0.2
#: the images' grey values go from 0 to 16
_PIXEL_MAX = 16.0


def init_params(seed: int, *, dtype: Any = np.float32) -> Params:
    """Return initial parameters: weights as in He et al. (2015), biases 0.

    Args:
        seed: equal seeds give equal bits.
        dtype: float32 or float64.

    Returns:
        ``{"w0", "b0", "w1", "b1", "w2", "b2"}``, weights of shape (inputs, outputs).

    """
    rng = np.random.default_rng([seed, 0])
    params: Params = {}
    for layer, (inputs, outputs) in enumerate(pairwise(LAYERS)):
        weights = rng.standard_normal((inputs, outputs)) * np.sqrt(2.0 / inputs)
        params[f"w{layer}"] = weights.astype(dtype)
        params[f"b{layer}"] = np.zeros(outputs, dtype)
    return params


def load_data(seed: int) -> tuple[Pair, Pair]:
    """Return the digits, shuffled, split into 80 % for training and 20 % for testing with each class in proportion.

    Args:
        seed: equal seeds give the same split.

    Returns:
        ``((x, y), (x_test, y_test))``: x float32 of shape (n, 64) between 0 and 1, y int64 of shape (n,).

    Raises:
        ImportError: scikit-learn is not installed.

    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError(
            "the digits recipe takes its data from scikit-learn, which is not installed; pip install 'untorn[digits]'"
        ) from error

    bunch = load_digits()
    x = np.ascontiguousarray(bunch.data / _PIXEL_MAX, dtype=np.float32)
    y = np.ascontiguousarray(bunch.target, dtype=np.int64)
    train, test = _stratified_split(y, seed)
    return (x[train], y[train]), (x[test], y[test])


def _stratified_split(y: Array, seed: int) -> tuple[Array, Array]:
    """Return the indices of the training examples and of the test examples, each in random order."""
    rng = np.random.default_rng([seed, 1])
    train, test = [], []
    for label in np.unique(y):
        members = rng.permutation(np.flatnonzero(y == label))
        n_test = round(TEST_SHARE * len(members))
        test.append(members[:n_test])
        train.append(members[n_test:])
    return rng.permutation(np.concatenate(train)), rng.permutation(np.concatenate(test))


def with_shifts(x: Array, y: Array) -> Pair:
    """Return the examples with copies moved by one pixel up, down, left and right; new pixels are 0.

    Args:
        x: images, of shape (n, 64).
        y: their digits, of shape (n,).

    Returns:
        ``(x, y)`` with 5 n examples, copies.

    """
    padded = np.pad(x.reshape(-1, 8, 8), ((0, 0), (1, 1), (1, 1)))
    corners = ((1, 1), (0, 1), (2, 1), (1, 0), (1, 2))
    moved = [padded[:, top : top + 8, left : left + 8].reshape(-1, 64) for top, left in corners]
    return np.concatenate(moved), np.tile(y, len(corners))


def loss_and_grad(params: Params, batch: Pair) -> tuple[float, Params, dict[str, float]]:
    """Compute the mean cross entropy over the batch, its gradient, and the accuracy.

    Args:
        params: as ``init_params`` makes them; they are only read.
        batch: ``(x, y)`` of shapes (n, 64) and (n,), n at least 1.

    Returns:
        ``(loss, grads, {"accuracy": ...})``; grads is a tree like params, of new arrays.

    """
    x, y = batch
    n = len(y)
    rows = np.arange(n)
    inputs, scores = _forward(params, x)

    # log softmax, with the largest score subtracted first so that exp never overflows
    shifted = scores - scores.max(axis=1, keepdims=True)
    exponentials = np.exp(shifted)
    totals = exponentials.sum(axis=1, keepdims=True)
    loss = float(np.mean(np.log(totals[:, 0]) - shifted[rows, y]))
    accuracy = float(np.mean(scores.argmax(axis=1) == y))

    delta = exponentials / totals  # d loss / d scores, before averaging
    delta[rows, y] -= 1
    delta /= n
    grads: Params = {}
    for layer in reversed(range(len(inputs))):
        grads[f"w{layer}"] = inputs[layer].T @ delta
        grads[f"b{layer}"] = delta.sum(axis=0)
        if layer:
            delta = (delta @ params[f"w{layer}"].T) * (inputs[layer] > 0)
    return loss, {name: grads[name] for name in params}, {"accuracy": accuracy}


def predict(params: Params, x: Array) -> Array:
    """Return the most likely digit of each image.

    Args:
        params: as ``init_params`` makes them.
        x: images, of shape (n, 64).

    Returns:
        int64 of shape (n,).

    """
    _, scores = _forward(params, x)
    labels: Array = scores.argmax(axis=1)
    return labels


def _forward(params: Params, x: Array) -> tuple[list[Array], Array]:
    """Return the input of every layer, and the scores from the last one."""
    depth = len(params) // 2
    inputs = [x]
    for layer in range(depth - 1):
        inputs.append(np.maximum(inputs[layer] @ params[f"w{layer}"] + params[f"b{layer}"], 0))
    return inputs, inputs[-1] @ params[f"w{depth - 1}"] + params[f"b{depth - 1}"]


def job(seed: int) -> Recipe:
    """Return the recipe that ``untorn train digits`` runs."""
    from untorn.train.optim.fused import SGD

    data, validation_data = load_data(seed)
    return Recipe(
        name="digits",
        model=loss_and_grad,
        params=init_params,
        data=with_shifts(*data),
        validation_data=validation_data,
        optimizer=SGD(0.05, momentum=0.9, nesterov=True, weight_decay=1e-4),
        epochs=30,
        batch_size=64,
        shards=4,  # fixed, so that the result does not depend on the number of workers
        description="handwritten digits (scikit-learn), a perceptron of 64-256-128-10 in NumPy",
    )
