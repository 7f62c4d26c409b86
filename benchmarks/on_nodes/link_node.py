"""A node with a link and no Trainer: weights in a channel, a board, and one process that is the only worker.

Each node computes one shard of every batch. Its gradient is written to the board; the links sum the gradients of all
nodes along the tree of the shards; the board updates the weights. It is what untorn's nodes do, less everything else.
"""

from __future__ import annotations

import itertools
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import untorn
from benchmarks.on_nodes.meter import cpu_clock
from untorn import SGD, _core
from untorn.board import Board, BoardSpec
from untorn.share import lowlevel
from untorn.train.run.parameter_layout import ParameterLayout

_STEPS = 4096
_CONNECT_S = 60.0
_WAIT_S = 1.0
_LIMIT = 2**31

#: writes the gradients of this node's shard into these arrays; gets the weights of the step
Fill = Callable[[Any, list[Any]], None]


@dataclass(frozen=True)
class Place:
    """Which of the nodes this one is.

    Attributes:
        index: its number.
        addresses: of all nodes.
        port: at which each of them listens, for this mesh only.
    """

    index: int
    addresses: Sequence[str]
    port: int


@contextmanager
def mesh(place: Place) -> Iterator[list[int]]:
    """Connect this node with all others; yield a descriptor for each, and -1 for itself."""
    with ExitStack() as stack:
        server = stack.enter_context(socket.create_server(("", place.port), backlog=len(place.addresses)))
        sockets: dict[int, socket.socket] = {}
        for peer in range(place.index):  # those before this one listen already, or soon
            connected = stack.enter_context(connect(place.addresses[peer], place.port))
            connected.sendall(bytes([place.index]))
            sockets[peer] = connected
        for _ in range(place.index + 1, len(place.addresses)):
            accepted = stack.enter_context(server.accept()[0])
            sockets[accepted.recv(1)[0]] = accepted
        for each in sockets.values():
            each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        yield [sockets[peer].fileno() if peer in sockets else -1 for peer in range(len(place.addresses))]


def connect(host: str, port: int) -> socket.socket:
    """Connect to a node that may not listen yet."""
    end = time.monotonic() + _CONNECT_S
    while True:
        try:
            return socket.create_connection((host, port))
        except ConnectionRefusedError:
            if time.monotonic() > end:
                raise
            time.sleep(0.01)


class LinkNode:
    """One node, after ``open``. Its weights are ``params``, a list of arrays, trained with SGD at ``rate``."""

    def __init__(self, place: Place, params: list[Any], rate: float, stack: ExitStack) -> None:
        self._layout = ParameterLayout.of(params, None)
        self._publisher = stack.enter_context(untorn.publish(params))
        for _ in range(2):
            self._publisher.update(params)  # makes the slots between which steps alternate
        self._weights = lowlevel.attachment_of(self._publisher)
        nodes = len(place.addresses)
        optimizer = SGD(rate)
        spec = BoardSpec(
            shards=nodes,
            max_workers=1,
            workers=1,
            is_async=False,
            steps=_STEPS,
            examples=_STEPS,
            batch_size=1,
            gradient_nbytes=self._layout.nbytes,
            first_version=self._publisher.version,
            kernels=optimizer.kernels,
            ranges=self._layout.ranges(),
            exchange=True,
        )
        self._board = stack.enter_context(Board.create(spec))
        self._board.rates[:] = optimizer.rates(0, _STEPS)
        self._board.set_own(place.index, place.index + 1)
        before = threads()
        self.link = _core.Link(place.index, stack.enter_context(mesh(place)), timeout_s=_CONNECT_S)
        stack.callback(self.link.close)
        (self._thread,) = threads() - before
        counts = np.ones((2, nodes), np.uint64)
        self.link.begin(self._board, 1, range(nodes + 1), counts)
        self._views: dict[int, list[Any]] = {}
        self._reader = stack.enter_context(self._publisher.subscriber())
        self._board.set_limit(_LIMIT)
        self._at = self._next_gradient()

    @classmethod
    @contextmanager
    def open(cls, place: Place, params: list[Any], *, rate: float) -> Iterator[LinkNode]:
        """Make the node, and end it. Blocks until all nodes are there."""
        with ExitStack() as stack:
            yield cls(place, params, rate, stack)

    def step(self, fill: Fill) -> None:
        """Make a step. Blocks until the weights are updated, and the board offers the gradient of the next step."""
        self._write(self._at, fill)
        self._board.commit(0)
        self._at = self._next_gradient()

    def _next_gradient(self) -> int:
        """Work until this worker gets a gradient to compute; return the place of its buffer."""
        while True:
            kind, _, _, at = self._board.next(self._weights, 0, True, _WAIT_S)
            if kind == _core.RUN_GRADIENT:
                return at
            if kind != _core.RUN_IDLE or self.link.problem is not None:
                raise RuntimeError(f"task {kind}, {self.link.problem}")

    def _write(self, at: int, fill: Fill) -> None:
        if at not in self._views:
            self._views[at] = self._layout.gradient_views(self._board, at)
        buffer = self._board.buffer(at)
        buffer.examples[0] = 1
        buffer.measured[:] = 0
        with self._reader.snapshot() as newest:
            fill(newest.value, self._views[at])

    def params(self) -> list[Any]:
        """Return a copy of the newest weights."""
        with self._reader.snapshot() as newest:
            return [leaf.copy() for leaf in newest.value]

    def link_cpu_s(self) -> float:
        """Return the processor time that the link's thread has used."""
        return time.clock_gettime(cpu_clock(self._thread) | 4)  # of a thread


def threads() -> set[int]:
    """Return the thread ids of this process."""
    return {int(path.name) for path in Path("/proc/self/task").iterdir()}


ports = itertools.count(30_000)


def places(addresses: Sequence[str]) -> list[Place]:
    """Return the place of each node in a new mesh."""
    port = next(ports)
    return [Place(index, addresses, port) for index in range(len(addresses))]
