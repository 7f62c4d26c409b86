"""Programs that tests run on nodes of a Ray cluster: see ray_nodes."""

from __future__ import annotations

import os

import numpy as np

import untorn
from ray_nodes import hear, say

LONG_S = 60.0


def value_of(number: int, size: int = 1000):
    return {"w": np.full(size, float(number)), "number": number}


def is_whole(snapshot) -> bool:
    number = snapshot.value["number"]
    return bool(snapshot.value["w"].min() == snapshot.value["w"].max() == number == snapshot.version)


def mirror_a_channel(name: str, size: int = 1000):
    """Publish a channel, mirror it, and do what the test says."""
    import untorn.ray

    with untorn.publish(value_of(1, size), name=name) as source:
        try:
            with untorn.ray.mirror(source) as mirrored:
                mirrored.wait(timeout_s=LONG_S)
                say(sorted(mirrored.versions().values()))
                while (task := hear()) is not None:
                    match task:
                        case ["update", number]:
                            say(source.update(value_of(number, size)))
                        case ["wait", number]:
                            mirrored.wait(number, timeout_s=LONG_S)
                            say(sorted(mirrored.versions().values()))
                        case ["nodes"]:
                            say(len(mirrored.versions()))
                        case ["close"]:
                            source.close()
                            say("closed")
        finally:
            source.unlink()
    return "ended"


def read_a_channel(name: str):
    """Say each version that comes, and at last why none comes any more."""
    reader = untorn.subscribe(name, timeout_s=LONG_S)
    seen = 0
    while True:
        try:
            snapshot = reader.snapshot(newer_than=seen)
        except untorn.BrokenChannelError as error:
            say(str(error))
            break
        assert is_whole(snapshot), (seen, snapshot.value)
        assert snapshot.version > seen
        seen = snapshot.version
        say(seen)
        del snapshot
    hear()


def channel_files():
    """Return the channels' files on this node."""
    folder = f"/dev/shm/untorn-{os.geteuid()}"
    return sorted(os.listdir(folder)) if os.path.isdir(folder) else []


def mirror_errors():
    """Return what mirror() says of wrong arguments."""
    import untorn.ray

    messages = []
    with untorn.publish(1) as anonymous:
        for arguments in ((anonymous,), ("nobody",), ("/tmp/there/name",)):
            try:
                untorn.ray.mirror(*arguments)
            except (ValueError, untorn.ChannelNotFoundError) as error:
                messages.append(f"{type(error).__name__}: {error}")
    return messages


def mirror_without_a_cluster():
    """Return the error of an address where no cluster is."""
    import untorn.ray

    with untorn.publish(1, name="lonely") as source:
        try:
            untorn.ray.mirror(source)
        except ConnectionError as error:
            return str(error)
        finally:
            source.unlink()


# -- training


def train(callbacks=(), epochs: int = 2, model=None, **engine):
    """Train; return what must be the same with every engine."""
    import networks
    from untorn.train import SGD, Trainer, weights_sha256

    data = networks.classes_of(152, 12, 3, seed=6)
    model = model or networks.mlp_with_dropout
    params = networks.mlp_params((12, 16, 3))
    with Trainer(model, params, optimizer=SGD(0.1, momentum=0.9), shards=4, seed=7, **engine) as trainer:
        history = trainer.fit(data, epochs=epochs, batch_size=16, callbacks=list(callbacks))
        loss = trainer.evaluate(data)["loss"]
        return [weights_sha256(trainer.params), str(history.history), loss]


def train_on_ray(nodes=None, workers=None, ray_options=None, epochs: int = 2):
    """Train on the cluster, and serially for as many epochs. Say after each epoch where the nodes are, and return
    whether both gave the same. The test can end the training, or set the number of nodes, after an epoch."""
    from untorn.train import Callback

    class Talking(Callback):
        made = 0

        def on_epoch_end(self, epoch, logs):
            self.made += 1
            say(self.trainer._pool.nodes())
            match hear():
                case "stop":
                    self.trainer.stop_training = True
                case ["nodes", count]:
                    self.trainer.resize(nodes=count)

    talking = Talking()
    found = train([talking], epochs, engine="ray", nodes=nodes, workers=workers, ray_options=ray_options)
    return found == train((), talking.made, engine="serial")


def train_wrongly(*cases):
    """Return the errors of trainings that cannot begin."""
    messages = []
    for case in cases:
        try:
            train(engine="ray", **case)
        except (ValueError, untorn.CapacityError, ConnectionError) as error:
            messages.append(f"{type(error).__name__}: {error}")
    return messages


def metrics_of_a_training():
    """Train, and return the metrics that Ray was given: the sums of counters, and the last values of gauges."""
    import ray.util.metrics

    import untorn.ray.metrics

    found: dict[str, float] = {}

    def inc(self, value=1.0, tags=None):
        found[self.info["name"]] = found.get(self.info["name"], 0) + value
        assert tags is not None

    def set_to(self, value, tags=None):
        found[self.info["name"]] = value

    ray.util.metrics.Counter.inc, ray.util.metrics.Gauge.set = inc, set_to
    untorn.ray.metrics.INTERVAL_S = 0.0
    train(epochs=300, engine="ray", nodes=2, workers=1)
    return found


def train_beside_another_version():
    """Return what the driver logs of nodes that have another version of untorn, and the error."""
    import logging

    from untorn.train.nodes import coordinator, roster

    messages: list[str] = []

    class Handler(logging.Handler):
        def emit(self, record):
            messages.append(record.getMessage())

    logging.getLogger("untorn").addHandler(Handler())
    here = roster.versions_here()
    roster.versions_here = lambda: {**here, "untorn": "0.0.1"}
    coordinator.Recruiter.connect_s = 10.0
    try:
        train(engine="ray", nodes=1, workers=1)
    except untorn.WorkerError as error:
        messages.append(str(error))
    return messages
