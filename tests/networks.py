"""Models and data that the tests of training share. Workers import this module, so nothing here needs pytest."""

from __future__ import annotations

import hashlib
import itertools
from typing import Any, NamedTuple

import numpy as np


class Layer(NamedTuple):
    w: Any
    b: Any


def data_of(examples: int, features: int, *, dtype=np.float64, seed: int = 0):
    """(x, y) of a noisy linear function; x has shape (examples, features), y (examples,)."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(examples, features)).astype(dtype)
    return x, (x @ rng.normal(size=features).astype(dtype) + 0.1 * rng.normal(size=examples)).astype(dtype)


def classes_of(examples: int, features: int, classes: int, *, dtype=np.float32, seed: int = 0):
    """(x, y) with y the class, an integer, of each example."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(examples, features)).astype(dtype)
    return x, (x @ rng.normal(size=(features, classes))).argmax(1)


def line_params(features: int, dtype=np.float64):
    return {"w": np.zeros(features, dtype), "b": np.zeros((), dtype)}


def line(params, batch):
    """Least squares."""
    x, y = batch
    error = x @ params["w"] + params["b"] - y
    return (error**2).mean(), {"w": 2 * x.T @ error / len(x), "b": 2 * error.mean()}


def mlp_params(sizes: tuple[int, ...], dtype=np.float32, seed: int = 1):
    rng = np.random.default_rng(seed)
    return [
        Layer((rng.normal(size=(n, m)) / np.sqrt(n)).astype(dtype), np.zeros(m, dtype))
        for n, m in itertools.pairwise(sizes)
    ]


def _classify(logits, labels):
    """(loss, accuracy, gradient of the loss by the logits)."""
    logits = logits - logits.max(1, keepdims=True)
    odds = np.exp(logits)
    odds /= odds.sum(1, keepdims=True)
    rows = np.arange(len(labels))
    loss = -np.log(odds[rows, labels] + 1e-30).mean()
    odds[rows, labels] -= 1
    return loss, (logits.argmax(1) == labels).mean(), odds / len(labels)


def mlp(params, batch):
    """A multi-layer perceptron on a list of Layers, with its own backward pass."""
    x, labels = batch
    inputs = [x]
    for layer in params[:-1]:
        inputs.append(np.maximum(inputs[-1] @ layer.w + layer.b, 0))
    loss, accuracy, delta = _classify(inputs[-1] @ params[-1].w + params[-1].b, labels)
    grads = []
    for layer, given in zip(reversed(params), reversed(inputs), strict=True):
        grads.append(Layer(given.T @ delta, delta.sum(0)))
        delta = (delta @ layer.w.T) * (given > 0)
    return loss, grads[::-1], {"accuracy": accuracy}


def mlp_with_dropout(params, batch, rng):
    """The same on inputs of which a random half is dropped."""
    x, labels = batch
    return mlp(params, (x * (rng.random(x.shape) < 0.5), labels))


def slow_mlp(params, batch):
    """The same after a fixed amount of work that no result depends on, so that a kill lands inside a gradient."""
    work(30)
    return mlp(params, batch)


def work(rounds: int) -> None:
    """The same instructions each time: about 0.1 ms a round."""
    for _ in range(rounds):
        hashlib.sha256(bytes(150_000)).digest()


def fold(terms: list[Any]) -> Any:
    """The documented tree: neighbours are added in pairs, level by level; an odd one goes up unchanged, and one that is
    absent (None) leaves its neighbour unchanged."""
    while len(terms) > 1:
        pairs = [terms[i : i + 2] for i in range(0, len(terms), 2)]
        present = [[term for term in pair if term is not None] for pair in pairs]
        terms = [None if not pair else pair[0] if len(pair) == 1 else pair[0] + pair[1] for pair in present]
    return terms[0]
