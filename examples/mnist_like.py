"""Train a convolutional PyTorch network on handwritten digits with two worker processes, and test it."""

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn

from untorn import SGD, ProgressBar, Trainer
from untorn.torch import TorchModel


def accuracy(outputs, y):
    return (outputs.argmax(1) == y).float().mean()


if __name__ == "__main__":
    x, y = load_digits(return_X_y=True)  # 1,797 scans of 8 x 8 pixels
    x = np.float32(x / 16).reshape(-1, 1, 8, 8)
    features = [nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()]
    module = nn.Sequential(*features, nn.Dropout(0.2), nn.Linear(256, 10))
    model = TorchModel(module, nn.CrossEntropyLoss(), metrics={"accuracy": accuracy})
    with Trainer(model, optimizer=SGD(0.1, momentum=0.9), workers=2, shards=4) as trainer:
        trainer.fit((x[:1500], y[:1500]), epochs=4, batch_size=60, callbacks=[ProgressBar()])
        print(f"test accuracy {trainer.evaluate((x[1500:], y[1500:]))['accuracy']:.1%}")
        torch.save(trainer.module().state_dict(), "digits.pt")
