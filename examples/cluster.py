"""Train on several nodes and kill one of them in the middle; the weights are those of this process alone.

    python examples/cluster.py [--epochs 4] [--nodes 3] [--engine loopback|ray]

The nodes are processes of this machine, or with --engine ray those of the Ray cluster that runs here, or that
RAY_ADDRESS names. Needs scikit-learn for the digits: pip install 'untorn[demo]'; for --engine ray also 'untorn[ray]'
"""

import argparse

from untorn import SGD, Callback, Trainer
from untorn.engines.nodes.loopback import LoopbackCluster
from untorn.jobs.digits import init_params, load_data, loss_and_grad
from untorn.train import weights_sha256


class LoseANode(Callback):
    """End a node in the middle of the second epoch, whatever it is doing, as a power failure would."""

    def __init__(self, cluster):
        self.cluster = cluster

    def on_batch_end(self, batch, logs):
        """Count the steps."""
        if batch == 20 and self.trainer.epoch == 1:
            self.cluster.stop(1)


def train(epochs, callbacks=(), **settings):
    with Trainer(loss_and_grad, init_params(0), optimizer=SGD(0.05, momentum=0.9), shards=4, **settings) as trainer:
        trainer.fit(load_data(seed=0)[0], epochs=epochs, batch_size=64, callbacks=callbacks)
        return weights_sha256(trainer.params)[:16], trainer.restarts


def new_cluster(engine):
    if engine == "loopback":
        return LoopbackCluster()
    from untorn.ray import RayCluster

    return RayCluster()


def main(epochs, nodes, engine):
    print(f"this process alone:  {train(epochs, engine='serial')[0]}", flush=True)
    print(f"2 worker processes:  {train(epochs, workers=2)[0]}", flush=True)
    cluster = new_cluster(engine)
    digest, lost = train(epochs, [LoseANode(cluster)], engine=cluster, nodes=nodes, workers=1)
    print(f"{f'{nodes} nodes, {lost} lost:':20} {digest}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--nodes", type=int, default=3)
    parser.add_argument("--engine", choices=["loopback", "ray"], default="loopback")
    main(**vars(parser.parse_args()))
