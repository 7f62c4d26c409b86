"""``untorn gc``: remove the channels that no living process uses, and halves of channels.

Looking at a channel is not enough to remove it. gc becomes its publisher first: the kernel gives that lock to one
process at a time, so no publisher can come in between, and gc counts the readers again while it holds the lock. A
reader that attaches in that moment keeps the version it attached to, as after Publisher.unlink(). Only files that are
recognised as a channel's are touched.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from typing import Any

import click

from untorn.cli.errors import reported
from untorn.cli.listing import Found, list_channels
from untorn.cli.queues import FoundQueue, collect_queues, means_queue
from untorn.cli.tables import count, grid, json_line, plain, say, size
from untorn.errors import BusyError, CapacityError, ChannelNotFoundError, FormatError
from untorn.share.lowlevel import (
    DATA_HEADER_NBYTES,
    ChannelState,
    Files,
    claim_name,
    default_path,
    files_of,
    is_data_file,
    open_file,
    take_over,
)

__all__ = ["Outcome", "collect", "gc", "remove_half"]


@dataclass(frozen=True)
class Outcome:
    """What happened to one channel, or queue: it was removed, or kept for a reason."""

    found: Found | FoundQueue
    removed: bool
    reason: str


@click.command(short_help="Remove channels and queues that no living process uses.")
@click.argument("directory", required=False)
@click.option("--dry-run", is_flag=True, help="Remove nothing; show what would be removed.")
@click.option("--yes", is_flag=True, help="Required with DIRECTORY: confirm the removal.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def gc(*, directory: str | None, dry_run: bool, yes: bool, as_json: bool, debug: bool) -> None:
    """Remove the channels that no living process publishes or reads, and the queues that none has open: this user's, or
    those in DIRECTORY.

    The kernel tells which processes are alive. Other files are never touched. Channels in a DIRECTORY are often meant
    to outlive their processes, so removing them requires --yes.
    """
    if directory is not None and not os.path.isdir(directory):
        raise click.UsageError(f"there is no directory {directory!r}; {_advice(directory)}")
    if directory is not None and not (dry_run or yes):
        raise click.UsageError(
            f"{directory!r} is taken for a directory, and channels in it may be meant to outlive their processes: use "
            "--dry-run to see what would be removed, then --yes to remove it"
        )
    with reported(debug=debug):
        outcomes = collect(directory, dry_run=dry_run)
        if as_json:
            say(json_line(_json(directory or default_path(), outcomes, dry_run=dry_run), indent=2))
        else:
            _print(directory or default_path(), outcomes, dry_run=dry_run)


def _advice(argument: str) -> str:
    """Return what to write instead of a name that is no directory."""
    kind = ""
    with contextlib.suppress(ChannelNotFoundError, ValueError, OSError):
        kind = "queue" if means_queue(argument) else "channel" if files_of(argument).exists() else ""
    if kind:
        return f"{argument!r} is a {kind}: `untorn rm {argument}` removes one {kind}, `untorn gc` all unused ones"
    return "gc takes a directory of channels; without one it removes this user's unused channels"


def collect(directory: str | os.PathLike[str] | None = None, *, dry_run: bool = False) -> list[Outcome]:
    """Look at every channel and queue of the directory, and remove those that no living process uses."""
    found = list_channels(directory)
    # last those whose removal itself takes a little memory
    order = sorted(found, key=lambda entry: entry.status == "data without control")
    outcomes = [_collect_one(entry, dry_run=dry_run) for entry in order]
    outcomes += [Outcome(*each) for each in collect_queues(directory, dry_run=dry_run)]
    return sorted(outcomes, key=lambda outcome: outcome.found.name)


def _collect_one(found: Found, *, dry_run: bool) -> Outcome:
    kept = ""
    if found.status == "used":
        kept = _in_use(found.state)
    elif found.status == "unreadable":
        kept = found.problem
    elif found.status == "temporary":
        kept = "a process may be creating a channel"
    try:
        if found.status == "data without control" and not _is_data(found.files):
            kept = "not recognised as a channel's data"
        if kept or dry_run:
            return Outcome(found, False, kept)
        kept = _remove(found)
    except (BusyError, CapacityError, FormatError, OSError) as error:
        kept = str(error)
    return Outcome(found, not kept, kept)


def _remove(found: Found) -> str:
    """Remove it. Returns an empty string, or the reason why it was kept."""
    if found.status == "stale temporary":
        found.files.unlink()  # no process opens one by name, so if none has it open, none ever will
        return ""
    if found.status == "data without control":
        return remove_half(found.files)
    return _remove_channel(found.files, was_closed=found.state is not None and found.state.publisher == "closed")


def _in_use(state: ChannelState | None) -> str:
    assert state is not None
    parts = [f"publisher pid {state.publisher_pid}"] if state.publisher == "alive" else []
    if state.readers:
        parts.append("reader pid " + ", ".join(str(reader.pid) for reader in state.readers))
    return "in use by " + " and ".join(parts)


def _remove_channel(files: Files, *, was_closed: bool) -> str:
    """Remove a channel as its publisher. Returns an empty string, or the reason why it was kept."""
    attachment = take_over(files)
    if attachment is None:  # it is gone by now, or it was a half, which take_over removes
        return "" if not files.exists() else "created again just now"
    pids = ", ".join(str(pid) for _, pid, _, _ in attachment.rows())
    if not pids:
        files.unlink()
    if not pids or was_closed:
        attachment.retire()  # otherwise only the lock is released, and the publisher counts as dead, as before
    return f"in use by reader pid {pids}" if pids else ""


def remove_half(files: Files) -> str:
    """Remove a data file that has no control file. Returns an empty string, or the reason why it was kept.

    Publishers compete for the control file's name, and the process that has it and its lock may remove the data. So
    this first takes the name, with a control file of its own."""
    made = claim_name(files)
    if made is None:
        return "created again just now"
    files.unlink()
    made.retire()
    return ""


def _is_data(files: Files) -> bool:
    """Return whether this data file belongs to a channel. In the user's own channel directory every one does; elsewhere
    it must have the header of one. Raises OSError if it cannot be read."""
    try:
        fd = open_file(files.data, files.label)
    except FormatError:
        return False
    try:
        return os.path.dirname(files.data) == default_path() or is_data_file(os.pread(fd, DATA_HEADER_NBYTES, 0))
    finally:
        os.close(fd)


# -- output


def _would_go(outcome: Outcome, *, dry_run: bool) -> bool:
    return not outcome.reason if dry_run else outcome.removed


def _print(where: str, outcomes: list[Outcome], *, dry_run: bool) -> None:
    rows = [
        (
            ("would remove" if dry_run else "removed") if _would_go(outcome, dry_run=dry_run) else "kept",
            plain(outcome.found.name),
            size(outcome.found.file_nbytes),
            plain(outcome.reason or outcome.found.status),
        )
        for outcome in outcomes
    ]
    if rows:
        say(grid(("", "CHANNEL", "MEMORY", "WHY"), rows, right=("MEMORY",)), "")
    gone = [outcome.found.file_nbytes for outcome in outcomes if _would_go(outcome, dry_run=dry_run)]
    if not gone:
        say(f"nothing to remove in {plain(where)}")
        return
    verb = "would remove" if dry_run else "removed"
    say(f"{verb} {count(len(gone), 'channel')}, {size(sum(gone))}")


def _json(where: str, outcomes: list[Outcome], *, dry_run: bool) -> dict[str, Any]:
    gone = [outcome.found for outcome in outcomes if _would_go(outcome, dry_run=dry_run)]
    kept = [outcome for outcome in outcomes if not _would_go(outcome, dry_run=dry_run)]
    return {
        "directory": where,
        "dry_run": dry_run,
        "removed": [{"name": f.name, "status": f.status, "file_nbytes": f.file_nbytes} for f in gone],
        "kept": [{"name": o.found.name, "status": o.found.status, "reason": o.reason} for o in kept],
        "freed_nbytes": sum(f.file_nbytes for f in gone),
    }
