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
