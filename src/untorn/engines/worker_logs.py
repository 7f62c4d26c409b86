"""Handle the log records of workers in the server, as logging is configured there.

::

    worker: a record ── root logger's handler ── one datagram ──> socket ──> server: the logger of that name

A worker does not have the handlers, formats and filters that the program has set up under
``if __name__ == "__main__":``. So it sends its records, and the server's loggers handle them whenever the server looks
after the workers. Levels go the other way, with each job, so that a worker does not send what the server would not log.

All workers inherit the same socket. A message arrives whole or not at all (SOCK_SEQPACKET), so a killed worker leaves
neither half a message nor a lock. A worker never waits long for a server that does not read: it counts the records that
find no room, and the next record carries the count. Messages are JSON; nothing is unpickled.

If a logger in a worker has handlers of its own, made when its module or the main program was imported, these handle its
records, as in any other process.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import select
import socket
from typing import Any

from untorn.descriptors import keep_socket

__all__ = ["LogReceiver", "levels_here", "send_logs_to", "set_levels"]

_log = logging.getLogger(__name__)
#: the largest message, and the room for messages in flight if the system grants it
_MAX_NBYTES = 60_000
_BUFFER_NBYTES = 4 << 20
_WAIT_MS = 200
#: where texts in a message that is too long are cut; JSON may need six bytes for a character
_MAX_CHARACTERS = 2000
#: messages read at once, so that a worker that logs without end does not hold up the server
_MAX_AT_ONCE = 10_000
#: the attributes of a LogRecord that are sent unchanged
_PLAIN = (
    "name", "levelno", "levelname", "pathname", "filename", "module", "lineno", "funcName", "created", "msecs",
    "relativeCreated", "thread", "threadName", "processName", "process", "stack_info", "exc_text",
)  # fmt: skip
_NOT_EXTRA = (*_PLAIN, "msg", "args", "exc_info", "message", "asctime", "taskName")


class LogReceiver:
    """The server's end of the sockets, which receives the log records."""

    def __init__(self) -> None:
        ours, theirs = (keep_socket(each) for each in socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET))
        for each in (ours, theirs):
            for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
                each.setsockopt(socket.SOL_SOCKET, option, _BUFFER_NBYTES)
        self._ours, self._theirs = ours, theirs

    @property
    def fd(self) -> int:
        """The descriptor of the workers' end, which they inherit."""
        return self._theirs.fileno()

    def handle(self) -> None:
        """Have this process's loggers handle the records that have arrived. Does not block."""
        for _ in range(_MAX_AT_ONCE):
            if self._ours.fileno() < 0:
                return  # a handler has closed the trainer, or has forked and this is the copy
            try:
                message = self._ours.recv(_MAX_NBYTES, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            try:
                document = json.loads(message)
                lost, record = document.pop("lost"), logging.makeLogRecord(document)
                logger = logging.getLogger(record.name)
                enabled = logger.isEnabledFor(record.levelno)
            except (ValueError, KeyError, TypeError, AttributeError):
                continue  # other code wrote to the descriptor by mistake
            if lost:
                _log.warning("%d log records of %s were lost: their buffer was full", lost, record.processName)
            if enabled:
                logger.handle(record)

    def close(self) -> None:
        """Handle the records that have arrived, and close both ends."""
        self.handle()
        self.forget()

    def forget(self) -> None:
        """Close both ends in this process."""
        self._ours.close()
        self._theirs.close()


def levels_here() -> dict[str, Any]:
    """Return the logging levels of this process, for set_levels() in a worker."""
    loggers = {
        name: logger.level
        for name, logger in list(logging.root.manager.loggerDict.items())
        if isinstance(logger, logging.Logger) and logger.level != logging.NOTSET
    }
    return {
        "root": logging.root.level,
        "loggers": loggers,
        "disable": logging.root.manager.disable,
        "warnings": getattr(logging, "_warnings_showwarning", None) is not None,
    }


def set_levels(levels: dict[str, Any]) -> None:
    """Give this worker the server's logging levels. Does nothing if it does not send its records there."""
    if not any(isinstance(handler, _Sender) for handler in logging.root.handlers):
        return  # the program has configured logging in workers itself
    logging.root.setLevel(levels["root"])
    logging.disable(levels["disable"])
    for name, level in levels["loggers"].items():
        logging.getLogger(name).setLevel(level)
    logging.captureWarnings(levels["warnings"])


def send_logs_to(fd: int) -> None:
    """Send this worker's log records to the server through this descriptor, which is taken over. A second call, in a
    forked copy of the process, replaces the descriptor."""
    os.set_inheritable(fd, False)
    server = socket.socket(fileno=fd)
    if _senders:
        _senders[0].send_to(server)
    else:
        _senders.append(_Sender(server))
        logging.root.addHandler(_senders[0])


class _Sender(logging.Handler):
    def __init__(self, server: socket.socket) -> None:
        super().__init__()
        self._server = server
        self._lost = 0

    def send_to(self, server: socket.socket) -> None:
        """Send the records there from now on."""
        self._server.close()
        self._server, self._lost = server, 0

    def emit(self, record: logging.LogRecord) -> None:
        """Send the record, or count it as lost."""
        if _handled_here(record.name):
            return
        try:
            message = self._message(record)
        except Exception:
            self.handleError(record)
            return
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # the server is gone; this worker ends soon
            self._lost = 0 if self._sent(message) else self._lost + 1

    def _sent(self, message: bytes) -> bool:
        for wait_ms in (0, _WAIT_MS):
            if wait_ms and self._lost:
                return False  # waiting did not help with the last one
            if wait_ms:
                poller = select.poll()
                poller.register(self._server, select.POLLOUT)
                poller.poll(wait_ms)
            try:
                self._server.send(message, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
            except BlockingIOError:
                continue
            return True
        return False

    def _message(self, record: logging.LogRecord) -> bytes:
        """Return the record as JSON, with its message and traceback as text. Cuts texts if it would be too long."""
        if record.exc_info and not record.exc_text:
            record.exc_text = logging.Formatter().formatException(record.exc_info)
        document: dict[str, Any] = {name: getattr(record, name, None) for name in _PLAIN}
        document |= {"msg": record.getMessage(), "args": None, "exc_info": None, "lost": self._lost}
        extra = {key: value for key, value in vars(record).items() if key not in _NOT_EXTRA}
        message = json.dumps(extra | document, default=repr).encode()
        if len(message) > _MAX_NBYTES:
            cut = {name: _cut(text) for name, text in document.items() if isinstance(text, str)}
            message = json.dumps(document | cut).encode()
        return message


def _cut(text: str) -> str:
    return text if len(text) <= _MAX_CHARACTERS else f"{text[:_MAX_CHARACTERS]} ... ({len(text)} characters)"


#: the handler of this process, if it is a worker
_senders: list[_Sender] = []


def _handled_here(name: str) -> bool:
    """Return whether a logger that receives this logger's records has a handler of its own."""
    logger: logging.Logger | None = logging.getLogger(name)
    while logger is not None:
        if any(not isinstance(handler, _Sender | logging.NullHandler) for handler in logger.handlers):
            return True
        logger = logger.parent if logger.propagate else None
    return False
