"""Train a network with a server and its clients: weights through a channel, tasks and gradients through two queues.

    server:  publish weights ─> queue of tasks (version, number, examples) ─> collect gradients ─> new version
    client:  take a task ─> snapshot of that version ─> gradient, version and checksum ─> queue of gradients

Clients are killed at random while the program runs. A task that a dead client had taken goes back to the front of the
queue, and another client gets it. A client that dies between putting its gradient and finishing its task leaves a
gradient that comes twice: the server counts each number once. So the weights at the end are the same, bit for bit, as
without kills; the program runs both and compares. Each gradient says on which version and which bytes of the weights it
was computed, and the server checks both. Usage:

    python examples/queues.py --clients 2 --epochs 60 --kills 20
"""

from __future__ import annotations

import argparse
import contextlib
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


def client(weights, data, tasks, gradients):
    """Turn tasks into gradients until the queue of tasks is closed."""
    images, labels = data.snapshot().value
    with contextlib.suppress(untorn.ClosedError):
        while True:
            with tasks.take() as task:
                version, number, batch = task.value
                with weights.snapshot(newer_than=version - 1) as snap:
                    loss, gradient = loss_and_gradient(snap.value, images[batch], labels[batch])
                    gradients.put((number, snap.version, checksum(snap.value), loss, gradient))


def serve(weights, tasks, gradients, *, examples, epochs, seed, report):
    """Train; return the number of checked gradients. Raises RuntimeError for a gradient of other weights."""
    shuffle = np.random.default_rng(seed)
    count = 0
    for _ in range(epochs):
        version = weights.version
        batches = np.split(shuffle.permutation(examples), range(EXAMPLES_PER_BATCH, examples, EXAMPLES_PER_BATCH))
        first, count = count, count + len(batches)
        tasks.put_many((version, first + index, batch) for index, batch in enumerate(batches))
        with weights.edit() as params:  # visible to the clients when the block ends
            expected = version, checksum(params)
            received = {}
            while len(received) < len(batches):
                number, *computed_on, loss, gradient = gradients.get(timeout_s=60)
                if number < first or number in received:
                    continue  # of a client that was killed before it finished its task
                if tuple(computed_on) != expected:
                    raise RuntimeError(f"a gradient of version and checksum {computed_on}, expected {expected}")
                received[number] = loss, gradient
            in_order = [received[number] for number in sorted(received)]
            for name in params:
                params[name] -= LEARNING_RATE / examples * sum(gradient[name] for _, gradient in in_order)
        report(version, sum(loss for loss, _ in in_order) / examples)
    return count


def train(images, labels, options, *, kills, report):
    """Train with clients, some of which are killed; return the weights and the number of gradients."""
    rng = np.random.default_rng()
    with (
        untorn.publish((images, labels)) as data,
        untorn.publish(new_network(np.random.default_rng(options.seed))) as weights,
        untorn.queue(100) as tasks,
        untorn.queue(100, nbytes=64 << 20) as gradients,
    ):
        arguments = weights.subscriber(), data.subscriber(), tasks, gradients

        def new_client():
            process = multiprocessing.Process(target=client, args=arguments, daemon=True)
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # inherited: only the server gets Ctrl-C
            process.start()
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
            return process

        clients = [new_client() for _ in range(options.clients)]
        kill_at = set(rng.choice(options.epochs, min(kills, options.epochs), replace=False) + 1)

        def after_epoch(version, loss):
            if version in kill_at:
                victim = int(rng.integers(len(clients)))
                os.kill(clients[victim].pid, signal.SIGKILL)
                clients[victim].join()
                clients[victim] = new_client()
            report(weights, version, loss)

        try:
            count = serve(
                weights,
                tasks,
                gradients,
                examples=len(images),
                epochs=options.epochs,
                seed=options.seed,
                report=after_epoch,
            )
        except BaseException as error:
            for process in clients:
                process.terminate()
            if not isinstance(error, KeyboardInterrupt):
                raise
            print(f"interrupted at version {weights.version}")
            raise SystemExit(0) from None
        tasks.close()
        for process in clients:
            process.join()
        return weights.subscriber().snapshot().value, count


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clients", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kills", type=int, default=20, help="how many clients are killed")
    options = parser.parse_args()

    images, labels = digits()
    order = np.random.default_rng(options.seed).permutation(len(labels))
    train_on, test = np.split(order, [len(order) * 4 // 5])

    def report(weights, epoch, loss):
        _, probabilities = forward(weights.subscriber().snapshot().value, images[test])
        accuracy = (probabilities.argmax(axis=1) == labels[test]).mean()
        print(f"epoch {epoch:3}   loss {loss:.4f}   test accuracy {accuracy:.4f}", flush=True)

    params, count = train(images[train_on], labels[train_on], options, kills=options.kills, report=report)
    print(f"{count} gradients checked: each was computed on the weights of its epoch")
    if options.kills:
        calm, _ = train(images[train_on], labels[train_on], options, kills=0, report=lambda *_: None)
        same = all(params[name].tobytes() == calm[name].tobytes() for name in params)
        print(
            f"{options.kills} clients were killed; the weights are {'the same' if same else 'NOT the same'} as without"
        )
        if not same:
            raise SystemExit(1)


if __name__ == "__main__":
    main()
