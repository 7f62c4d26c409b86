"""``untorn ls``: list this user's channels with their publishers and readers, and those that are unused."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import click
from rich.text import Text

from untorn.cli.errors import reported
from untorn.cli.listing import UNUSED, Found, find_channel, list_channels
from untorn.cli.queues import FoundQueue, find_queue, list_queues, means_queue, queue_table
from untorn.cli.tables import age, count, grid, json_line, plain, say, size
from untorn.share.lowlevel import ChannelState, default_path

__all__ = ["found_json", "ls", "publisher_of"]

_COLUMNS = ("CHANNEL", "VERSION", "SIZE", "MEMORY", "READERS", "PUBLISHER", "AGE", "NOTE")
_NUMBERS = ("VERSION", "SIZE", "MEMORY", "READERS", "AGE")
_OPTIONAL = ("MEMORY", "AGE", "SIZE", "VERSION")


@click.command(short_help="List channels and queues: versions, sizes, readers, items.")
@click.argument("where", required=False, metavar="[DIRECTORY | CHANNEL]")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document, in bytes and seconds.")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def ls(*, where: str | None, as_json: bool, debug: bool) -> None:
    """List this user's named channels and queues, or those in DIRECTORY, or CHANNEL, given by its name or its path.

    SIZE and AGE describe the newest version; MEMORY is the memory used by all slots. Listing takes no reader row and
    disturbs no process. Anonymous channels have no name and are not listed.
    """
    with reported(debug=debug):
        one = where is not None and not os.path.isdir(where)
        directory = None if one else where
        named = where if one and where is not None and means_queue(where) else None
        queues = [find_queue(named)] if named is not None else [] if one else list_queues(directory)
        found = (
            [] if one and queues else [find_channel(where)] if one and where is not None else list_channels(directory)
        )
        place = (found or queues)[0].files.folder if one else directory if directory is not None else default_path()
        if as_json:
            document = {
                "directory": place,
                "channels": [found_json(entry) for entry in found],
                "queues": [queue.as_json() for queue in queues],
            }
            say(json_line(document, indent=2))
            return
        if queues:
            say(queue_table(queues), *([""] if found else []))
        if not found and not queues:
            say(f"no channels in {plain(place)}")
        if found:
            _print_channels(found)
        _print_unused(found, queues, where if one else None, directory)


def _print_channels(found: Sequence[Found]) -> None:
    say(grid(_COLUMNS, map(_row, found), right=_NUMBERS, optional=_OPTIONAL))
    for entry in found:
        if entry.status == "unreadable":
            say(Text(f"{plain(entry.name)}: {plain(entry.problem)}"))


def _print_unused(found: Sequence[Found], queues: Sequence[FoundQueue], one: str | None, directory: str | None) -> None:
    """Say how much could be removed, and how."""
    unused = [entry for entry in found if entry.status in UNUSED]
    idle = [queue for queue in queues if queue.status == "unused"]
    if not unused and not idle:
        return
    parts = [count(len(unused), "unused channel")] if unused else []
    parts += [count(len(idle), "unused queue")] if idle else []
    freed = size(sum(entry.file_nbytes for entry in unused) + sum(queue.file_nbytes for queue in idle))
    command = (
        f"untorn rm {plain(one)}"
        if one is not None
        else "untorn gc"
        if directory is None
        else f"untorn gc {plain(directory)} --yes"
    )
    say("", Text(f"{' and '.join(parts)}, {freed}; to remove: {command}"))


def _row(entry: Found) -> tuple[str, ...]:
    name, memory = plain(entry.name), size(entry.file_nbytes)
    state = entry.state
    if state is None:
        return name, "-", "-", memory, "-", "-", "-", entry.status
    note = "" if state.used else "unused"
    if state.dead_rows:
        note = ", ".join(filter(None, (note, count(state.dead_rows, "dead reader"))))
    return (
        name,
        str(state.version),
        size(state.nbytes),
        memory,
        str(len(state.readers)),
        publisher_of(state),
        age(state.age_s),
        note,
    )


def publisher_of(state: ChannelState) -> str:
    """Return the living publisher's pid as text, or "closed", or "dead"."""
    return str(state.publisher_pid) if state.publisher == "alive" else state.publisher


def found_json(entry: Found) -> dict[str, Any]:
    """Return a channel as a JSON object; everything about its state is null if it could not be read."""
    state = entry.state
    return {
        "name": entry.name,
        "path": entry.files.control.removesuffix(".control"),
        "status": entry.status,
        "problem": entry.problem or None,
        "file_nbytes": entry.file_nbytes,
        "id": state and state.id,
        "version": state and state.version,
        "nbytes": state and state.nbytes,
        "reserved_nbytes": state and state.reserved_nbytes,
        "readers": state and len(state.readers),
        "publisher": state and state.publisher,
        "publisher_pid": state and state.publisher_pid,
        "created_at": state and state.created_at,
        "published_at": state and state.published_at,
        "age_s": state and state.age_s,
    }
