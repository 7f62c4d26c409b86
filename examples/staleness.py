"""Compare synchronous and asynchronous training when some gradients are slow.

    python examples/staleness.py [--epochs 6]

Needs scikit-learn for the digits: pip install 'untorn[demo]'
"""

import argparse
import time

from untorn import SGD, Trainer
from untorn.jobs.digits import init_params, load_data, loss_and_grad


def sometimes_slow(params, batch, rng):
    """Compute a gradient; one in eight takes 20 ms longer, as if it read from a slow disk or had a long text."""
    if rng.random() < 1 / 8:
        time.sleep(0.02)
    return loss_and_grad(params, batch)


def main(epochs):
    data, held_out = load_data(seed=0)
    print("mode   max_staleness  test loss  test accuracy  seconds")
    for settings in ({"mode": "sync", "shards": 4}, *({"mode": "async", "max_staleness": k} for k in (3, 15))):
        with Trainer(sometimes_slow, init_params(0), optimizer=SGD(0.05), workers=4, **settings) as trainer:
            trainer.fit(data, epochs=1, batch_size=32)  # starts the workers
            start = time.perf_counter()
            trainer.fit(data, epochs=epochs - 1, batch_size=32)
            seconds = time.perf_counter() - start
            tested = trainer.evaluate(held_out)
        staleness = settings.get("max_staleness", "-")
        print(
            f"{settings['mode']:5}  {staleness:>13}  {tested['loss']:9.4f}  {tested['accuracy']:13.2%}  {seconds:7.2f}",
            flush=True,
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=6)
    main(**vars(parser.parse_args()))
