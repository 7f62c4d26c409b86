"""``untorn join NAME`` and ``untorn leave NAME``: change the number of workers, or of nodes, of a running job."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from untorn.cli.errors import reported
from untorn.cli.jobs import resize, resize_nodes
from untorn.cli.tables import count, json_line, plain, say

__all__ = ["join", "leave"]

_SECONDS = click.FloatRange(min=0, min_open=True)


_AT_LEAST_1 = click.IntRange(min=1)


def _options(verb: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Add the options that both commands have."""
    options = [
        click.argument("name"),
        click.option(
            "--workers", type=_AT_LEAST_1,
            help=f"The number of workers to {verb}; of a job on nodes, on each of them.  [default: 1]",
        ),
        click.option("--nodes", type=_AT_LEAST_1, help=f"The number of nodes to {verb}, instead of workers."),
        click.option(
            "--timeout", "timeout_s", type=_SECONDS, default=10.0, show_default=True,
            help="Seconds to wait for the job's answer.",
        ),
        click.option("--json", "as_json", is_flag=True, help="Print one JSON document."),
        click.option("--debug", is_flag=True, help="Show the traceback of an error."),
    ]  # fmt: skip

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


@click.command(short_help="Add workers to a running job.")
@_options("add")
def join(**given: Any) -> None:
    """Add workers, or nodes, to the running job NAME, started with Trainer(name=NAME) or untorn train --name NAME.

    In sync mode, the number of workers and of nodes does not change a single bit of the resulting weights.
    """
    _resize(1, **given)


@click.command(short_help="Remove workers from a running job.")
@_options("remove")
def leave(**given: Any) -> None:
    """Remove workers, or nodes, from the running job NAME, which continues with the others. It keeps at least one.

    In sync mode, the number of workers and of nodes does not change a single bit of the resulting weights.
    """
    _resize(-1, **given)


def _resize(
    sign: int, *, name: str, workers: int | None, nodes: int | None, timeout_s: float, as_json: bool, debug: bool
) -> None:
    """Ask the job for more workers or nodes, or fewer if the sign is negative, and print its answer."""
    if workers is not None and nodes is not None:
        raise click.UsageError("--workers and --nodes: give one of them; the command changes one number at a time")
    with reported(debug=debug):
        if nodes is not None:
            answer = resize_nodes(name, sign * nodes, timeout_s)
            text = count(answer["nodes"], "node")
        else:
            answer = resize(name, sign * (workers or 1), timeout_s)
            text = count(answer["workers"], "worker") + (" on each node" if "nodes" in answer else "")
        say(json_line(answer) if as_json else f"{plain(name)}: {text} (was {answer['was']})")
