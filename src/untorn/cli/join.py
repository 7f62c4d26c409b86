"""``untorn join NAME``: a running job gets more workers."""

from __future__ import annotations

import click

from untorn.cli.failing import reported
from untorn.cli.jobs import resize
from untorn.cli.tables import count, json_line, plain, say

__all__ = ["join", "resized"]


@click.command(short_help="Give a running job more workers.")
@click.argument("name")
@click.option("--workers", type=click.IntRange(min=1), default=1, show_default=True, help="How many join.")
@click.option(
    "--timeout",
    "timeout_s",
    type=click.FloatRange(min=0, min_open=True),
    default=10.0,
    show_default=True,
    help="Seconds to wait for the job's answer.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def join(*, name: str, workers: int, timeout_s: float, as_json: bool, debug: bool) -> None:
    """Add workers to the job NAME, which runs here: Trainer(name=NAME), or untorn train --name NAME.

    In sync mode the weights that come out are the same bits, however many workers there are.
    """
    resized(name, workers, timeout_s=timeout_s, as_json=as_json, debug=debug)


def resized(name: str, by: int, *, timeout_s: float, as_json: bool, debug: bool) -> None:
    """Ask for so many workers more, or fewer, and say what came of it."""
    with reported(debug=debug):
        answer = resize(name, by, timeout_s)
        if as_json:
            say(json_line(answer))
        else:
            say(f"{plain(name)}: {count(answer['workers'], 'worker')} (was {answer['was']})")
