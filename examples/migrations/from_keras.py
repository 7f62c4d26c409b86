"""From Keras's fit to a Trainer's: the same arguments, and the same weights for any number of worker processes.

``before`` and ``after`` do the same work. Usage: python examples/migrations/from_keras.py
"""

import os
import sys

import numpy as np
import torch
from torch import nn

from untorn import SGD, Trainer
from untorn.torch import TorchModel


def data():
    x = np.random.default_rng(0).normal(size=(256, 3)).astype(np.float32)
    return x, x @ np.float32([[1], [-2], [3]])


def before():
    os.environ["KERAS_BACKEND"] = "torch"
    import keras

    x, y = data()
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1, kernel_initializer="zeros")])
    model.compile(optimizer=keras.optimizers.SGD(0.1), loss="mse")
    history = model.fit(x, y, batch_size=256, epochs=20, validation_data=(x, y), verbose=0)
    return model.get_weights()[0].ravel().round(2).tolist(), round(history.history["val_loss"][-1], 4)


def module():
    net = nn.Linear(3, 1)
    with torch.no_grad():
        net.weight.zero_()
        net.bias.zero_()
    return net


def after():
    x, y = data()
    with Trainer(TorchModel(module(), nn.MSELoss()), optimizer=SGD(0.1), workers=2, shards=2) as trainer:
        history = trainer.fit((x, y), batch_size=256, epochs=20, validation_data=(x, y))
        weights = trainer.module().weight.detach().numpy()
    return weights.ravel().round(2).tolist(), round(history.history["val_loss"][-1], 4)


if __name__ == "__main__":
    for half in sys.argv[1:] or ["before", "after"]:
        print(f"{half}:", globals()[half]())
