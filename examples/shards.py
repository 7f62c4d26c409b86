"""Show that the result depends on shards and seed, and not on the number of workers.

    python examples/shards.py [--epochs 4]

Needs scikit-learn for the digits: pip install 'untorn[demo]'
"""

import argparse

from untorn import SGD, Trainer
from untorn.jobs.digits import init_params, load_data, loss_and_grad
from untorn.train import weights_sha256


def main(epochs):
    data, held_out = load_data(seed=0)
    print("shards  workers  test accuracy  weights")
    for shards in (1, 2, 8):
        for workers in (1, 2, 3):
            optimizer = SGD(0.05, momentum=0.9)
            with Trainer(loss_and_grad, init_params(0), optimizer=optimizer, workers=workers, shards=shards) as trainer:
                trainer.fit(data, epochs=epochs, batch_size=64)
                accuracy = trainer.evaluate(held_out)["accuracy"]
                print(f"{shards:6}  {workers:7}  {accuracy:13.2%}  {weights_sha256(trainer.params)[:12]}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=4)
    main(**vars(parser.parse_args()))
