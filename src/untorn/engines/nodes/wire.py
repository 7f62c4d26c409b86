"""Wires: authenticated connections that carry messages between the driver and its nodes; and the hub that runs them.

::

    thread of this process ── post(message, blobs) ──> Hub's thread ── socket ──> Hub's thread ──> on_message

A message is a dict, with bytes of any size beside it (blobs): weights, data. Both ends have proved that they know the
secret (handshake.py) before the first message, so messages are pickles. A hub runs one event loop in a thread of its
own: no call of post() waits for another machine, and a wire whose other end says nothing for too long ends, whatever
the network does.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import pickle
import socket
import struct
import threading
import time
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Future
from typing import Any, TypeAlias

from untorn.engines.nodes.listening import Listener

__all__ = ["Blob", "Hub", "Message", "Wire"]

_log = logging.getLogger(__name__)

Message: TypeAlias = dict[str, Any]
Blob: TypeAlias = bytes | bytearray | memoryview

#: magic, number of blobs, bytes of the pickle; the sizes of the blobs follow
_HEAD = struct.Struct("!4sIQ")
_SIZE = struct.Struct("!Q")
_MAGIC = b"uwr1"
_MAX_MESSAGE_NBYTES = 1 << 32
_MAX_BLOBS = 1 << 16
_CHUNK_NBYTES = 1 << 20
#: how often each end says that it is alive
_ALIVE_S = 0.5
_TICK_S = 0.25
#: a hub that was itself held up for so long blames no other for its silence
_HELD_UP_S = 1.0
#: how long a task may take to end before it is cancelled once more
_END_S = 1.0


class Wire:
    """One connection. Hub.connect() and Hub.adopt() make it; its callbacks run in the hub's thread.

    Attributes:
        hello: what the end that connected has said of itself.
        silence_s: the seconds without a byte after which the wire ends; may be set at any time.
    """

    def __init__(self, hub: Hub, sock: socket.socket, hello: Message, silence_s: float) -> None:
        self.hello = hello
        self.silence_s = silence_s
        self._hub = hub
        self._sock = sock
        self._writer: asyncio.StreamWriter | None = None
        #: what was posted before the event loop had the socket
        self._early: list[tuple[bytes, Sequence[Blob]]] = []
        self._heard = time.monotonic()
        self._ended = False
        self._on_end: Callable[[str], None] = lambda _: None

    def post(self, message: Message, blobs: Sequence[Blob] = ()) -> None:
        """Send a message, from any thread; returns at once. Does nothing once the wire has ended."""
        content = pickle.dumps(message, protocol=5)
        self._hub.call(self._write, content, blobs)

    def _write(self, content: bytes, blobs: Sequence[Blob]) -> None:
        if self._ended:
            return
        if self._writer is None:
            self._early.append((content, blobs))
            return
        self._writer.write(_HEAD.pack(_MAGIC, len(blobs), len(content)))
        for blob in blobs:
            self._writer.write(_SIZE.pack(memoryview(blob).nbytes))
        self._writer.write(content)
        for blob in blobs:
            self._writer.write(blob)

    async def run(self, on_message: Callable[[Message, list[bytearray]], None], on_end: Callable[[str], None]) -> None:
        """Receive messages until the wire ends, and then call ``on_end`` with the reason. In the hub's thread."""
        self._on_end = on_end
        try:
            reader, self._writer = await asyncio.open_connection(sock=self._sock)
        except OSError as error:
            self._end(str(error))
            return
        self._heard = time.monotonic()
        self._hub.watch(self)
        early, self._early = self._early, []
        for content, blobs in early:
            self._write(content, blobs)
        try:
            while not self._ended:
                message, blobs = await self._receive(reader)
                if message:  # not just a sign of life
                    on_message(message, blobs)
        except asyncio.IncompleteReadError:
            self._end("it closed the connection")
        except (OSError, ValueError) as error:
            self._end(str(error))
        except Exception as error:  # a message that is no pickle may raise anything
            _log.error("a message was not understood", exc_info=True)
            self._end(f"its message was not understood: {type(error).__name__}: {error}")
        finally:
            self._end("it was closed here")
            with contextlib.suppress(OSError):  # else asyncio may report why the connection was lost, and keep all this
                await self._writer.wait_closed()

    async def _receive(self, reader: asyncio.StreamReader) -> tuple[Message, list[bytearray]]:
        magic, count, nbytes = _HEAD.unpack(await self._exactly(reader, _HEAD.size))
        if magic != _MAGIC or nbytes > _MAX_MESSAGE_NBYTES or count > _MAX_BLOBS:
            raise ValueError(f"it sent {magic!r}, which begins no message of untorn")
        sizes = [_SIZE.unpack(await self._exactly(reader, _SIZE.size))[0] for _ in range(count)]
        message: Message = pickle.loads(await self._exactly(reader, nbytes))
        return message, [await self._exactly(reader, size) for size in sizes]

    async def _exactly(self, reader: asyncio.StreamReader, nbytes: int) -> bytearray:
        content = bytearray(nbytes)
        view, at = memoryview(content), 0
        while at < nbytes:
            piece = await reader.read(min(nbytes - at, _CHUNK_NBYTES))
            if not piece:
                raise asyncio.IncompleteReadError(b"", nbytes - at)
            view[at : at + len(piece)] = piece
            at += len(piece)
            self._heard = time.monotonic()
        return content

    def tick(self, now: float, held_up_s: float) -> None:
        """End the wire if its other end was silent for too long. In the hub's thread."""
        self._heard += held_up_s
        if now - self._heard > self.silence_s:
            self._end(f"nothing was heard of it for {self.silence_s:g} s")

    def sign_of_life(self) -> None:
        """Tell the other end that this one is alive. In the hub's thread."""
        self._write(pickle.dumps({}), ())

    def close(self, reason: str = "it was closed here") -> None:
        """End the wire, from any thread."""
        self._hub.call(self._end, reason)

    def _end(self, reason: str) -> None:
        if self._ended:
            return
        self._ended = True
        self._hub.unwatch(self)
        if self._writer is not None:
            self._writer.transport.abort()
        else:
            self._sock.close()
        self._on_end(reason)


class Hub:
    """A thread with an event loop, a listening socket, and the wires of this process.

    Args:
        secret: what every connection is authenticated with.
        host: the address to listen at.
        on_connection: called in the hub's thread with the hello of each new authenticated connection and its socket,
            which it owns from then on.

    Attributes:
        address: the host and port that it listens at.
    """

    def __init__(
        self, secret: bytes, *, host: str, on_connection: Callable[[Message, socket.socket], None], name: str
    ) -> None:
        self.secret = secret
        self._on_connection = on_connection
        self._wires: set[Wire] = set()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._closed = False
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()
        self._listener = Listener(host, secret, self._greet, what=name)
        self.address = self._listener.address

    # -- for any thread

    def call(self, function: Callable[..., object], *arguments: Any) -> bool:
        """Call a function in the hub's thread, soon. Returns False, and does nothing, after close()."""
        try:
            self._loop.call_soon_threadsafe(function, *arguments)
        except RuntimeError:  # the loop is closed
            return False
        return True

    def run(self, coroutine: Coroutine[Any, Any, Any]) -> Future[Any]:
        """Run a coroutine in the hub's thread."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    def adopt(
        self,
        sock: socket.socket,
        hello: Message,
        *,
        on_message: Callable[[Wire, Message, list[bytearray]], None],
        on_end: Callable[[Wire, str], None],
        silence_s: float,
    ) -> Wire:
        """Return the wire of an authenticated socket, which it owns from now on. May be called in any thread."""
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        wire = Wire(self, sock, hello, silence_s)
        receive = wire.run(lambda message, blobs: on_message(wire, message, blobs), lambda reason: on_end(wire, reason))
        self.call(self.spawn, receive)
        return wire

    def close(self) -> None:
        """End all wires and the thread."""
        if self._loop.is_closed():
            return
        self._listener.close()
        self.call(self._stop)
        if threading.current_thread() is not self._thread:
            self._thread.join()

    # -- in the hub's thread

    def spawn(self, coroutine: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Run a coroutine as a task that lives until it is done."""
        task = self._loop.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def watch(self, wire: Wire) -> None:
        """End this wire when its other end falls silent."""
        self._wires.add(wire)

    def unwatch(self, wire: Wire) -> None:
        """Forget a wire that has ended."""
        self._wires.discard(wire)

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            _log.error("a task of the node's connections failed", exc_info=task.exception())

    def _stop(self) -> None:
        self._closed = True
        for wire in list(self._wires):
            wire.close()
        self._loop.call_soon(self._loop.stop)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self.spawn(self._tick())
        try:
            self._loop.run_forever()
        finally:
            while self._tasks:  # a task may be at a place where it misses that it is cancelled
                for task in self._tasks:
                    task.cancel()
                self._loop.run_until_complete(asyncio.wait(self._tasks, timeout=_END_S))
            self._loop.run_until_complete(asyncio.sleep(0))  # calls that came at the last moment
            self._loop.run_until_complete(self._loop.shutdown_default_executor())
            self._loop.close()

    def _greet(self, sock: socket.socket, content: bytes) -> None:
        """Take a new connection, which has proved the secret. In a thread of the listener."""
        hello = json.loads(content)
        if not isinstance(hello, dict):
            raise ValueError(f"the hello of a connection is no dict: {hello!r}")
        if not self.call(self._take, hello, sock):
            sock.close()

    def _take(self, hello: Message, sock: socket.socket) -> None:
        if self._closed:
            sock.close()
        else:
            self._on_connection(hello, sock)

    async def _tick(self) -> None:
        last = said = time.monotonic()
        while True:
            await asyncio.sleep(_TICK_S)
            now = time.monotonic()
            held_up_s = now - last if now - last > _HELD_UP_S else 0.0
            last = now
            for wire in list(self._wires):
                wire.tick(now, held_up_s)
                if now - said >= _ALIVE_S:
                    wire.sign_of_life()
            if now - said >= _ALIVE_S:
                said = now
