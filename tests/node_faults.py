"""Break the nodes of a trainer while it trains, at random moments that the test's own generator draws.

Nodes are processes of this machine. What happens between machines is done to them: a process is stopped for so long
that the driver gives it up, and goes on later; a connection ends although both its ends live.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import random
import signal
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import networks
from untorn.engines.nodes.loopback import LoopbackCluster
from untorn.train import Callback, Trainer

#: how long a worker of a node sleeps in each gradient, so that there is time for faults; nothing elsewhere
NAP = "UNTORN_TEST_NAP_S"
_PIDFD_GETFD = 438


def napping_loss(params: Any, batch: Any, rng: Any) -> Any:
    """A model with random numbers, whose steps take a moment."""
    time.sleep(float(os.environ.get(NAP, "0")))
    return networks.mlp_with_dropout(params, batch, rng)


class LoopbackWithFaults(LoopbackCluster):
    """Nodes of this machine that can be stopped, as if they were cut off: the order to end does not reach them until
    they go on."""

    def __init__(self) -> None:
        super().__init__()
        self.stopped: dict[int, bool] = {}

    def stop(self, number: int, *, lost: bool = False) -> None:
        if number in self.stopped:
            self.stopped[number] = True
        else:
            super().stop(number, lost=lost)

    def pause(self, number: int) -> None:
        """Stop a node process and its workers do what they did."""
        self.stopped[number] = False
        pid = self.pid(number)
        if pid is not None:
            os.kill(pid, signal.SIGSTOP)

    def go_on(self, number: int) -> None:
        """Let a stopped node go on. If it was given up meanwhile, it has to notice by itself."""
        del self.stopped[number]
        pid = self.pid(number)
        if pid is not None:
            os.kill(pid, signal.SIGCONT)

    def close(self) -> None:
        for number in list(self.stopped):
            with contextlib.suppress(ProcessLookupError):
                self.go_on(number)
        super().close()


class StepWatch(Callback):
    """Tells a thread of the test that steps are made, ends training when asked to, and measures the gaps."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self.steps = 0
        self.stop = False
        self.gap_s = 0.0
        self._last = None

    def on_batch_end(self, step, logs):
        now = time.monotonic()
        with self._changed:
            if self._last is not None:
                self.gap_s = max(self.gap_s, now - self._last)
            self._last = now
            self.steps += 1
            self._changed.notify_all()

    def on_epoch_end(self, epoch, logs):
        if self.stop:
            self.trainer.stop_training = True

    def wait(self, steps: int, timeout_s: float) -> bool:
        """Wait for this number of further steps. Returns whether they were made in time."""
        with self._changed:
            until = self.steps + steps
            return self._changed.wait_for(lambda: self.steps >= until, timeout_s)

    def longest_gap(self) -> float:
        """Return the longest gap between two steps since the last call, including one that goes on, in seconds."""
        with self._changed:
            gap_s, self.gap_s = self.gap_s, 0.0
            return gap_s if self._last is None else max(gap_s, time.monotonic() - self._last)


class NodeFaults(threading.Thread):
    """Injects faults of these kinds into the nodes of a trainer, one after the other, each as often as given.

    Args:
        trainer: a trainer whose nodes are those of the cluster.
        kinds: the names of methods below, with the number of times.
        watch: the callback that the trainer's fit has.
    """

    def __init__(
        self,
        trainer: Trainer,
        cluster: LoopbackWithFaults,
        watch: StepWatch,
        rng: random.Random,
        kinds: dict[str, int],
        *,
        silence_s: float,
    ) -> None:
        super().__init__()
        self._trainer, self._cluster, self._watch, self._rng = trainer, cluster, watch, rng
        self._silence_s = silence_s
        self.left = dict(kinds)
        self.error: BaseException | None = None
        self.gaps_s: dict[str, float] = {}

    def run(self) -> None:
        try:
            while any(self.left.values()):
                self._settle()
                time.sleep(self._rng.random() * 0.2)  # so that faults are in step with nothing
                kind = self._rng.choice([kind for kind, left in self.left.items() if left > 0])
                self._watch.longest_gap()
                with contextlib.suppress(ProcessLookupError, LookupError):  # it has just ended
                    getattr(self, kind)()
                    self.left[kind] -= 1
                    self._settle()
                    gap_s = self._watch.longest_gap()
                    self.gaps_s[kind] = max(self.gaps_s.get(kind, 0.0), gap_s)
                    print(f"{kind}: longest gap {gap_s:.2f} s, then {self.running()} nodes", flush=True)
        except BaseException as error:
            self.error = error
        finally:
            self._watch.stop = True

    def _settle(self) -> None:
        if not self._watch.wait(3, 120):
            raise TimeoutError("no step was made within 120 s")

    def running(self) -> list[int]:
        """Return the numbers of the nodes that take part."""
        return [node["number"] for node in self._trainer._pool.nodes() if node["state"] == "running"]

    def _node(self) -> int:
        return self._rng.choice(self.running())

    def _pid(self, number: int) -> int:
        pid = self._cluster.pid(number)
        if pid is None:
            raise ProcessLookupError
        return pid

    # -- faults

    def kill_worker(self) -> None:
        """Kill a worker of a node."""
        os.kill(self._rng.choice([each["pid"] for each in self._trainer._pool.members()]), signal.SIGKILL)

    def kill_node(self) -> None:
        """Kill a node process. Its workers end by themselves."""
        os.kill(self._pid(self._node()), signal.SIGKILL)

    def kill_all(self) -> None:
        """Kill every node process."""
        for number in self.running():
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._pid(number), signal.SIGKILL)

    def stop_node(self) -> None:
        """Stop a node for so long that it is given up, and let it go on."""
        number = self._node()
        self._pid(number)
        self._cluster.pause(number)
        time.sleep(self._silence_s * (1.2 + self._rng.random()))
        self._cluster.go_on(number)

    def nap_node(self) -> None:
        """Stop a node for a moment."""
        number = self._node()
        self._pid(number)
        self._cluster.pause(number)
        time.sleep(self._silence_s * self._rng.random() / 2)
        self._cluster.go_on(number)

    def break_link(self) -> None:
        """End the connections between two nodes, which live."""
        running = self.running()
        if len(running) < 2:
            raise LookupError("there is no link between nodes now")
        one, other = self._rng.sample(running, 2)
        break_connections(self._pid(one), ports_of(self._pid(other)))

    def break_wire(self) -> None:
        """End the connection between a node and the driver, which live."""
        break_connections(self._pid(self._node()), {self._trainer._pool._coordinator._hub.address[1]})

    def join(self) -> None:
        """Add a node, up to 4."""
        self._trainer.resize(nodes=min(4, self._trainer.nodes + 1))

    def leave(self) -> None:
        """Take a node away, down to 1."""
        self._trainer.resize(nodes=max(1, self._trainer.nodes - 1))

    def workers(self) -> None:
        """Change the number of workers of every node."""
        self._trainer.resize(self._rng.randint(1, 2))


def sockets_of(pid: int) -> Iterator[socket.socket]:
    """Yield copies of the TCP sockets of another process."""
    pidfd = os.pidfd_open(pid)
    call = ctypes.CDLL(None, use_errno=True).syscall
    try:
        for name in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError):
                if not os.readlink(f"/proc/{pid}/fd/{name}").startswith("socket:"):
                    continue
                fd = call(_PIDFD_GETFD, pidfd, int(name), 0)
                if fd < 0:
                    continue
                with socket.socket(fileno=fd) as found:
                    if found.family == socket.AF_INET:
                        yield found
    finally:
        os.close(pidfd)


def ports_of(pid: int) -> set[int]:
    """Return the TCP ports of a process."""
    return {each.getsockname()[1] for each in sockets_of(pid)}


def break_connections(pid: int, ports: set[int]) -> None:
    """Shut down the connections of a process to one of these ports."""
    for each in sockets_of(pid):
        with contextlib.suppress(OSError):
            if each.getpeername()[1] in ports:
                each.shutdown(socket.SHUT_RDWR)
