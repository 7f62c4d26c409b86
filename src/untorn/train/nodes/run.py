"""One session of a node: the board, the workers' job and the link to the peers, from one change of members to the next.

::

    own shards ──> board <──> workers
                     ^
                     └─────── link: sums of the peers' shards, and their measurements

A session begins at a step that all members have reached, and ends at one. Its link belongs to it: nothing that a peer
of an earlier session sends can reach the board.
"""

from __future__ import annotations

import collections
import contextlib
import socket
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from untorn import _core
from untorn.engines.nodes.wire import Blob, Message
from untorn.share import Publisher
from untorn.share.lowlevel import update_raw
from untorn.train.data import SharedData, sampler
from untorn.train.optim.base import Optimizer
from untorn.train.run.plan import Plan
from untorn.train.run.pool import WorkerPool
from untorn.train.run.steps import strategy_of
from untorn.train.run.tasks import GradientTasks
from untorn.train.run.weights import Weights

__all__ = ["NodeRun", "shard_counts"]

_REPORT_S = 0.02


class NodeRun:
    """One session of this node.

    Args:
        plan: the plan of the job.
        optimizer: makes the steps in this process; None if the workers make them.
        pool: the workers of this node.
        weights: the weights of this node, whose newest version is that of the step.
        data: the data, as the workers read it.
        channel: the channel of the data, for single steps.
        session: the number of the session.
        index: the number of this node among its members.
        cuts: node k computes the shards from cuts[k] to cuts[k + 1].
        links: connected sockets, one per member; this object owns them.
        step: the board's step to begin at.
        post: sends a message to the driver.
        check: raises an error if the driver is gone.
    """

    def __init__(
        self,
        *,
        plan: Plan,
        optimizer: Optimizer | None,
        pool: WorkerPool,
        weights: Weights,
        data: SharedData,
        channel: Publisher,
        session: int,
        index: int,
        cuts: list[int],
        links: list[socket.socket | None],
        step: int,
        post: Callable[..., None],
        check: Callable[[], None],
    ) -> None:
        self._plan = plan
        self._pool = pool
        self._weights = weights
        self._index = index
        self._session = session
        self._first = step
        self._post = post
        self._check = check
        self._channel = channel
        #: the epochs that begin when the one before is over here, too: message, order, rates and data
        self._next: collections.deque[tuple[Message, Blob, Blob, Blob]] = collections.deque()
        self._sent = step
        self._sent_at = 0.0
        self._at_rest = False
        self._told_of_problem = False
        self._link: _core.Link | None = None
        with contextlib.ExitStack() as stack:
            sockets = [stack.enter_context(sock) if sock is not None else None for sock in links]
            exchange = len(links) > 1
            stepper = None if optimizer is None else pool.steppers.get(optimizer, weights, plan.settings, step)
            spec = plan.board_spec(weights, pool.count, step=step, exchange=exchange)
            self._board = board = stack.enter_context(pool.make_board(spec, advice="use fewer shards or workers"))
            stack.enter_context(pool.count.job(board))
            tasks = GradientTasks(board, plan.min_examples)
            self._strategy = strategy_of(board, tasks, weights, 0, stepper)
            if exchange:
                board.set_own(cuts[index], cuts[index + 1])
            job = plan.gradient_job(weights, data)
            stack.enter_context(pool.run(job, board, at_rest=lambda: self._at_rest))
            if exchange:
                fds = [-1 if sock is None else sock.fileno() for sock in sockets]
                self._link = _core.Link(index, fds)
                stack.callback(self._link.close)
                self._link.begin(board, session, cuts, shard_counts(plan))
            self._stack = stack.pop_all()

    @property
    def step(self) -> int:
        """The number of steps made on the board, those before the session included."""
        return self._strategy.made

    @property
    def metric_names(self) -> list[str]:
        """The names of the metrics, as far as they are known here."""
        return self._board.metric_names

    def begin_epoch(self, epoch: Message, order: Blob, rates: Blob, batch: Blob) -> None:
        """Begin an epoch, or the rest of it: its first step on the board, number and skipped steps. If this node is
        still at the last step of the epoch before, which it must make with the rates and data of that epoch, it begins
        later."""
        self._next.append((epoch, order, rates, batch))
        self._begin_next()

    def _begin_next(self) -> None:
        if not self._next or self.step < self._next[0][0]["first"]:
            return
        epoch, order, rates, batch = self._next.popleft()
        if batch:
            update_raw(self._channel, batch, self._channel.version + 1)
        board = self._board
        board.order[:] = np.frombuffer(order, np.int64)
        board.rates[:] = np.frombuffer(rates, np.float64).reshape(board.rates.shape)
        if epoch["number"] is None:
            self._strategy.tasks.set_step(epoch["skipped"], board.examples)
        else:
            self._strategy.tasks.set_epoch(epoch["number"], epoch["skipped"])
        self._strategy.begin(board.steps, first=epoch["first"])

    def wake(self) -> None:
        """Make advance() return soon; from any thread."""
        self._board.ring_server()

    def advance(self) -> None:
        """Let the workers work for a moment, and report what is done. Raises the error of workers that have failed."""
        self._advance()
        self.report()
        self._begin_next()
        if self._link is not None and not self._told_of_problem and self._link.problem is not None:
            peer, kind, _, text = self._link.problem
            self._told_of_problem = True
            self._post({"trouble": {"session": self._session, "peer": peer, "kind": kind, "text": text}})

    def _advance(self) -> None:
        pool, board, weights = self._pool, self._board, self._weights
        pool.advance(board, self._strategy.tasks, self._strategy.until, self._check)
        if board.need_slot:
            weights.make_room(board)
        if board.refused:
            raise weights.no_mapping(board)
        self._strategy.advance()
        pool.follow(board, self.step)

    def pause(self) -> None:
        """Stop at the end of a step that is as good as made, or at its start. No worker publishes after that."""
        board, strategy = self._board, self._strategy
        if self._link is None:
            until = min(strategy.made + 1, strategy.until)
            board.set_limit(until)
        else:
            self._link.end(0.0)
            until = self._first + self._link.counters["steps"]
        while strategy.made < until:
            self._advance()
        self._at_rest = True

    def rows(self, first: int) -> bytes:
        """Return the rows of the step log from this step to the last one that was made here."""
        last, steps = self.step, self._board.steps
        if first >= last or first < self._first:
            return b""
        log = self._board.log
        return b"".join(log[step % steps].tobytes() for step in range(first, last))

    def report(self, *, now: bool = False) -> None:
        """Send the rows of the steps that were made since the last report, if this node is the one that does."""
        made = self.step
        if self._index != 0 or made == self._sent:
            return
        at = time.monotonic()
        if not now and at - self._sent_at < _REPORT_S and made < self._strategy.until:
            return
        rows = self.rows(self._sent)
        self._post({"rows": self._sent, "session": self._session, "names": self.metric_names}, (rows,))
        self._sent, self._sent_at = made, at

    def status(self) -> Message:
        """Return where this node is, for the job's status: the step counts from the beginning of the training."""
        return {"step": self._plan.first_step + self.step, "session": self._session, "index": self._index}

    def traffic(self) -> dict[str, Any]:
        """Return the bytes sent to peers and received from them, and the seconds that were waited for them."""
        if self._link is None:
            return {}
        counters = self._link.counters
        return {
            "sent": int(sum(counters["sent_bytes"])),
            "received": int(sum(counters["received_bytes"])),
            "waited_s": counters["wait_ns"] / 1e9,
        }

    def close(self) -> None:
        """End the session. Workers that could still publish are ended."""
        if self._link is not None:
            self._link.end(0.0)
        self._stack.close()


def shard_counts(plan: Plan) -> Any:
    """Return the number of examples of each shard, in a full batch and in the last one of an epoch: (2, shards)."""
    shards = plan.settings.shards
    last = plan.examples - (plan.steps - 1) * plan.batch_size
    counts = np.zeros((2, shards), np.uint64)
    for row, size in enumerate((plan.batch_size, last)):
        for shard in range(shards):
            start, stop = sampler.shard_bounds(
                0, shard, shards=shards, examples=size, batch_size=size, min_examples=plan.min_examples
            )
            counts[row, shard] = stop - start
    return counts
