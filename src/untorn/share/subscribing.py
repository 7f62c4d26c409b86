"""Subscribe to a channel by its name or its path, or by an object from another process."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any, Never, overload

from untorn.errors import ChannelNotFoundError
from untorn.first_guesses import only_known_arguments, unknown_arguments, words
from untorn.share import notes, places
from untorn.share.attached import Attached, attached_to
from untorn.share.places import Address
from untorn.share.publisher import Publisher
from untorn.share.subscriber import Subscriber
from untorn.share.waiting import deadline_of
from untorn.typevars import T

__all__ = ["subscribe"]

#: the pauses between two looks for a channel
_PAUSES_S = (0.002, 0.02)

_GUESSES = words(
    ("timeout wait block max_wait", "write timeout_s=, in seconds"),
    ("channel_name key id label", "write name=, or the name alone: subscribe('policy')"),
    ("path dir folder dirname file filename", "write directory=, or the path alone: subscribe('directory/name')"),
    ("alive wait_for_publisher publisher", "write live=True"),
    ("pickle pickled use_pickle", "write allow_pickle=True, on both sides"),
    ("newer_than version", "a snapshot takes that: write subscribe(...).snapshot(newer_than=...)"),
)


@overload
def subscribe(
    channel: Publisher[T] | Subscriber[T], *, timeout_s: float = 0, live: bool = False, allow_pickle: bool = False
) -> Subscriber[T]: ...
@overload
def subscribe(
    channel: str | os.PathLike[str],
    *,
    directory: str | os.PathLike[str] | None = None,
    timeout_s: float = 0,
    live: bool = False,
    allow_pickle: bool = False,
) -> Subscriber[Any]: ...
@overload
def subscribe(
    *,
    name: str,
    directory: str | os.PathLike[str] | None = None,
    timeout_s: float = 0,
    live: bool = False,
    allow_pickle: bool = False,
) -> Subscriber[Any]: ...
@only_known_arguments
def subscribe(
    channel: str | os.PathLike[str] | Subscriber | Publisher | None = None,
    *more: Never,
    name: str | None = None,
    directory: str | os.PathLike[str] | None = None,
    timeout_s: float = 0,
    live: bool = False,
    allow_pickle: bool = False,
    **unknown: Never,
) -> Subscriber:
    """Attach to a channel for reading.

    A named channel stays when its publisher ends (docs/lifetimes.md): without ``live``, this returns at once with what
    was published last, be it yesterday.

    Args:
        channel: a name ("policy"), a path (a str with a slash, or a Path: directory/name), or a Publisher or
            Subscriber.
        name: the channel's name, instead of ``channel``, as publish() takes it.
        directory: the directory of the channel's files, as publish() takes it.
        timeout_s: how long to wait for the channel to appear, in seconds.
        live: wait also until the channel has a living publisher that has published a version.
        allow_pickle: unpickle what the publisher pickled, as in numpy.load(). A pickle can run arbitrary code, so use
            this only if you trust the publisher, which must have passed allow_pickle=True too.

    Raises:
        ChannelNotFoundError: there is no such channel (within timeout_s); with ``live``, or no living publisher.
        FormatError: the file of that name is not a channel.
        CapacityError: all its reader rows are taken.

    Example:
        >>> import untorn
        >>> with untorn.publish([1, 2], name="doc-example", keep=False) as publisher:
        ...     untorn.subscribe("doc-example", live=True).snapshot().value
        [1, 2]
    """
    if more or unknown:
        instead = "write timeout_s=, in seconds" if more and isinstance(more[0], int | float) else "see its parameters"
        raise unknown_arguments("subscribe", (channel, *more), unknown, guesses=_GUESSES, instead=instead)
    deadline = deadline_of(timeout_s)
    if (channel is None) == (name is None):
        found = "none" if channel is None else "two"
        raise TypeError(f"subscribe(): expected a name, a path, a Publisher or a Subscriber, found {found}")
    attach = _attacher(name if channel is None else channel, directory, allow_pickle)
    pause_s = _PAUSES_S[0]
    while True:
        try:
            subscriber = attach()
            if not live or _is_live(subscriber):
                return subscriber
            if time.monotonic() >= deadline:
                raise _no_publisher(subscriber, timeout_s)
            subscriber.close()
        except ChannelNotFoundError:
            if time.monotonic() >= deadline:
                raise
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, _PAUSES_S[1])


def _attacher(
    channel: str | os.PathLike[str] | Subscriber | Publisher | None,
    directory: str | os.PathLike[str] | None,
    allow_pickle: bool,
) -> Callable[[], Subscriber]:
    """Return a function that subscribes once. Raises TypeError or ValueError for what is no channel."""
    if isinstance(channel, Publisher | Subscriber):
        if directory is not None:
            raise TypeError(f"directory= goes with a name, not with a {type(channel).__name__}")
        if isinstance(channel, Publisher):
            publisher = channel
            return lambda: publisher.subscriber(allow_pickle=allow_pickle)
        address, attached = channel._address, channel._attached  # noqa: SLF001 (the new one is of the same class)
        return lambda: Subscriber(address, attached, allow_pickle=allow_pickle)
    if not isinstance(channel, str | os.PathLike):
        raise TypeError(
            f"channel: expected a name, a path, a Publisher or a Subscriber, found {type(channel).__name__}"
        )
    text = os.fspath(channel)
    if directory is not None:
        files = places.named(text, directory)
    elif "/" in text or not isinstance(channel, str):
        files = places.named(os.path.basename(text), os.path.dirname(text) or ".")
    else:
        files = places.named(text)
    address = Address(b"", ((files.control, files.data),), files.label)
    return lambda: Subscriber(address, _kept(attached_to(address)), allow_pickle=allow_pickle)


def _kept(attached: Attached) -> Attached:
    """Return the channel unchanged. Raises ChannelNotFoundError if it ended with a publisher that was killed."""
    attachment = attached.attachment
    if notes.read_note(attachment.control_fd).get(notes.KEEP) is False and not attachment.publisher_alive():
        raise ChannelNotFoundError(
            f"channel {attached.address.label!r} was published with keep=False, and its publisher is dead; "
            "subscribe(..., timeout_s=10) waits for the next one"
        )
    return attached


def _is_live(subscriber: Subscriber) -> bool:
    """Return whether its newest version is that of a living publisher."""
    if not subscriber.publisher_alive():
        return False
    attached = subscriber._attached  # noqa: SLF001 (of this layer)
    return not attached.address.has_name or notes.is_live(attached.attachment)


def _no_publisher(subscriber: Subscriber, timeout_s: float) -> ChannelNotFoundError:
    snapshot = subscriber.snapshot()
    ago_s = max(0.0, time.time() - snapshot.published_at)
    return ChannelNotFoundError(
        f"channel {subscriber.name!r} has no living publisher (within {timeout_s} s): "
        f"{subscriber._loss(subscriber._attached.attachment) or 'it has not published yet'}. "  # noqa: SLF001
        f"Version {snapshot.version}, published {ago_s:.0f} s ago, can be read without live=True"
    )
