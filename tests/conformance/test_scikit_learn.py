"""Training compared with scikit-learn's MLPClassifier: the same network, settings and initial weights, on its digits.

Without shuffling both see the same batches, so the learning curves and the weights are the same to rounding. With
shuffling each draws its own order, and the curves are the same within the noise of the seeds.
"""

from __future__ import annotations

import functools
import warnings

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning
from sklearn.neural_network import MLPClassifier

from untorn.train import SGD, Trainer

HIDDEN, BATCH, RATE, ALPHA = 24, 50, 0.05, 0.01
SETTINGS = {
    "hidden_layer_sizes": (HIDDEN,),
    "solver": "sgd",
    "momentum": 0.9,
    "alpha": ALPHA,
    "batch_size": BATCH,
    "tol": 0.0,
    "n_iter_no_change": 10**6,
}


@functools.cache
def digits():
    x, y = load_digits(return_X_y=True)
    return (x[:1000] / 16, y[:1000]), (x[1000:] / 16, y[1000:])


def loss_and_grad(params, batch):
    """Compute MLPClassifier's loss: cross entropy, and alpha / 2 of the squared weights without biases, per batch."""
    x, y = batch
    hidden = np.maximum(x @ params["w0"] + params["b0"], 0)
    scores = hidden @ params["w1"] + params["b1"]
    scores -= scores.max(axis=1, keepdims=True)
    odds = np.exp(scores)
    odds /= odds.sum(axis=1, keepdims=True)
    rows = np.arange(len(y))
    penalty = ALPHA / BATCH * (np.sum(params["w0"] ** 2) + np.sum(params["w1"] ** 2)) / 2
    loss = penalty - np.log(odds[rows, y]).mean()
    odds[rows, y] -= 1
    delta = odds / len(y)
    back = (delta @ params["w1"].T) * (hidden > 0)
    grads = {"w0": x.T @ back, "b0": back.sum(axis=0), "w1": hidden.T @ delta, "b1": delta.sum(axis=0)}
    for name in ("w0", "w1"):
        grads[name] += ALPHA / BATCH * params[name]
    return loss, grads


class Accurate:
    """The network, with predict."""

    loss_and_grad = staticmethod(loss_and_grad)

    @staticmethod
    def predict(params, x):
        hidden = np.maximum(x @ params["w0"] + params["b0"], 0)
        return (hidden @ params["w1"] + params["b1"]).argmax(axis=1)


def by_scikit_learn(seed, *, epochs, rate=RATE, **settings):
    classifier = MLPClassifier(random_state=seed, max_iter=epochs, learning_rate_init=rate, **SETTINGS, **settings)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return classifier.fit(*digits()[0])


def params_of(classifier):
    (w0, w1), (b0, b1) = classifier.coefs_, classifier.intercepts_
    return {"w0": w0, "b0": b0, "w1": w1, "b1": b1}


def initial(seed):
    """Return MLPClassifier's initial weights, from an epoch of steps that are too small to change any bit."""
    return params_of(by_scikit_learn(seed, epochs=1, rate=1e-300))


def by_untorn(seed, *, epochs, nesterov, shuffle, **arguments):
    """Return (losses, weights, accuracy on the other examples)."""
    optimizer = SGD(RATE, momentum=0.9, nesterov=nesterov)
    with Trainer(Accurate(), initial(seed), optimizer=optimizer, seed=seed, **arguments) as trainer:
        history = trainer.fit(digits()[0], epochs=epochs, batch_size=BATCH, shuffle=shuffle)
        x, y = digits()[1]
        return history.history["loss"], trainer.params, np.mean(trainer.predict(x) == y)


SERIAL = {"engine": "serial", "shards": 1}


@pytest.mark.parametrize(
    ("nesterov", "arguments"), [(False, SERIAL), (True, SERIAL), (True, {"workers": 2, "shards": 4})]
)
def test_the_same_batches_give_the_same_curve_and_weights(nesterov, arguments):
    classifier = by_scikit_learn(0, epochs=15, nesterovs_momentum=nesterov, shuffle=False)  # 300 steps
    losses, params, _ = by_untorn(0, epochs=15, nesterov=nesterov, shuffle=False, **arguments)
    np.testing.assert_allclose(losses, classifier.loss_curve_, rtol=1e-9)
    for name, expected in params_of(classifier).items():
        np.testing.assert_allclose(params[name], expected, rtol=1e-7, atol=1e-9, err_msg=name)
    assert losses[-1] < losses[0] / 10


def test_other_orders_give_the_same_curve_within_noise():
    seeds = range(10)
    theirs, ours = [], []
    for seed in seeds:
        classifier = by_scikit_learn(seed, epochs=15, nesterovs_momentum=True)
        theirs.append((classifier.loss_curve_, classifier.score(*digits()[1])))
        losses, _, accuracy = by_untorn(seed, epochs=15, nesterov=True, shuffle=True, **SERIAL)
        ours.append((losses, accuracy))
    for their, our in zip(zip(*theirs, strict=True), zip(*ours, strict=True), strict=True):  # curves, then accuracies
        # both begin with the same weights, so the differences between pairs of seeds are the noise
        differences = np.log(our) - np.log(their)
        error = differences.std(axis=0, ddof=1) / np.sqrt(len(seeds))
        assert np.all(np.abs(differences.mean(axis=0)) < 4 * error)
        assert np.all(error < 0.1)  # a larger noise would make the comparison meaningless
