"""A training loop as in PyTorch's tutorials, with its own optimizer, scheduler and evaluation, on several workers.

The lines that differ from the loop on one processor are marked with [untorn]. With --plain the same program runs
without untorn.

python examples/own_loop.py [--workers 2] [--shards 4] [--epochs 5] [--plain]
"""

import argparse
import hashlib

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from untorn.torch import Accelerated  # [untorn]


def convolutional():
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Dropout(0.1), nn.Linear(16 * 4 * 4, 10),
    )  # fmt: skip


def accuracy(module, loader):
    module.eval()
    right = total = 0
    with torch.no_grad():
        for x, y in loader:
            right += (module(x).argmax(1) == y).sum().item()
            total += len(y)
    module.train()
    return right / total


def main(workers, shards, epochs, plain):
    images, labels = load_digits(return_X_y=True)
    x = torch.from_numpy(images).float().reshape(-1, 1, 8, 8) / 16
    y = torch.from_numpy(labels)
    torch.manual_seed(0)
    train = DataLoader(TensorDataset(x[:1500], y[:1500]), batch_size=100, shuffle=True)
    test = DataLoader(TensorDataset(x[1500:], y[1500:]), batch_size=100)

    module = convolutional()
    loss_function = nn.CrossEntropyLoss()
    optimizer = torch.optim.AdamW(module.parameters(), lr=3e-3)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=epochs * len(train))
    accelerated = None if plain else Accelerated(module, loss_function, workers=workers, shards=shards)  # [untorn]

    for epoch in range(epochs):
        total = 0.0
        for x, y in train:
            optimizer.zero_grad()
            if accelerated is not None:
                loss = accelerated.backward((x, y))  # [untorn]
            else:
                loss = loss_function(module(x), y)
                loss.backward()
            nn.utils.clip_grad_norm_(module.parameters(), 1.0)
            optimizer.step()
            scheduler.step()
            total += loss.item() * len(x)
        print(f"epoch {epoch}  loss {total / 1500:.4f}  test accuracy {accuracy(module, test):.2%}")

    if accelerated is not None:
        accelerated.close()  # [untorn]
    weights = b"".join(tensor.numpy().tobytes() for tensor in module.state_dict().values())
    print(f"weights {hashlib.sha256(weights).hexdigest()[:16]}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--shards", type=int, default=4)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--plain", action="store_true")
    main(**vars(parser.parse_args()))
