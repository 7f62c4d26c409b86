"""Compare the first publication of 1 GB, from nothing to a value that others can read, and giving its memory back.

Each contestant makes its shared memory, copies the array into it, and removes it again. So the page faults, in which
the kernel clears the memory, count: they are most of the time. torch copies with all its threads. ``private memory`` is
the same without sharing. Ray's object store exists before, and keeps its memory from one object to the next, so only
its first one is of this kind.
"""

from __future__ import annotations

import importlib.util
from multiprocessing import shared_memory

import numpy as np

import untorn
from benchmarks import peers
from benchmarks.measure import Row, interleaved, row, seconds

NAME = "first-publication"
QUESTION = "How long does the first publication of 1 GB take, page faults included?"

NBYTES = 10**9
TURNS, WARM_UP = 5, 1
SHARED_MEMORY = "multiprocessing.shared_memory"


def publish(source) -> None:
    untorn.publish(source).close()


def copy_to_shared_memory(source) -> None:
    memory = shared_memory.SharedMemory(create=True, size=NBYTES)
    np.frombuffer(memory.buf, np.uint8, NBYTES)[:] = source
    memory.close()
    memory.unlink()


def share_a_tensor(source) -> None:
    import torch

    torch.from_numpy(source).share_memory_()


def copy_to_private_memory(source) -> None:
    np.empty_like(source)[:] = source


def run() -> list[Row]:
    source = np.ones(NBYTES, np.uint8)
    calls = {
        SHARED_MEMORY: copy_to_shared_memory,
        "untorn: publish()": publish,
        "private memory": copy_to_private_memory,
    }
    if importlib.util.find_spec("torch"):
        calls["torch: share_memory_()"] = share_a_tensor
    for peer in peers.ALL[1:]:
        if not peer.missing():
            calls[f"{peer.NAME}: publish"] = lambda array, peer=peer: peer.Writer(array).close()
    times = interleaved(
        {what: lambda call=call: seconds(lambda: call(source)) for what, call in calls.items()},
        turns=TURNS,
        warm_up=WARM_UP,
    )
    base = times[SHARED_MEMORY]
    rows = [row(SHARED_MEMORY, base, unit="ms")]
    rows += [
        row(what, each, unit="ms", to=base, ratio_to=SHARED_MEMORY) for what, each in times.items() if each is not base
    ]
    return rows + _row_of_ray(source)


def _row_of_ray(source) -> list[Row]:
    if not importlib.util.find_spec("ray"):
        return []
    import ray

    ray.init(
        num_cpus=1,
        object_store_memory=3 * NBYTES,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
    )
    try:
        took = seconds(lambda: ray.put(source))
    finally:
        ray.shutdown()
    return [row("Ray: the first put()", [took], unit="ms", note="once; its store was made before")]
