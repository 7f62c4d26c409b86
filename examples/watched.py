"""Train as a named job that another terminal can watch and resize.

    python examples/watched.py --epochs 200          # in one terminal
    untorn top digits                                # in another one; q quits
    untorn join digits
    untorn leave digits

Needs scikit-learn for the digits, click and rich for the command: pip install 'untorn[demo]'
"""

import argparse

from untorn import SGD, ProgressBar, Trainer
from untorn.jobs.digits import init_params, load_data, loss_and_grad, with_shifts


def main(name, workers, epochs):
    data, held_out = load_data(seed=0)
    with Trainer(
        loss_and_grad, init_params(0), optimizer=SGD(0.02, momentum=0.9), workers=workers, shards=4, name=name
    ) as trainer:
        trainer.fit(
            with_shifts(*data), epochs=epochs, batch_size=64, validation_data=held_out, callbacks=[ProgressBar()]
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--name", default="digits")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=200)
    main(**vars(parser.parse_args()))
