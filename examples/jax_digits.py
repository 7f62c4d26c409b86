"""Train a JAX loss function on handwritten digits with worker processes.

    python examples/jax_digits.py [--workers 2] [--epochs 20]

Needs scikit-learn for the digits: pip install 'untorn[jax,demo]'
"""

import argparse
from itertools import pairwise

import jax
import jax.numpy as jnp
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from untorn import SGD, Trainer
from untorn.jax import JaxModel


def init(key, sizes=(64, 128, 10)):
    layers = []
    for inputs, outputs in pairwise(sizes):
        key, own = jax.random.split(key)
        weights = jax.random.normal(own, (inputs, outputs)) * jnp.sqrt(2 / inputs)
        layers.append({"w": weights, "b": jnp.zeros(outputs)})
    return layers


def predict(params, x):
    *hidden, last = params
    for layer in hidden:
        x = jax.nn.relu(x @ layer["w"] + layer["b"])
    return x @ last["w"] + last["b"]


def loss_fn(params, batch):
    x, y = batch
    logits = predict(params, x)
    loss = -jnp.take_along_axis(jax.nn.log_softmax(logits), y[:, None], axis=1).mean()
    return loss, {"accuracy": (logits.argmax(1) == y).mean()}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=20)
    arguments = parser.parse_args()

    x, y = load_digits(return_X_y=True)
    x, xt, y, yt = train_test_split((x / 16).astype("float32"), y, test_size=0.2, random_state=0)
    model = JaxModel(loss_fn, init(jax.random.key(0)), predict=predict)
    with Trainer(model, optimizer=SGD(0.1, momentum=0.9), workers=arguments.workers, shards=4) as trainer:
        # JAX compiles once per shape of a batch; without the smaller last batch there is only one shape
        history = trainer.fit((x, y), epochs=arguments.epochs, batch_size=64, drop_last=True)
        print(f"loss {history.history['loss'][0]:.3f} -> {history.history['loss'][-1]:.3f}")
        print(f"test accuracy {trainer.evaluate((xt, yt))['accuracy']:.1%}")
        print(f"the first ten digits: {trainer.predict(xt[:10]).argmax(1)}; they are {yt[:10]}")


if __name__ == "__main__":
    main()
