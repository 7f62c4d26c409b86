"""Publish the readings of a sensor in one program, and read them in others: two terminals, services or containers.

    python examples/sensor.py publish                  # in one terminal
    python examples/sensor.py read                     # in another one, before or after; as many as you like

The programs know the name of the channel, and nothing else of each other. Kill either of them and start it again: the
reader goes on with the next publisher, and a reader that comes late finds the newest reading. Where two programs do not
see the same ``/dev/shm``, as in containers, give both the same ``--directory``.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import time
from pathlib import Path

import numpy as np

import untorn

SAMPLES = 100_000


def reading(number):
    return {"number": number, "samples": np.full(SAMPLES, float(number)), "pid": os.getpid()}


def publish(name, directory, count, interval_s):
    """Publish readings; count on from the newest one, if there is a channel from before."""
    try:
        first = untorn.subscribe(name, directory=directory).snapshot().value["number"] + 1
    except untorn.ChannelNotFoundError:
        first = 1
    with untorn.publish(reading(first), name=name, directory=directory) as sensor:
        print(f"reading {first}: published", flush=True)
        for number in itertools.islice(itertools.count(first + 1), count - 1 if count else None):
            time.sleep(interval_s)
            sensor.update(reading(number))


def read(name, directory, count):
    """Print each reading that there is when the one before has been printed."""
    sensor = untorn.subscribe(name, directory=directory, timeout_s=60)  # waits until there is such a channel
    for snap in itertools.islice(sensor.follow(), count or None):
        number, samples = snap.value["number"], snap.value["samples"]
        state = "whole" if (samples == number).all() else "TORN"
        print(f"reading {number}: {state}, version {snap.version}, from process {snap.value['pid']}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("command", choices=["publish", "read"])
    parser.add_argument("--name", default="sensor", help="the name of the channel (default: sensor)")
    parser.add_argument("--directory", type=Path, help="where its files are (default: in /dev/shm)")
    parser.add_argument("--count", type=int, default=0, help="end after this number of readings (default: never)")
    parser.add_argument("--interval", type=float, default=1.0, metavar="S", help="seconds between readings")
    options = parser.parse_args()
    if options.directory:
        options.directory.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(KeyboardInterrupt):
        if options.command == "publish":
            publish(options.name, options.directory, options.count, options.interval)
        else:
            read(options.name, options.directory, options.count)


if __name__ == "__main__":
    main()
