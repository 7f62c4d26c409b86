"""Tests of a small program that uses untorn, with the fixtures of conftest.py: ``pytest -p no:cacheprovider``."""

from __future__ import annotations

import multiprocessing

import numpy as np
import pytest

import untorn


def serve(policy_name, answers):
    """Answer with the sum of each version, until there is a version with nothing in it."""
    for snap in untorn.subscribe(policy_name, timeout_s=30):
        if not snap.value["w"].size:
            break
        answers.put((snap.version, float(snap.value["w"].sum())))


def test_a_process_sees_each_new_version_whole(channel, queue):
    policy = channel({"w": np.ones(1000)})
    server = multiprocessing.Process(target=serve, args=(policy.name, queue))
    server.start()
    assert queue.get(timeout_s=30) == (1, 1000.0)
    policy.update({"w": np.full(1000, 2.0)})
    assert queue.get(timeout_s=30) == (2, 2000.0)
    policy.update({"w": np.zeros(0)})
    server.join()
    assert server.exitcode == 0


def test_a_channel_ends_with_its_test(channel):
    policy = channel([1, 2, 3])
    assert untorn.subscribe(policy.name).snapshot().value == [1, 2, 3]
    policy.close()
    with pytest.raises(untorn.ChannelNotFoundError):
        untorn.subscribe(policy.name)


@pytest.mark.parametrize("batch_size", [32, 128])
def test_a_line_is_learned(trainer, line, batch_size):
    model, params, data = line
    training = trainer(model, params)
    training.fit(data, batch_size=batch_size, epochs=10)
    assert training.params["w"] == pytest.approx(3, abs=0.1)
    assert training.params["b"] == pytest.approx(-1, abs=0.1)
