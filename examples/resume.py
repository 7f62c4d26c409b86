"""Kill a training several times and resume it; it ends with the weights of an uninterrupted training.

    python examples/resume.py [--kills 3] [--epochs 8]

Needs scikit-learn and safetensors: pip install 'untorn[demo,checkpoint]'
"""

import argparse
import random
import signal
import subprocess
import sys
import tempfile

from untorn import SGD, Trainer
from untorn.jobs.digits import init_params, load_data, loss_and_grad
from untorn.train import weights_sha256


def train(epochs, checkpoint_dir=None):
    """Train as a user's script does: started again, it continues."""
    with Trainer(loss_and_grad, init_params(0), optimizer=SGD(0.05, momentum=0.9), workers=2, shards=4) as trainer:
        trainer.fit(
            load_data(seed=0)[0],
            epochs=epochs,
            batch_size=64,
            checkpoint_dir=checkpoint_dir,
            resume=checkpoint_dir is not None,
            checkpoint_every_s=0.02,  # real trainings keep the default of five minutes
        )
        return weights_sha256(trainer.params)[:12]


def main(epochs, kills):
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, "--epochs", str(epochs), "--checkpoint-dir", folder]
        for _ in range(kills):
            process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
            print(process.stdout.readline().strip(), end=" ... ", flush=True)  # training has begun
            try:
                process.wait(random.uniform(0.1, 0.5))
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
            print("killed" if process.wait() == -signal.SIGKILL else "done", flush=True)
            process.stdout.close()
        print("with kills:    ", subprocess.check_output(command, text=True).split()[-1], flush=True)
    print("without a kill:", train(epochs))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--kills", type=int, default=3)
    parser.add_argument("--checkpoint-dir", help=argparse.SUPPRESS)  # for the child that is killed
    options = parser.parse_args()
    if options.checkpoint_dir is None:
        main(options.epochs, options.kills)
    else:
        print("training", flush=True)
        print(train(options.epochs, options.checkpoint_dir))
