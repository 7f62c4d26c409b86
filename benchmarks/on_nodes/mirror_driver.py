"""The driver of benchmarks/mirror.py, on node 0: ``python -m benchmarks.on_nodes.mirror_driver``; prints JSON.

The clock of a machine is the same for all of its virtual nodes, so the times at both ends can be subtracted.
"""

from __future__ import annotations

import json
import threading
import time
from typing import Any

import numpy as np
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

import untorn
import untorn.ray
from benchmarks.measure import interleaved

SIZES = {"36 KB": 36_000, "17 MB": 17_400_000}
TURNS = {"36 KB": 40, "17 MB": 12}
NAME = "benchmark"
WATCHDOG_S = 60.0


class Other:
    """An actor of the other node."""

    def __init__(self) -> None:
        self._seen: dict[int, float] = {}

    def follow(self, name: str) -> None:
        """Note when each version arrives, in a thread."""
        reader = untorn.subscribe(name, timeout_s=WATCHDOG_S)
        threading.Thread(target=self._note, args=(reader,), daemon=True).start()

    def _note(self, reader: untorn.Subscriber) -> None:
        for snapshot in reader:
            assert snapshot.value[-1] is not None
            self._seen[snapshot.version] = time.monotonic()

    def seen(self, version: int) -> float | None:
        """Return when a version arrived."""
        return self._seen.get(version)

    def take(self, value: np.ndarray) -> float:
        """Return the time at which a value is there."""
        assert value[-1] is not None
        return time.monotonic()


def measured(size: str) -> dict[str, list[float]]:
    """Return the seconds of each turn by contestant."""
    here = ray.get_runtime_context().get_node_id()
    other = next(node["NodeID"] for node in ray.nodes() if node["Alive"] and node["NodeID"] != here)
    place = NodeAffinitySchedulingStrategy(other, soft=False)
    actor: Any = ray.remote(Other).options(num_cpus=0, scheduling_strategy=place).remote()
    value = np.ones(SIZES[size], np.uint8)
    name = f"{NAME}-{SIZES[size]}"
    with untorn.publish(value, name=name) as publisher, untorn.ray.mirror(publisher) as mirrored:
        mirrored.wait(timeout_s=WATCHDOG_S)
        ray.get(actor.follow.remote(name))

        def by_mirror() -> float:
            start = time.monotonic()
            version = publisher.update(value)
            mirrored.wait(version, timeout_s=WATCHDOG_S)
            while (arrived := ray.get(actor.seen.remote(version))) is None:
                pass
            return arrived - start

        def by_object() -> float:
            start = time.monotonic()
            reference = ray.put(value)
            return ray.get(actor.take.remote(reference)) - start

        times = interleaved({"mirror": by_mirror, "object": by_object}, turns=TURNS[size], warm_up=3)
        publisher.unlink()
    ray.kill(actor)
    return times


if __name__ == "__main__":
    ray.init(log_to_driver=False, logging_level="error")
    print(json.dumps({size: measured(size) for size in SIZES}))
