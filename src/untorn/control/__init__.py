"""Watching and resizing a named job from another process while it trains.

::

    untorn top, join, leave ── ask(name, request) ──> abstract socket of (uid, name) ──┐
                 ^                                                                     v
                 └──────────────── answer ──────────── handlers.status(), .resize() <── Control.poll, between steps

addresses.py    the address of a job's socket, and the users behind sockets
protocol.py     requests and answers: one line of JSON each way
server.py       Control: answers requests in the process that trains
client.py       ask, running_jobs, is_running

The socket is an abstract one, which has no file: the kernel removes it with the process, however that ends. The kernel
also tells which user connects, and only the job's user and root are answered. A network namespace has its own abstract
sockets, so a job in a container can be found only from inside the container.

A client never holds up the training loop: one that is slow, silent or wrong costs a few microseconds per poll and is
dropped after a second, and a poll accepts or refuses at most 16 clients, however many connect. A request is not carried
out if its client has given up.

Any user may listen at any abstract address. So a client checks the user at the other end, and ignores sockets of other
users.
"""

from __future__ import annotations

from untorn.control.client import ask, is_running, running_jobs
from untorn.control.protocol import Handlers
from untorn.control.server import Control

__all__ = ["Control", "Handlers", "ask", "is_running", "running_jobs"]
