"""Load batches with worker processes: they decode and augment, the trainer takes the batches in order and zero-copy.

    trainer ─> queue of tasks (number, examples) ─> workers ─> queue of batches ─> trainer: in order of their numbers

Each batch depends on its number and the seed, not on the worker that makes it, so the order and the bits are the same
for any number of workers, also when workers are killed. Tasks are taken, and finished when their batch is in the queue:
if a worker dies, another one gets its task. Usage:

    python examples/loader.py --workers 2 --batches 200 --kill
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import signal
import time
import zlib

import numpy as np

import untorn

BATCH, HEIGHT, WIDTH = 64, 64, 64


def stored(index):
    """Return one compressed image, as a file would contain it."""
    rng = np.random.default_rng(index)
    ramp = np.add.outer(np.arange(HEIGHT), np.arange(WIDTH)) * (1 + index % 5)
    return zlib.compress((ramp + rng.integers(0, 8, (HEIGHT, WIDTH))).astype(np.uint8).tobytes())


def decode(data):
    return np.frombuffer(zlib.decompress(data), np.uint8).reshape(HEIGHT, WIDTH)


def augment(image, rng):
    """Flip and shift an image at random, and scale it to [0, 1]."""
    image = image[:, ::-1] if rng.random() < 0.5 else image
    image = np.roll(image, rng.integers(-4, 5, 2), axis=(0, 1))
    return image.astype(np.float32) / 255


def work(tasks, batches, files, seed):
    """Turn tasks into batches, written in place, until the queue of tasks is closed."""
    images = files.snapshot().value
    with contextlib.suppress(untorn.ClosedError):
        while True:
            with tasks.take() as task:
                number, examples = task.value
                rng = np.random.default_rng((seed, number))
                like = {"number": number, "x": np.empty((len(examples), HEIGHT, WIDTH), np.float32)}
                with batches.reserve(like=like) as batch:
                    for row, index in enumerate(examples):
                        batch["x"][row] = augment(decode(images[index]), rng)


def in_order(batches, count):
    """Yield the batches by their numbers. One that a killed worker had put, but not finished, comes twice."""
    early, number = {}, 0
    while number < count:
        batch = batches.get(timeout_s=60)
        if batch["number"] >= number:
            early[batch["number"]] = batch
        del batch
        while number in early:
            yield early.pop(number)["x"]
            number += 1


def load(examples, count, *, workers, seed, kill=False, report=lambda *_: None):
    """Train on ``count`` batches; return a checksum of what the trainer saw, in order."""
    order = np.random.default_rng(seed).integers(len(examples), size=(count, BATCH))
    ahead = 4 * workers  # tasks given out before their turn, and so the most batches that wait for an earlier one
    with (
        untorn.publish(examples) as files,
        untorn.queue(ahead) as tasks,
        untorn.queue(ahead, nbytes=(ahead + 2 * workers) * (BATCH * HEIGHT * WIDTH * 4 + 8192)) as batches,
    ):
        tasks.put_many(enumerate(order[:ahead]))
        arguments = tasks, batches, files.subscriber(), seed
        processes = [multiprocessing.Process(target=work, args=arguments, daemon=True) for _ in range(workers)]
        for process in processes:
            process.start()
        rng, seen = np.random.default_rng(), 0
        for number, x in enumerate(in_order(batches, count)):
            seen = zlib.crc32(x, seen)  # the trainer's step
            report(number, x)
            del x  # its memory is for the next batches
            if number + ahead < count:
                tasks.put((number + ahead, order[number + ahead]))
            if kill and number % 20 == 10:
                victim = int(rng.integers(workers))
                os.kill(processes[victim].pid, signal.SIGKILL)
                processes[victim].join()
                processes[victim] = multiprocessing.Process(target=work, args=arguments, daemon=True)
                processes[victim].start()
        tasks.close()
        batches.close()
        for process in processes:
            process.join()
    return seen


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--batches", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kill", action="store_true", help="kill a worker every 20 batches")
    options = parser.parse_args()

    examples = [np.frombuffer(stored(index), np.uint8) for index in range(500)]
    begin = time.perf_counter()
    seen = load(examples, options.batches, workers=options.workers, seed=options.seed, kill=options.kill)
    seconds = time.perf_counter() - begin
    alone = load(examples, options.batches, workers=1, seed=options.seed)
    print(f"{options.batches} batches in {seconds:.1f} s, checksum {seen:08x}; with one worker {alone:08x}")
    if seen != alone:
        raise SystemExit("the trainer saw other batches")


if __name__ == "__main__":
    main()
