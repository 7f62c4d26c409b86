"""Train a convolutional PyTorch network on handwritten digits with two worker processes.

python examples/mnist_like.py --epochs 8
"""

import argparse

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn

from untorn import SGD, Trainer
from untorn.torch import TorchModel


def accuracy(outputs, y):
    return (outputs.argmax(1) == y).float().mean()


def main(epochs, workers):
    x, y = load_digits(return_X_y=True)  # 1,797 scans of 8 x 8 pixels
    x = np.float32(x / 16).reshape(-1, 1, 8, 8)
    torch.manual_seed(0)
    block = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten())
    module = nn.Sequential(block, nn.Dropout(0.2), nn.Linear(256, 10))
    model = TorchModel(module, nn.CrossEntropyLoss(), metrics={"accuracy": accuracy})
    with Trainer(model, optimizer=SGD(0.1, momentum=0.9), workers=workers, shards=4) as trainer:
        print(trainer.fit((x[:1500], y[:1500]), epochs=epochs, batch_size=60, validation_data=(x[1500:], y[1500:])))
        trained = trainer.module().eval()  # a torch.nn.Module like the one given, to be saved or used
        print("the first digit is a", trained(torch.from_numpy(x[:1])).argmax().item())


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--workers", type=int, default=2)
    main(**vars(parser.parse_args()))
