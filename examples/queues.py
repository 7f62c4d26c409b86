"""Train a network with a server and its clients, using multiprocessing and untorn.publish / subscribe.

    server:  publish weights ─> queue (version, mini-batch) for each batch ─> collect gradients ─> new version
    client:  take a task ─> snapshot of that version ─> gradient and its version ─> result queue

The server owns the weights and changes them after every epoch; the clients see only whole versions. Each result
contains the gradient, the version of the weights and their checksum, taken after the computation. The server compares
both with its own. Usage:

    python examples/queues.py --clients 2 --epochs 60
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import signal
import zlib

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # the clients are the parallelism

import numpy as np

import untorn

EXAMPLES_PER_BATCH = 128
LEARNING_RATE = 0.3


def digits():
    """Load images (n, 64) and labels (n,): scikit-learn's digits, or a made-up problem of the same shape."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        rng = np.random.default_rng(0)
        labels = rng.integers(10, size=1797)
        return rng.normal(rng.normal(size=(10, 64))[labels], 1.0), labels
    images, labels = load_digits(return_X_y=True)
    return images / 16.0, labels


def new_network(rng, hidden=64):
    return {
        "w1": rng.normal(0, np.sqrt(2 / 64), (64, hidden)),
        "b1": np.zeros(hidden),
        "w2": rng.normal(0, np.sqrt(2 / hidden), (hidden, 10)),
        "b2": np.zeros(10),
    }


def forward(params, x):
    hidden = np.maximum(x @ params["w1"] + params["b1"], 0)
    scores = hidden @ params["w2"] + params["b2"]
    scores -= scores.max(axis=1, keepdims=True)
    probabilities = np.exp(scores)
    return hidden, probabilities / probabilities.sum(axis=1, keepdims=True)


def loss_and_gradient(params, x, y):
    """Compute the summed cross-entropy of a mini-batch, and its gradient."""
    hidden, probabilities = forward(params, x)
    rows = np.arange(len(y))
    loss = -np.log(probabilities[rows, y]).sum()
    probabilities[rows, y] -= 1
    below = (probabilities @ params["w2"].T) * (hidden > 0)
    return loss, {
        "w1": x.T @ below,
        "b1": below.sum(axis=0),
        "w2": hidden.T @ probabilities,
        "b2": probabilities.sum(axis=0),
    }


def checksum(params):
    total = 0
    for name in sorted(params):
        total = zlib.crc32(params[name], total)
    return total


def client(weights, data, tasks, results):
    """Turn tasks into gradients until there are no more tasks."""
    images, labels = data.snapshot().value
    while (task := tasks.get()) is not None:
        version, batch = task
        with weights.snapshot(newer_than=version - 1) as snap:
            loss, gradient = loss_and_gradient(snap.value, images[batch], labels[batch])
            results.put((snap.version, checksum(snap.value), loss, gradient))


def serve(weights, tasks, results, *, examples, epochs, seed, report):
    """Train; return the number of checked gradients. Raises RuntimeError for a gradient of other weights."""
    shuffle = np.random.default_rng(seed)
    checked = 0
    for _ in range(epochs):
        version = weights.version
        batches = np.split(shuffle.permutation(examples), range(EXAMPLES_PER_BATCH, examples, EXAMPLES_PER_BATCH))
        for batch in batches:
            tasks.put((version, batch))

        with weights.edit() as params:  # visible to the clients when the block ends
            expected = version, checksum(params)
            total_loss = 0.0
            gradients = []
            for _ in batches:
                *computed_on, loss, gradient = results.get(timeout=60)
                if tuple(computed_on) != expected:
                    raise RuntimeError(f"a gradient of version and checksum {computed_on}, expected {expected}")
                total_loss += loss
                gradients.append(gradient)
            for name in params:
                params[name] -= LEARNING_RATE / examples * sum(gradient[name] for gradient in gradients)

        checked += len(batches)
        report(version, total_loss / examples)
    return checked


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clients", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    images, labels = digits()
    order = np.random.default_rng(options.seed).permutation(len(labels))
    train, test = np.split(order, [len(order) * 4 // 5])
    tasks, results = multiprocessing.Queue(), multiprocessing.Queue()

    with (
        untorn.publish((images[train], labels[train])) as data,
        untorn.publish(new_network(np.random.default_rng(options.seed))) as weights,
    ):
        arguments = weights.subscriber(), data.subscriber(), tasks, results
        clients = [multiprocessing.Process(target=client, args=arguments, daemon=True) for _ in range(options.clients)]
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # inherited: only the server gets Ctrl-C
        for process in clients:
            process.start()
        reader = weights.subscriber()

        def report(epoch, loss):
            _, probabilities = forward(reader.snapshot().value, images[test])
            accuracy = (probabilities.argmax(axis=1) == labels[test]).mean()
            print(f"epoch {epoch:3}   loss {loss:.4f}   test accuracy {accuracy:.4f}", flush=True)

        try:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
            checked = serve(
                weights,
                tasks,
                results,
                examples=len(train),
                epochs=options.epochs,
                seed=options.seed,
                report=report,
            )
            print(f"{checked} gradients checked: each was computed on the weights of its epoch")
            for _ in clients:
                tasks.put(None)
        except KeyboardInterrupt:
            print(f"interrupted at version {weights.version}")
            end(clients, tasks)
        except BaseException:
            end(clients, tasks)
            raise
        for process in clients:
            process.join()


def end(clients, tasks):
    """Stop the clients, and discard the tasks that they did not take."""
    for process in clients:
        process.terminate()
    tasks.cancel_join_thread()


if __name__ == "__main__":
    main()
