"""Kill workers at random during training and change their number; the weights are bit-identical.

    python examples/kills.py [--epochs 6]

Needs scikit-learn for the digits: pip install 'untorn[demo]'
"""

import argparse
import contextlib
import os
import random
import signal

from untorn import SGD, Callback, Trainer
from untorn.jobs.digits import init_params, load_data, loss_and_grad
from untorn.train import weights_sha256


class Chaos(Callback):
    """Kill a worker in every epoch, and change the number of workers after it."""

    def __init__(self):
        self.kills, self.sizes = 0, []

    def on_epoch_begin(self, epoch, logs):
        """Change the number of workers."""
        if epoch:
            self.trainer.resize(random.randint(1, 4))
            self.sizes.append(self.trainer.workers)

    def on_batch_end(self, batch, logs):
        """Kill a worker in the middle of the epoch."""
        if batch == 5:
            with contextlib.suppress(ProcessLookupError, IndexError):
                os.kill(random.choice(self.trainer.pids), signal.SIGKILL)
                self.kills += 1


def train(epochs, callbacks=(), **settings):
    with Trainer(loss_and_grad, init_params(0), optimizer=SGD(0.05, momentum=0.9), shards=4, **settings) as trainer:
        trainer.fit(load_data(seed=0)[0], epochs=epochs, batch_size=64, callbacks=callbacks)
        return weights_sha256(trainer.params)[:12], trainer.restarts


def main(epochs):
    digest, _ = train(epochs, engine="serial")
    print(f"in this process alone:         {digest}", flush=True)
    chaos = Chaos()
    digest, restarts = train(epochs, [chaos], workers=2, max_restarts=100)
    print(f"{chaos.kills} kills, 2 workers, then {chaos.sizes}: {digest}  ({restarts} workers were replaced)")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=6)
    main(**vars(parser.parse_args()))
