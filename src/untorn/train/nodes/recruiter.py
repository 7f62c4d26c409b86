"""The recruiter: it starts the nodes that are missing, stops those that were given up, and sees which have ended.

A cluster may take its time to answer, so all calls to it are made here, in a thread of their own. The rest of this
object belongs to the thread of the hub.
"""

from __future__ import annotations

import itertools
import logging
import queue
import threading
import time
from collections.abc import Callable

from untorn.engines.nodes import Cluster, Figures, Invitation
from untorn.engines.nodes.wire import Hub
from untorn.train.nodes.replica import serve

__all__ = ["Recruiter"]

_log = logging.getLogger(__name__)

#: how often the cluster is asked which nodes have ended
_WATCH_S = 0.25
#: how long after a failed start the next one is tried, and the longest such time
_RETRY_S, _RETRY_MAX_S = 0.5, 30.0


class Recruiter:
    """Keeps as many nodes running as the cluster wants.

    Args:
        cluster: starts the nodes.
        hub: where they connect to.
        workers: the number of workers that a new node begins with.
        figures: returns what the cluster shows of the job, or None without a job: then no node is started.
        on_ended: called in the hub's thread with the number of a node that had joined and has ended, and the reason.
        on_cannot_start: called in the hub's thread with the error of a cluster that could not start a node while no
            other one is on its way.

    Attributes:
        connect_s: how long a node process may take until it has connected.
        why_not: why the last node that was started did not come.
    """

    connect_s = 120.0

    def __init__(
        self,
        cluster: Cluster,
        hub: Hub,
        *,
        workers: Callable[[], int],
        figures: Callable[[], Figures | None],
        on_ended: Callable[[int, str], None],
        on_cannot_start: Callable[[Exception], None],
    ) -> None:
        self.why_not = ""
        self._cluster, self._hub = cluster, hub
        self._workers, self._figures = workers, figures
        self._on_ended, self._on_cannot_start = on_ended, on_cannot_start
        self._numbers = itertools.count()
        #: the nodes that were started and have not connected: since when
        self._starting: dict[int, float] = {}
        self._retry_at, self._retry_s = 0.0, _RETRY_S
        #: the numbers of nodes to stop, and whether they were lost; None ends the thread
        self._to_stop: queue.SimpleQueue[tuple[int, bool] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="untorn-cluster", daemon=True)
        self._thread.start()

    def begin(self) -> None:
        """Begin a job: what failed before it is forgotten."""
        self.why_not = ""
        self._retry_at, self._retry_s = 0.0, _RETRY_S

    def expects(self, number: object) -> bool:
        """Return whether this node was started and has not joined."""
        return number in self._starting

    def take(self, number: int) -> bool:
        """Note that a node has joined, or never will. Return whether it was expected."""
        return self._starting.pop(number, None) is not None

    def succeeded(self) -> None:
        """Note that a node is ready, so the next one that fails is tried again soon."""
        self._retry_s = _RETRY_S

    def failed(self, reason: str) -> None:
        """Note that a node did not come. The next one is started after a pause, a longer one each time."""
        self.why_not = reason
        _log.warning("a node did not come: %s", reason)
        self._retry_at = time.monotonic() + self._retry_s
        self._retry_s = min(2 * self._retry_s, _RETRY_MAX_S)

    def stop(self, number: int, *, lost: bool) -> None:
        """Have the cluster stop a node. Returns at once."""
        self._to_stop.put((number, lost))

    def close(self) -> None:
        """End the thread. Blocks while the cluster answers."""
        self._to_stop.put(None)
        self._thread.join()

    # -- the thread

    def _work(self) -> None:
        while True:
            try:
                found = self._to_stop.get(timeout=_WATCH_S)
                if found is None:
                    return
            except queue.Empty:
                found = (-1, False)
            try:
                number, lost = found
                if number >= 0:
                    self._cluster.stop(number, lost=lost)
                self._look()
            except Exception as error:  # the cluster's library may raise any error
                _log.warning("the cluster does not answer: %s: %s", type(error).__name__, error)

    def _look(self) -> None:
        for ended in self._cluster.ended():
            self._hub.call(self._process_ended, ended.number, ended.reason)
        now = time.monotonic()
        late = [number for number, since in self._starting.copy().items() if now - since > self.connect_s]
        for number in late:
            self._cluster.stop(number, lost=True)
            self._hub.call(self._process_ended, number, f"did not connect to the driver within {self.connect_s:g} s")
        figures = self._figures()
        if figures is None:
            return
        self._cluster.show(figures)
        if now >= self._retry_at:
            missing = self._cluster.wanted() - len(figures.nodes) - len(self._starting)
            while missing > 0 and self._start(now):
                missing -= 1

    def _start(self, now: float) -> bool:
        """Start a node. Return whether the cluster has done so."""
        number = next(self._numbers)
        self._starting[number] = now
        invitation = Invitation(
            address=self._hub.address,
            secret=self._hub.secret,
            number=number,
            workers=self._workers(),
            neighbours=self._cluster.neighbours(),
            main=serve,
        )
        started = False
        try:
            started = self._cluster.start(invitation)
        except Exception as error:
            self._hub.call(self._cannot_start, error)
        finally:
            if not started:
                del self._starting[number]
        return started

    # -- in the hub's thread

    def _process_ended(self, number: int, reason: str) -> None:
        if self.take(number):
            self.failed(f"node {number} {reason} before it had joined")
        else:
            self._on_ended(number, reason)

    def _cannot_start(self, error: Exception) -> None:
        self.failed(f"{type(error).__name__}: {error}")
        if not self._starting:
            self._on_cannot_start(error)
