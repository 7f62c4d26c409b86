"""A channel of one node on all nodes of a Ray cluster.

::

    node 0: publisher ──> channel "policy" ──> VersionServer (a thread of the process that called mirror)
                                                 ║
    node 1: an actor ──> Follower <══════════════╣            the newest version, once per node
                         channel "policy" ──> subscribe("policy"), in any process of node 1
    node 2: an actor ──> Follower <══════════════╝

Streams instead of Ray's object store: a version is received straight into a slot, and needs no call of an actor
(benchmarks/mirror.py compares them). engines/nodes/streaming says what subscribers see when the source ends.
"""

from __future__ import annotations

import contextlib
import logging
import secrets
import threading
import time
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import ray

from untorn.engines.nodes.streaming import Follower, VersionServer
from untorn.errors import ClosedError
from untorn.ray.nodes import Machine, ensure_ray, machines, on_node, own_address, own_node
from untorn.share import Publisher, Subscriber

__all__ = ["Mirror", "mirror"]

_log = logging.getLogger(__name__)

#: how often the list of nodes is read, which tells of those that joined
_LOOK_INTERVAL_S = 1.0
#: how long to wait before an actor that failed is started again
_RETRY_S = 5.0
#: how long close() waits for the actors to remove their channels
_END_S = 5.0
_POLL_S = 0.02


def mirror(
    channel: str | Publisher | Subscriber,
    *,
    name: str | None = None,
    max_readers: int = 256,
    max_slots: int = 64,
    slots: int = 4,
    ray_options: dict[str, Any] | None = None,
) -> Mirror:
    """Follow a channel of this node on all other nodes of the Ray cluster, until the mirror is closed.

    Each node has a channel of the same name, to which its processes ``untorn.subscribe`` as ever. It gets the newest
    version once, whole, and under the same number; a node that is slower than the publisher misses versions. Nodes that
    join the cluster later get it, too. If the publisher closes the channel or dies, subscribers on all nodes get what
    they would get on the publisher's.

    Args:
        channel: a name, a path, a Publisher or a Subscriber.
        name: the name on the other nodes; the channel's own by default. An anonymous channel needs one.
        max_readers, max_slots, slots: of the channels on the other nodes, as for untorn.publish().
        ray_options: options of the actor of each node, as for ``Actor.options()``: ``runtime_env``, ``resources``,
            ``num_cpus`` (0 by default).

    Does not wait for the other nodes: Mirror.wait() does, and so does ``subscribe(name, timeout_s=...)`` there. Calls
    ``ray.init()`` if nobody has.

    Raises ConnectionError if there is no cluster at the address that Ray was given, and what untorn.subscribe() does.

    Example::

        weights = untorn.publish(params, name="policy")
        with untorn.ray.mirror(weights) as mirrored:
            mirrored.wait()
            ...                                        # tasks on any node: untorn.subscribe("policy")
            weights.update(params)
    """
    ensure_ray()
    own = channel if isinstance(channel, str) else channel.name
    there = name or (None if own in (None, "anonymous") else own)
    if there is None:
        raise ValueError("name: an anonymous channel needs a name on the other nodes")
    if "/" in there:
        raise ValueError(f"name: channel {there!r} has a directory of its own; name it for the other nodes")
    secret = secrets.token_bytes(32)
    server = VersionServer(channel, host=own_address(), secret=secret)
    return Mirror(server, secret, there, (max_readers, max_slots, slots), ray_options or {})


@dataclass
class _Copy:
    """The actor of a node."""

    node: Machine
    actor: Any
    running: Any  # the reference of its call of run()


@dataclass
class _State:
    """What the watching thread has found out."""

    copies: dict[str, _Copy] = field(default_factory=dict)  # by the node's id
    retry_at: dict[str, float] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)
    looked: bool = False


class Mirror:
    """A channel that is followed on all nodes. Made by mirror(); used as a context manager, it closes on exit.

    Attributes:
        name: the channel's name on the other nodes.
    """

    def __init__(
        self,
        server: VersionServer,
        secret: bytes,
        name: str,
        sizes: tuple[int, int, int],
        options: dict[str, Any],
    ) -> None:
        self.name = name
        self._server = server
        self._own = own_node()
        self._arguments = (server.address, secret, name, sizes)
        self._options = options
        self._state = _State()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, name=f"untorn: mirror of {name!r}", daemon=True)
        self._thread.start()

    def versions(self) -> dict[str, int]:
        """Return the newest version of each other node, by the node's id in Ray; 0 for one that has none yet."""
        found = dict.fromkeys(list(self._state.copies), 0)
        for feed in self._server.feeds():
            node = str(feed.hello.get("node"))
            found[node] = max(min(feed.version, self._server.version), found.get(node, 0))
        return found

    def problems(self) -> dict[str, str]:
        """Return what went wrong last on each node without the channel, by the node's id in Ray."""
        return dict(self._state.problems)

    def wait(self, version: int = 1, timeout_s: float | None = None) -> None:
        """Block until each node that is in the cluster now has this version, or a newer one.

        Raises TimeoutError, which names the nodes that do not have it; ClosedError if this is closed.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while not self._closed.is_set():
            late = [node for node, newest in self.versions().items() if newest < version]
            if self._state.looked and not late and not self._state.problems:
                return
            if deadline is not None and time.monotonic() > deadline:
                problems = self.problems()
                shown = ", ".join(f"{node} ({problems.get(node, 'late')})" for node in [*late, *problems])
                raise TimeoutError(f"channel {self.name!r}: not on all nodes within {timeout_s} s: {shown}")
            self._closed.wait(_POLL_S)
        raise ClosedError(f"this mirror of channel {self.name!r} is closed")

    def close(self) -> None:
        """End it: the other nodes get the newest version, and then their channels are closed and removed. Blocks for a
        few seconds if nodes do not answer. May be called twice."""
        if self._closed.is_set():
            return
        self._closed.set()
        self._thread.join()
        self._server.close()
        copies = list(self._state.copies.values())
        with contextlib.suppress(Exception):  # whatever has become of Ray meanwhile
            ray.wait([copy.running for copy in copies], num_returns=len(copies), timeout=_END_S)
        for copy in copies:
            with contextlib.suppress(Exception):
                ray.kill(copy.actor)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self._closed.is_set() else f"on {len(self._state.copies)} other nodes"
        return f"<untorn.ray.Mirror of {self.name!r}, {state}>"

    # -- the watching thread

    def _watch(self) -> None:
        while not self._closed.is_set():
            try:
                self._look()
            except Exception as error:  # ray.shutdown() was called, or the cluster is gone
                if not ray.is_initialized():
                    _log.warning("mirror of %r: ray.shutdown() ended it", self.name)
                    return
                _log.warning("mirror of %r: %s", self.name, error)
            self._closed.wait(_LOOK_INTERVAL_S)

    def _look(self) -> None:
        """Start an actor on each node that has none."""
        state, now = self._state, time.monotonic()
        nodes = {node.id: node for node in machines() if node.id != self._own}
        for copy in list(state.copies.values()):
            if copy.node.id not in nodes or self._has_ended(copy):
                del state.copies[copy.node.id]
        for node in nodes.values():
            if node.id not in state.copies and now >= state.retry_at.get(node.id, 0.0):
                state.retry_at[node.id] = now + _RETRY_S
                state.copies[node.id] = self._start(node)
        for gone in state.problems.keys() - nodes.keys():
            del state.problems[gone]
        state.looked = True

    def _start(self, node: Machine) -> _Copy:
        options = {"num_cpus": 0, "max_restarts": 0, **self._options, "scheduling_strategy": on_node(node.id)}
        actor: Any = ray.remote(Following).options(**options).remote()
        return _Copy(node, actor, actor.run.remote(*self._arguments, node.id))

    def _has_ended(self, copy: _Copy) -> bool:
        ended, _ = ray.wait([copy.running], timeout=0)
        if not ended:
            if copy.node.id in [feed.hello.get("node") for feed in self._server.feeds()]:
                self._state.problems.pop(copy.node.id, None)
            return False
        try:
            ray.get(copy.running)
            problem = "it stopped following"
        except Exception as error:
            problem = str(error).strip().rpartition("\n")[2] or type(error).__name__
        if not self._closed.is_set() and self._state.problems.get(copy.node.id) != problem:
            _log.warning("mirror of %r on node %s: %s", self.name, copy.node, problem)
        self._state.problems[copy.node.id] = problem
        with contextlib.suppress(Exception):
            ray.kill(copy.actor)
        return True


class Following:
    """The actor of a node. Ray shows its name with what it logs."""

    def run(self, source: tuple[str, int], secret: bytes, name: str, sizes: tuple[int, int, int], node: str) -> None:
        """Follow until the source ends."""
        Follower(source, secret, name, hello={"node": node}, sizes=sizes).run()
