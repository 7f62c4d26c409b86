"""From objects of Ray to a channel: actors use weights that change.

``before`` and ``after`` do the same work. Usage: python examples/migrations/from_ray.py
"""

import os
import sys

import numpy as np
import ray

import untorn


@ray.remote(num_cpus=0)
class Before:
    """An actor that must be told of new weights."""

    def set_weights(self, weights):
        """Use these weights from now on."""
        self.weights = weights

    def act(self, x):
        """Return the action for an observation."""
        return float(self.weights["w"] @ np.full(3, x))


def before():
    actors = [Before.remote() for _ in range(2)]
    answers = []
    for number in (1.0, 2.0):
        reference = ray.put({"w": np.full(3, number)})
        ray.get([actor.set_weights.remote(reference) for actor in actors])  # a message to each
        answers.append(ray.get([actor.act.remote(2.0) for actor in actors]))
    return answers


@ray.remote(num_cpus=0)
class After:
    """An actor that takes the newest weights."""

    def __init__(self, name):
        self.weights = untorn.subscribe(name)

    def act(self, x):
        """Return the action for an observation."""
        return float(self.weights.snapshot().value["w"] @ np.full(3, x))


def after():
    name = f"from-ray-{os.getpid()}"
    answers = []
    with untorn.publish({"w": np.ones(3)}, name=name, keep=False) as weights:
        # on several nodes: with untorn.ray.mirror(weights), which brings each version to all of them
        actors = [After.remote(name) for _ in range(2)]
        answers.append(ray.get([actor.act.remote(2.0) for actor in actors]))
        weights.update({"w": np.full(3, 2.0)})
        answers.append(ray.get([actor.act.remote(2.0) for actor in actors]))
        for actor in actors:
            ray.kill(actor)
    return answers


if __name__ == "__main__":
    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level="error")
    for half in sys.argv[1:] or ["before", "after"]:
        print(f"{half}:", globals()[half]())
    ray.shutdown()
