"""Replace a model while workers use it; one whole version of the model answers each request.

    python examples/live_model.py --workers 2 --requests 400

The trainer continues to learn and publishes at any time. A worker takes the newest version for each request, and
includes its number in the answer. Neither waits for the other.
"""

from __future__ import annotations

import argparse
import multiprocessing

import numpy as np

import untorn


def worker(model, requests, answers):
    while (request := requests.get()) is not None:
        number, x = request
        with model.snapshot() as snap:  # O(1) in the size of the model
            answers.put((number, snap.version, float(x @ snap.value["w"] + snap.value["b"])))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--requests", type=int, default=400)
    options = parser.parse_args()

    dice = np.random.default_rng(0)
    truth = dice.normal(size=50)
    requests, answers = multiprocessing.Queue(), multiprocessing.Queue()
    with untorn.publish({"w": np.zeros(50), "b": 0.0}) as model:
        workers = [
            multiprocessing.Process(target=worker, args=(model.subscriber(), requests, answers))
            for _ in range(options.workers)
        ]
        for process in workers:
            process.start()
        asked = {}
        errors = []
        for number in range(options.requests):
            x = dice.normal(size=50)
            asked[number] = x
            requests.put((number, x))
            with model.edit() as params:  # one training step
                x = dice.normal(size=(20, 50))
                params["w"] -= 0.01 * x.T @ (x @ params["w"] - x @ truth)
            answered, version, answer = answers.get(timeout=60)
            errors.append((version, abs(answer - asked.pop(answered) @ truth)))
        for _ in workers:
            requests.put(None)
        for process in workers:
            process.join()
    tenth = max(1, len(errors) // 10)
    for name, part in (("first", errors[:tenth]), ("last", errors[-tenth:])):
        print(
            f"{name} {tenth} answers: versions {part[0][0]} to {part[-1][0]}, "
            f"mean error {np.mean([error for _, error in part]):.3f}"
        )


if __name__ == "__main__":
    main()
