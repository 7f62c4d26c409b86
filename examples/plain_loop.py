"""Compare the weights of a plain PyTorch loop with those of a Trainer, for several numbers of workers.

python examples/plain_loop.py [--workers 4] [--epochs 6]
"""

import argparse
import copy

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn

from untorn import SGD, Trainer
from untorn.torch import TorchModel
from untorn.train import weights_sha256
from untorn.train.data.sampler import epoch_order

BATCH = 60


def plain_loop(module, x, y, epochs):
    x, y = torch.from_numpy(x), torch.from_numpy(y)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)
    for epoch in range(epochs):
        for indices in torch.from_numpy(epoch_order(0, epoch, len(x))).split(BATCH):  # untorn's order for seed 0
            optimizer.zero_grad()
            nn.functional.cross_entropy(module(x[indices]), y[indices]).backward()
            optimizer.step()
    return module


def by_untorn(module, x, y, epochs, **settings):
    model = TorchModel(module, nn.CrossEntropyLoss())
    with Trainer(model, optimizer=SGD(0.1, momentum=0.9), **settings) as trainer:
        trainer.fit((x, y), epochs=epochs, batch_size=BATCH)
        return trainer.module()


def main(workers, epochs):
    x, y = load_digits(return_X_y=True)
    x = np.float32(x / 16)
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))

    def report(how, trained):
        with torch.no_grad():
            right = (trained(torch.from_numpy(x[1500:])).argmax(1).numpy() == y[1500:]).mean()
        weights = {name: tensor.numpy() for name, tensor in trained.state_dict().items()}
        print(f"{how:30} test accuracy {right:.2%}  weights {weights_sha256(weights)[:8]}")
        return weights

    data = (x[:1500], y[:1500], epochs)
    one = report("a plain loop", plain_loop(copy.deepcopy(module), *data))
    two = report("untorn, workers=1, shards=1", by_untorn(module, *data, workers=1, shards=1))
    difference = max(abs(one[name] - two[name]).max() for name in one)
    print(f"{'':30} they differ by {difference:.0e} at most")
    for n in sorted({1, 2, workers}):
        report(f"untorn, workers={n}, shards=4", by_untorn(module, *data, workers=n, shards=4))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--epochs", type=int, default=6)
    main(**vars(parser.parse_args()))
