"""Fixtures for the tests of a program that uses untorn: copy what you need into your own conftest.py.

Each channel and queue has a name that no other test has, so tests can run at the same time (``pytest -n 4``), and a run
that was killed leaves nothing that a later one could find. All of them are gone when the test ends.
"""

from __future__ import annotations

import contextlib
import uuid

import numpy as np
import pytest

import untorn


@pytest.fixture
def unique_name(request):
    """A name that no other test uses, nor another run of this one."""
    return f"{request.node.name[:40]}-{uuid.uuid4().hex[:12]}".replace("[", "-").replace("]", "")


@pytest.fixture
def channel(unique_name):
    """A function that publishes a value under the test's name. The channel ends with the test, or with a kill of it."""
    with contextlib.ExitStack() as stack:

        def publish(value, **options):
            return stack.enter_context(untorn.publish(value, name=unique_name, keep=False, **options))

        yield publish


@pytest.fixture
def queue(unique_name):
    """A queue of 16 items with the test's name."""
    with untorn.queue(16, name=unique_name) as items:
        yield items
        items.unlink()


@pytest.fixture
def trainer():
    """A function that makes trainers of this process alone: quick, and with the same bits as on any workers."""
    with contextlib.ExitStack() as stack:

        def make(model, params=None, **options):
            settings = {"optimizer": untorn.SGD(0.1), "shards": 4, "seed": 0, "engine": "serial"} | options
            return stack.enter_context(untorn.Trainer(model, params, **settings))

        yield make


@pytest.fixture
def line():
    """Examples of y = 3 x - 1, and the loss of a line: a model that learns within a second."""

    def loss_and_grad(params, batch):
        x, y = batch
        error = x * params["w"] + params["b"] - y
        return (error**2).mean(), {"w": 2 * (error * x).mean(), "b": 2 * error.mean()}

    x = np.random.default_rng(0).normal(size=512)
    return loss_and_grad, {"w": np.zeros(()), "b": np.zeros(())}, (x, 3 * x - 1)
