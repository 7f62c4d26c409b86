"""Train on the same data as arrays, as one file that may be larger than memory, and as one file per example.

    python examples/dataset.py [--epochs 3]

Needs scikit-learn for the digits: pip install 'untorn[demo]'
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np

from untorn import SGD, Trainer
from untorn.jobs.digits import init_params, load_data, loss_and_grad
from untorn.train import weights_sha256


class Scans:
    """One file per example, such as a folder of images, which the workers read in parallel. A torch.utils.data.Dataset
    and a Hugging Face dataset have the same two methods."""

    def __init__(self, folder):
        self.files = sorted(Path(folder).glob("*.npz"))

    def __len__(self):
        return len(self.files)

    def __getitem__(self, index):
        with np.load(self.files[index]) as example:
            return example["image"], example["label"]


def train(data, epochs):
    with Trainer(loss_and_grad, init_params(0), optimizer=SGD(0.05, momentum=0.9), workers=2, shards=4) as trainer:
        loss = trainer.fit(data, epochs=epochs, batch_size=32).history["loss"][-1]
        return f"loss {loss:.4f}  weights {weights_sha256(trainer.params)[:12]}"


def main(epochs):
    images, labels = load_data(seed=0)[0]
    with tempfile.TemporaryDirectory() as folder:
        for index, (image, label) in enumerate(zip(images, labels, strict=True)):
            np.savez(f"{folder}/{index:04}.npz", image=image, label=label)
        np.save(f"{folder}/images.npy", images)
        print("arrays          ", train((images, labels), epochs), flush=True)
        print("one mapped file ", train((np.load(f"{folder}/images.npy", mmap_mode="r"), labels), epochs), flush=True)
        print("a file for each ", train(Scans(folder), epochs))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=3)
    main(**vars(parser.parse_args()))
