"""A training of one kind of model with one kind of optimizer, run in every way that must not change a bit of it.

``python same_bits.py MODEL OPTIMIZER`` prints a line with the SHA-256 of the weights for each way; the first way is
the serial engine. It is a separate program because JAX and forks do not go together. test_same_bits.py runs it.
"""

from __future__ import annotations

import argparse
import functools
import os
import random
import select
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import networks
from fault_injector import FaultInjector
from untorn.train import SGD, AdamW, Callback, Trainer, weights_sha256

DATA = networks.classes_of(152, 12, 3, seed=6)
BATCH = 16  # 10 steps an epoch, the last of 8 examples: two a shard, as batch normalisation wants it
SHARDS = 4


def numpy_model() -> tuple[Any, Any]:
    return numpy_loss, networks.mlp_params((12, 16, 3))


def numpy_loss(params, batch, rng):
    networks.work(2)  # so that a kill lands inside a gradient
    return networks.mlp_with_dropout(params, batch, rng)


def torch_model() -> tuple[Any, Any]:
    import torch
    from torch import nn

    from untorn.torch import TorchModel

    torch.manual_seed(1)
    module = nn.Sequential(
        nn.Linear(12, 16),
        nn.BatchNorm1d(16),
        nn.ReLU(),
        nn.Dropout(0.3),
        nn.Linear(16, 16),
        nn.Tanh(),
        nn.Linear(16, 3),
    )
    return TorchModel(module, nn.CrossEntropyLoss()), None


def jax_loss(params, state, batch, key=None):
    import jax
    import jax.numpy as jnp

    x, labels = batch
    hidden = x @ params["first"]
    mean = hidden.mean(0) if key is not None else state["mean"]
    hidden = jnp.tanh(hidden - mean)
    if key is not None:
        hidden *= jax.random.bernoulli(key, 0.7, hidden.shape)
    logits = jax.nn.log_softmax(hidden @ params["last"])
    return -jnp.take_along_axis(logits, labels[:, None], 1).mean(), {"mean": 0.9 * state["mean"] + 0.1 * mean}


def jax_model() -> tuple[Any, Any]:
    import jax.numpy as jnp
    import numpy as np

    from untorn.jax import JaxModel

    rng = np.random.default_rng(1)
    params = {name: jnp.array(rng.normal(size=size) / 4, jnp.float32)
              for name, size in (("first", (12, 16)), ("last", (16, 3)))}  # fmt: skip
    return JaxModel(jax_loss, params, state={"mean": jnp.zeros(16)}), None


def torch_nadam() -> Any:
    import torch

    return functools.partial(torch.optim.NAdam, lr=0.01)


MODELS = {"numpy": numpy_model, "torch": torch_model, "jax": jax_model}
OPTIMIZERS = {
    "sgd": lambda: SGD(0.05, momentum=0.9, nesterov=True),
    "adamw": lambda: AdamW(0.01),
    "torch.optim": torch_nadam,
}


def trainer_of(model: str, optimizer: str, **engine) -> Trainer:
    made, params = MODELS[model]()
    given = {"optimizer": OPTIMIZERS[optimizer](), "shards": SHARDS, "seed": 4, "max_restarts": 100_000} | engine
    return Trainer(made, params, **given)


def trained(model: str, optimizer: str, epochs: int, **engine) -> str:
    with trainer_of(model, optimizer, **engine) as trainer:
        trainer.fit(DATA, epochs=epochs, batch_size=BATCH)
        return weights_sha256(trainer.params)


def trained_with_faults(model: str, optimizer: str, rng: random.Random, each: int, kinds: tuple[str, ...]):
    """Return the digest, the number of epochs and the number of restarts."""
    with trainer_of(model, optimizer, workers=3) as trainer:
        trainer.fit(DATA, epochs=1, batch_size=BATCH)
        with FaultInjector(trainer, rng, each, kinds) as faults:
            while faults.is_alive():
                trainer.fit(DATA, epochs=1, batch_size=BATCH)
        return weights_sha256(trainer.params), trainer.epoch, trainer.restarts


# -- the server is killed


class Ready(Callback):
    """Tells the parent that training runs."""

    def on_epoch_begin(self, epoch, logs):
        if sys.stdout is not None:
            print("running", flush=True)
            sys.stdout = None


def serve(model: str, optimizer: str, directory: str, epochs: int, workers: int) -> None:
    out = sys.stdout
    engine = {"engine": "serial"} if workers == 0 else {"workers": workers}
    with trainer_of(model, optimizer, **engine) as trainer:
        trainer.fit(
            DATA, epochs=epochs, batch_size=BATCH, callbacks=[Ready()], checkpoint_dir=directory, resume=True,
            checkpoint_every_s=0.0,
        )  # fmt: skip
        print("done", weights_sha256(trainer.params), file=out, flush=True)


def trained_by_killed_servers(model: str, optimizer: str, rng: random.Random, kills: int, epochs: int):
    """Return (digest, number of killed servers)."""
    killed = 0
    with tempfile.TemporaryDirectory() as directory:
        while True:
            arguments = [model, optimizer, "--serve", directory, str(epochs), str(rng.randint(0, 3))]
            with subprocess.Popen(
                [sys.executable, __file__, *arguments], stdout=subprocess.PIPE, text=True, start_new_session=True
            ) as server:
                line = server.stdout.readline()
                if line == "running\n" and killed < kills:
                    readable, _, _ = select.select([server.stdout], [], [], rng.random() * 0.3)
                    if not readable:  # a random moment to be killed at
                        os.kill(server.pid, signal.SIGKILL)
                        killed += 1
                        continue
                line = line if line.startswith("done") else server.stdout.readline()
                assert line.startswith("done"), f"the server said {line!r}"
                return line.split()[1], killed


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model", choices=MODELS)
    parser.add_argument("optimizer", choices=OPTIMIZERS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kills", type=int, default=52, help="of workers")
    parser.add_argument("--server-kills", type=int, default=34)
    parser.add_argument("--serve", nargs=3, metavar=("DIRECTORY", "EPOCHS", "WORKERS"))
    given = parser.parse_args()
    if given.serve:
        directory, epochs, workers = given.serve
        serve(given.model, given.optimizer, directory, int(epochs), int(workers))
        return
    what, rng = (given.model, given.optimizer), random.Random(given.seed)
    serial = functools.cache(lambda epochs: trained(*what, epochs, engine="serial"))

    def check(way: str, got: str, epochs: int) -> None:
        print(f"{' '.join(what)}: {way}, {epochs} epochs: {got[:16]}", flush=True)
        assert got == serial(epochs), f"{way}: the serial engine gives {serial(epochs)[:16]}"

    check("serial", serial(3), 3)
    for workers in (1, 2, 3, 4):
        check(f"{workers} workers", trained(*what, 3, workers=workers), 3)
    got, epochs, restarts = trained_with_faults(*what, rng, given.kills, ("kill",))
    check(f"{restarts} workers killed", got, epochs)
    got, epochs, _ = trained_with_faults(*what, rng, given.kills // 2, ("resize",))
    check(f"{given.kills // 2} times resized", got, epochs)
    epochs = 10 + 8 * given.server_kills
    got, killed = trained_by_killed_servers(*what, rng, given.server_kills, epochs)
    check(f"{killed} servers killed", got, epochs)


if __name__ == "__main__":
    main()
