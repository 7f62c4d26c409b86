"""``untorn rm``: remove channels and queues by name, as Publisher.unlink() and Queue.unlink() do.

Like gc, it becomes the publisher first, so that no living publisher loses its channel. Readers that are attached keep
what they have. A queue is removed only if no living process has it open.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import click

from untorn.cli.errors import reported
from untorn.cli.gc import remove_half
from untorn.cli.listing import blocks
from untorn.cli.queues import means_queue, remove_named_queue
from untorn.cli.tables import count, json_line, plain, say, size
from untorn.errors import BusyError, UntornError
from untorn.share.lowlevel import ChannelView, files_of, is_there, take_over

__all__ = ["Removed", "remove", "rm"]


@dataclass(frozen=True)
class Removed:
    """A channel or queue that was removed: the memory or disk space of its files, the processes that still read a
    channel, and the items of a queue."""

    label: str
    file_nbytes: int
    readers: tuple[int, ...] = ()
    items: int = 0


@click.command(short_help="Remove channels and queues by name.")
@click.argument("channels", metavar="CHANNEL...", nargs=-1, required=True)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def rm(*, channels: tuple[str, ...], as_json: bool, debug: bool) -> None:
    """Remove each CHANNEL or queue, given by its name or by its path (anything with a slash), and the values in it.

    A channel whose publisher lives is not removed, nor is a queue that a living process has open. Processes that read a
    channel keep it until they close it. NAME.queue is the queue where a channel has the same name.
    """
    failed: list[tuple[str, Exception]] = []
    removed: list[Removed] = []
    with reported(debug=debug):
        for channel in channels:
            try:
                removed.append(remove(channel))
            except (UntornError, OSError, ValueError) as error:
                if debug:
                    raise
                failed.append((channel, error))
        if as_json:
            say(json_line(_json(removed, failed), indent=2))
        else:
            for each in removed:
                kept = f"; still read by pid {', '.join(map(str, each.readers))}" if each.readers else ""
                items = f", with {count(each.items, 'item')}" if each.items else ""
                say(f"removed {plain(each.label)}, {size(each.file_nbytes)}{items}{kept}")
    for _, problem in failed:
        click.echo(f"error: {problem}", err=True)
    if failed:
        raise SystemExit(1)


def remove(channel: str) -> Removed:
    """Remove one channel or queue.

    Raises:
        ChannelNotFoundError: there is none.
        BusyError: its publisher lives, or a process has the queue open.
        FormatError: the file of that name is not a channel, or not a queue.
    """
    if means_queue(channel):
        found, items = remove_named_queue(channel)
        return Removed(found.name, found.file_nbytes, items=items)
    files = files_of(channel)
    nbytes = blocks(files.control) + blocks(files.data)
    if not files.exists() and is_there(files.data):
        problem = remove_half(files)
        if problem:
            raise BusyError(f"channel {files.label!r}: {problem}")
        return Removed(files.label, nbytes)
    if not files.exists():
        ChannelView.open(files).close()  # raises the error that says where it was looked for
    try:
        attachment = take_over(files)
    except BusyError:
        raise BusyError(f"channel {files.label!r} is not removed: {_publisher_of(channel)}") from None
    if attachment is None:  # a half, which is removed by now
        return Removed(files.label, nbytes)
    readers = tuple(pid for _, pid, _, _ in attachment.rows() if pid != os.getpid())
    files.unlink()
    attachment.retire()
    return Removed(files.label, nbytes, readers)


def _publisher_of(channel: str) -> str:
    with ChannelView.open(files_of(channel)) as view:
        pid = view.state().publisher_pid
    return f"its publisher lives (pid {pid}); end that process, or call Publisher.unlink() there"


def _json(removed: list[Removed], failed: list[tuple[str, Exception]]) -> dict[str, object]:
    return {
        "removed": [
            {"name": r.label, "file_nbytes": r.file_nbytes, "readers": r.readers, "items": r.items} for r in removed
        ],
        "problems": {channel: str(error) for channel, error in failed},
    }
