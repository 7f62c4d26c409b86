"""The lines that a client and a job exchange: JSON objects, and errors that keep their type.

======================================  ============================================
request                                 answer
======================================  ============================================
``{"do": "status"}``                    the return value of ``handlers.status()``
``{"do": "resize", "workers": 4}``      ``{"workers": 4, "was": 2}``
``{"do": "resize", "by": -1}``          ``{"workers": 1, "was": 2}``
``{"do": "resize", "nodes": 3}``        ``{"nodes": 3, "was": 2}``
``{"do": "resize", "nodes_by": 1}``     ``{"nodes": 3, "was": 2}``
anything else                           ``{"error": "...", "type": "ValueError"}``
======================================  ============================================

On nodes the number of workers is that of each node, and the answer also has the number of ``nodes``.
"""

from __future__ import annotations

import builtins
import json
import logging
import math
from typing import Any, Protocol

from untorn import errors, trees
from untorn.errors import BrokenChannelError, FormatError, UntornError

__all__ = ["ANSWER_NBYTES", "REQUEST_NBYTES", "Handlers", "answer_to", "error_line", "read_answer", "request_line"]

_log = logging.getLogger(__name__)

#: the largest request and the largest answer
REQUEST_NBYTES = 4096
ANSWER_NBYTES = 1 << 24
#: errors that keep their type on the way to the client; all others become an UntornError
_SAME_TYPE = {
    name: getattr(source, name)
    for source, names in (
        (builtins, ("ValueError", "TypeError", "NotImplementedError", "PermissionError", "MemoryError")),
        (errors, ("BusyError", "CapacityError", "ClosedError")),
    )
    for name in names
}


class Handlers(Protocol):
    """The part of a job that requests can read and change. ``Control.poll`` calls it, in its own thread."""

    @property
    def workers(self) -> int:
        """The number of workers that the job has, or is about to have; on nodes, that of each node."""
        ...

    @property
    def nodes(self) -> int:
        """The number of nodes that the job has, or is about to have; 0 if it runs on this machine alone."""
        ...

    def status(self) -> dict[str, Any]:
        """Return the status as plain JSON values."""
        ...

    def resize(self, workers: int) -> None:
        """Set the number of workers, at least 1. An error that this raises goes to the client; training continues."""
        ...

    def resize_nodes(self, nodes: int) -> None:
        """Set the number of nodes, at least 1. Errors as with resize()."""
        ...


# -- the server's lines


def answer_to(line: bytes, name: str, handlers: Handlers) -> bytes:
    """Carry out a request to the job of this name, and return the line of the answer."""
    try:
        match _request(line):
            case {"do": "status", **more} if not more:
                return _line(handlers.status())
            case {"do": "resize", "workers": int(workers), **more} if not more and not isinstance(workers, bool):
                return _resized(name, handlers, workers)
            case {"do": "resize", "by": int(by), **more} if not more and not isinstance(by, bool):
                return _resized(name, handlers, handlers.workers + by, by)
            case {"do": "resize", "nodes": int(nodes), **more} if not more and not isinstance(nodes, bool):
                return _resized_nodes(name, handlers, nodes)
            case {"do": "resize", "nodes_by": int(by), **more} if not more and not isinstance(by, bool):
                return _resized_nodes(name, handlers, handlers.nodes + by, by)
        raise ValueError(
            'unknown request: expected {"do": "status"}, or {"do": "resize"} with one of "workers", "by", "nodes" and '
            f'"nodes_by" and an int, found {line[:80]!r}'
        )
    except Exception as error:
        if type(error).__name__ not in _SAME_TYPE and not isinstance(error, UntornError):
            _log.warning("job %r: a request failed: %r", name, line[:80], exc_info=True)
        return error_line(error)


def _request(line: bytes) -> Any:
    if len(line) > REQUEST_NBYTES:
        raise ValueError(f"a request is a line of at most {REQUEST_NBYTES} bytes; this one is longer")
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        raise ValueError(f'a request is a line of JSON such as {{"do": "status"}}; found {line[:80]!r}') from None


def _resized(name: str, handlers: Handlers, workers: int, by: int | None = None) -> bytes:
    was, nodes = handlers.workers, handlers.nodes
    _check_least(name, f"{was} worker{'s' * (was != 1)}{' on each node' * bool(nodes)}", workers, by)
    if workers != was:
        handlers.resize(workers)
    return _line({"workers": workers, "was": was} | ({"nodes": nodes} if nodes else {}))


def _resized_nodes(name: str, handlers: Handlers, nodes: int, by: int | None = None) -> bytes:
    was = handlers.nodes
    if not was:
        raise ValueError(
            f"job {name!r} runs on this machine alone and has no nodes; start it with Trainer(engine='ray') or `untorn "
            "train --engine ray`"
        )
    _check_least(name, f"{was} node{'s' * (was != 1)}", nodes, by)
    if nodes != was:
        handlers.resize_nodes(nodes)
    return _line({"nodes": nodes, "was": was})


def _check_least(name: str, present: str, wanted: int, by: int | None) -> None:
    if wanted < 1:
        asked = f"found a request for {wanted}" if by is None else f"found a request to remove {-by}"
        raise ValueError(f"job {name!r} has {present} and keeps at least 1; {asked}")


def error_line(error: Exception) -> bytes:
    """Return the line that carries an error to the client."""
    return _line({"error": str(error) or type(error).__name__, "type": type(error).__name__})


def _line(answer: dict[str, Any]) -> bytes:
    try:
        text = json.dumps(answer, allow_nan=False)
    except ValueError:
        text = json.dumps(trees.map(_finite, answer), allow_nan=False)
    return text.encode() + b"\n"


def _finite(value: Any) -> Any:
    """Replace NaN and infinity, which JSON does not have, by None."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


# -- the client's lines


def request_line(request: dict[str, Any]) -> bytes:
    """Return the line of a request."""
    return json.dumps(request).encode() + b"\n"


def read_answer(received: bytes, name: str) -> dict[str, Any]:
    """Return the answer of the job of this name, or raise the error that it carries. Raises FormatError if no job of
    untorn answers so, BrokenChannelError if the line is not complete."""
    line, newline, _ = received.partition(b"\n")
    if not newline and len(received) > ANSWER_NBYTES:
        raise FormatError(f"job {name!r} answers with more than {ANSWER_NBYTES} bytes, which no job of untorn does")
    if not newline:
        raise BrokenChannelError(f"job {name!r} ended before it had answered; `untorn top` lists running jobs")
    try:
        answer: Any = json.loads(line)
    except (ValueError, RecursionError):
        answer = None
    if not isinstance(answer, dict):
        raise FormatError(
            f"job {name!r} answers {line[:80]!r}, which no job of untorn does: another program listens under its name"
        )
    if "error" in answer:
        raise _SAME_TYPE.get(str(answer.get("type")), UntornError)(str(answer["error"]))
    return answer
