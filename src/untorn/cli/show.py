"""``untorn show CHANNEL``: show a channel's structure, slots and readers, and values if asked for."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import click
from rich.text import Text

from untorn.cli.errors import reported
from untorn.cli.ls import publisher_of
from untorn.cli.outline import Node, outline, walk
from untorn.cli.queues import means_queue, queue_document, show_queue
from untorn.cli.tables import age, facts, grid, json_line, plain, say, size
from untorn.cli.values import values_at
from untorn.errors import FormatError
from untorn.share.lowlevel import ChannelState, ChannelView, files_of

__all__ = ["show"]

#: of a plain container that each reader builds again
_LARGE_NBYTES = 1 << 20
_LARGE_ADVICE = (
    "every reader builds this container again from each version; a dict that is only looked up is read in place, "
    "without that, as an untorn.FrozenDict"
)


@click.command(short_help="Show one channel: structure, slots, readers.")
@click.argument("channel")
@click.option(
    "--value",
    "paths",
    metavar="PATH",
    multiple=True,
    help='Print the value at this path of the newest version, such as head/w or layers/0/w ("" for all of it); may be '
    "repeated. Attaches to the channel as a subscriber.",
)
@click.option("--allow-pickle", is_flag=True, help="With --value, allow unpickling. A pickle can run arbitrary code.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document, in bytes and seconds.")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def show(*, channel: str, paths: tuple[str, ...], allow_pickle: bool, as_json: bool, debug: bool) -> None:
    """Show CHANNEL, or a queue, given by its name or by its path (anything with a slash).

    Without --value, this takes no reader row and disturbs no process.
    """
    with reported(debug=debug):
        if paths and means_queue(channel):
            raise click.UsageError(f"{channel!r} is a queue; --value prints values of a channel")
        if paths and not as_json:
            for text in values_at(channel, paths, allow_pickle=allow_pickle).values():
                say(text)
            return
        if means_queue(channel):
            say(*([json_line(queue_document(channel), indent=2)] if as_json else show_queue(channel)))
            return
        with ChannelView.open(files_of(channel)) as view:
            state = view.state()
            problem, version, trees = _trees(view)
        if as_json:
            document = dataclasses.asdict(state) | {
                "structure_version": version,
                "structure_problem": problem,
                **{name: [_node_json(node) for node in walk(tree)] for name, tree in trees.items()},
            }
            if paths:
                document["values"] = values_at(channel, paths, allow_pickle=allow_pickle)
            say(json_line(document, indent=2))
            return
        _print(state, trees, problem)


def _trees(view: ChannelView) -> tuple[str | None, int | None, dict[str, Node]]:
    """Return an error message or None, the version, and the trees of the schema: "value", and "extra" if a trainer
    publishes. Even if the schema is damaged, the rest of the channel can be shown."""
    try:
        version, document = view.schema()
        return None, version, {name: outline(document[name]) for name in ("value", "extra") if name in document}
    except FormatError as error:
        return str(error), None, {}


def _node_json(node: Node) -> dict[str, Any]:
    return {
        "path": node.path,
        "kind": node.kind,
        "type": node.type,
        "shape": node.shape,
        "dtype": node.dtype,
        "nbytes": node.nbytes,
    }


# -- for display


def _print(state: ChannelState, trees: dict[str, Node], problem: str | None) -> None:
    say(facts(_facts(state)))
    if problem is not None:
        say("", Text(f"structure: {plain(problem)}", style="red"))
    for name, tree in trees.items():
        large = [node for node in walk(tree) if node.kind == "packed" and node.nbytes >= _LARGE_NBYTES]
        say("", grid((name.upper(), "TYPE", "SHAPE", "SIZE"), map(_node_row, walk(tree)), right=("SIZE",)))
        for node in large:
            say(Text(f"{plain(node.path) or 'the value'}: {_LARGE_ADVICE}", style="yellow"))
    say("", grid(("SLOT", "VERSION", "CAPACITY", "HELD BY"), _slot_rows(state), right=("SLOT", "VERSION", "CAPACITY")))
    if state.readers:
        columns = ("READER", "HOLDS", "BEHIND", "OLDEST", "ATTACHED")
        say("", grid(columns, _reader_rows(state), right=("BEHIND", "OLDEST", "ATTACHED")))


def _facts(state: ChannelState) -> list[tuple[str, str]]:
    publisher = f"pid {publisher_of(state)}" if state.publisher == "alive" else state.publisher
    readers = f"{len(state.readers)} of at most {state.max_readers}"
    if state.dead_rows:
        readers += f"; {state.dead_rows} died holding a version, which the publisher reclaims when it needs the slot"
    return [
        ("channel", plain(state.label)),
        ("version", f"{state.version}, published {age(state.age_s)} ago" if state.version else "none yet"),
        ("size", f"{_size(state)}; {size(state.reserved_nbytes)} with all slots"),
        ("publisher", publisher),
        ("readers", readers),
        ("created", time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(state.created_at))),
        ("id", state.id),
    ]


def _size(state: ChannelState) -> str:
    if state.base_version is None:
        return size(state.nbytes)
    return f"{size(state.nbytes)} of changes, of version {state.base_version} with {size(state.base_nbytes)}"


def _node_row(node: Node) -> tuple[str, str, str, str]:
    """Return a node's cells. They begin with its whole path, so that it can be copied to --value."""
    shape = "" if node.shape is None else " x ".join(map(str, node.shape)) or "()"
    return plain(node.path) or "(all)", plain(node.type), shape, size(node.nbytes)


def _slot_rows(state: ChannelState) -> list[tuple[str, ...]]:
    pids = {reader.row: reader.pid for reader in state.readers}
    rows: list[tuple[str, ...]] = []
    for slot in state.slots:
        holders = ", ".join(f"pid {pids[row]}" for row in slot.held_by)
        note = ", ".join(filter(None, ("newest" if slot.latest else "", holders)))
        rows.append((str(slot.slot), str(slot.version or "-"), size(slot.capacity), note))
    return rows


def _reader_rows(state: ChannelState) -> list[tuple[str, ...]]:
    now = time.time()
    return [
        (
            f"pid {reader.pid}",
            ", ".join(map(str, reader.versions)) or "nothing",
            "-" if reader.behind is None else str(reader.behind),
            age(reader.age_s) if reader.versions else "-",
            age(max(0.0, now - reader.attached_at)),
        )
        for reader in state.readers
    ]
