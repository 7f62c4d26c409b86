"""Count what each machine sends in a step of a Trainer on 2, 3, 4 and 8 machines.

The machines are virtual nodes of this one (tests/virtual_nodes) with one worker each; the driver is on a node of its
own. The model is an MLP 64-h-h-10 in NumPy. The ratio compares what the node that sends most sends in a step of an
epoch, without the headers of IP and TCP, with 2 P (N - 1) / N, the least with which N nodes can get a sum of P bytes.
It takes a minute, and needs root. benchmarks/exchange.py counts the same for the links alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection
from threading import Thread
from typing import Any

from benchmarks.exchange import BYTES_AT_MOST
from benchmarks.measure import Row
from benchmarks.peers.untorn_torch import Pace
from benchmarks.train_step import examples, init

NAME = "nodes_bytes"
QUESTION = "How many bytes does each machine send in a step of a Trainer?"

NODES = (2, 3, 4, 8)
BATCH = 256
#: hidden width, and steps of the epoch that is measured
SIZES = {64: 100, 512: 20, 2048: 4}


def drive(connection: Connection, width: int, host: str, addresses: Sequence[str]) -> None:
    """Train an epoch for each True that comes, and answer."""
    from benchmarks.on_nodes.agents import AgentCluster
    from untorn import SGD, Trainer
    from untorn.jobs.digits import loss_and_grad

    pace, nodes = Pace(), len(addresses)

    def fit() -> None:
        engine = AgentCluster(host, addresses)
        data = examples(BATCH * SIZES[width])
        params = init(width)
        with Trainer(
            loss_and_grad, params, optimizer=SGD(1e-4), engine=engine, nodes=nodes, workers=1, shards=nodes
        ) as trainer:
            trainer.fit(data, epochs=2**30, batch_size=BATCH, callbacks=[pace])

    thread = Thread(target=fit)
    thread.start()
    pace.taken()  # the first epoch starts the workers
    connection.send(True)
    while go := connection.recv():
        pace.go.put(go)
        pace.taken()
        connection.send(True)
    pace.go.put(False)
    thread.join()


def row_of(nodes: Any, count: int, width: int) -> Row:
    """Measure an epoch on the first nodes, up to this number; the driver is on the last node of all."""
    from benchmarks.on_nodes.launching import call_on

    addresses = [nodes[index].address for index in range(count)]
    driver = len(nodes) - 1
    process, connection = call_on(nodes, driver, drive, width, nodes[driver].address, addresses)
    connection.recv()
    before = nodes.counters()
    connection.send(True)
    connection.recv()
    steps = SIZES[width]
    sent = [(now - then).sent_payload / steps for now, then in zip(nodes.counters(), before, strict=True)]
    connection.send(False)
    process.join(10.0)
    process.kill()
    connection.close()
    nbytes = sum(4 * array.size for array in init(width).values())
    least = 2 * nbytes * (count - 1) / count
    most = max(sent[:count])
    return Row(
        f"{count} nodes, h={width} ({nbytes // 4:,} parameters)",
        most,
        "bytes",
        ratio=most / least,
        ratio_to="2 P (N - 1) / N",
        aim=f"ratio at most {BYTES_AT_MOST:g}",
        reached=most / least <= BYTES_AT_MOST,
        note=f"the node that sends least: {min(sent[:count]) / least:.3f}; the driver: {sent[driver]:,.0f} bytes",
    )


def rows() -> Iterator[Row]:
    """Yield a row for each number of nodes and each size."""
    from benchmarks.on_nodes.agents import start_agent
    from benchmarks.on_nodes.launching import VirtualNodes

    with VirtualNodes(max(NODES) + 1) as nodes:
        for node in range(max(NODES)):
            start_agent(nodes, node)
        for count in NODES:
            for width in SIZES:
                yield row_of(nodes, count, width)


def run() -> list[Row]:
    from benchmarks.on_nodes import virtual_nodes

    if reason := virtual_nodes.missing():
        return [Row("bytes of a step", None, note=reason)]
    return list(rows())
