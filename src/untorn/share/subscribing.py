"""Subscribe to a channel by its name or its path, or by an object from another process."""

from __future__ import annotations

import os
import time
from typing import Any, overload

from untorn.errors import ChannelNotFoundError
from untorn.share import storage
from untorn.share.attached import attached_to
from untorn.share.publisher import Publisher
from untorn.share.storage import Address
from untorn.share.subscriber import Subscriber
from untorn.share.waiting import deadline_of
from untorn.typevars import T

__all__ = ["subscribe"]


@overload
def subscribe(
    channel: Publisher[T] | Subscriber[T], *, timeout_s: float = 0, allow_pickle: bool = False
) -> Subscriber[T]: ...
@overload
def subscribe(
    channel: str | os.PathLike[str], *, timeout_s: float = 0, allow_pickle: bool = False
) -> Subscriber[Any]: ...
def subscribe(
    channel: str | os.PathLike[str] | Subscriber | Publisher,
    *,
    timeout_s: float = 0,
    allow_pickle: bool = False,
) -> Subscriber:
    """Attach to a channel for reading.

    Args:
        channel: a name ("policy"), a path (a str with a slash, or a Path: directory/name), or a Publisher or
            Subscriber.
        timeout_s: how long to wait for the channel to appear, in seconds.
        allow_pickle: unpickle what the publisher pickled, as in numpy.load(). A pickle can run arbitrary code, so use
            this only if you trust the publisher, which must have passed allow_pickle=True too.

    Raises:
        ChannelNotFoundError: there is no such channel (within timeout_s).
        FormatError: the file of that name is not a channel.
        CapacityError: all its reader rows are taken.

    Example:
        >>> import untorn
        >>> with untorn.publish([1, 2], name="doc-example") as publisher:
        ...     untorn.subscribe("doc-example").snapshot().value
        ...     publisher.unlink()
        [1, 2]
    """
    if isinstance(channel, Publisher):
        return channel.subscriber(allow_pickle=allow_pickle)
    if isinstance(channel, Subscriber):
        address, attached = channel._address, channel._attached  # noqa: SLF001 (the new one is of the same class)
        return Subscriber(address, attached, allow_pickle=allow_pickle)
    if not isinstance(channel, str | os.PathLike):
        raise TypeError(
            f"channel: expected a name, a path, a Publisher or a Subscriber, found {type(channel).__name__}"
        )
    text = os.fspath(channel)
    if "/" in text or not isinstance(channel, str):
        files = storage.named(os.path.basename(text), os.path.dirname(text) or ".")
    else:
        files = storage.named(text)
    address = Address(b"", ((files.control, files.data),), files.label)
    deadline = deadline_of(timeout_s)
    while True:
        try:
            return Subscriber(address, attached_to(address), allow_pickle=allow_pickle)
        except ChannelNotFoundError:
            if time.monotonic() >= deadline:
                raise
        time.sleep(0.01)
