"""``untorn join NAME`` and ``untorn leave NAME``: a running job gets more workers, or gets by with fewer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from untorn.cli.failing import reported
from untorn.cli.jobs import resize
from untorn.cli.tables import count, json_line, plain, say

__all__ = ["join", "leave"]

_SECONDS = click.FloatRange(min=0, min_open=True)


def _options(how_many: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """What both take."""
    options = [
        click.argument("name"),
        click.option("--workers", type=click.IntRange(min=1), default=1, show_default=True, help=how_many),
        click.option(
            "--timeout", "timeout_s", type=_SECONDS, default=10.0, show_default=True,
            help="Seconds to wait for the job's answer.",
        ),
        click.option("--json", "as_json", is_flag=True, help="One JSON document."),
        click.option("--debug", is_flag=True, help="Show the traceback of an error."),
    ]  # fmt: skip

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


@click.command(short_help="Give a running job more workers.")
@_options("How many join.")
def join(*, workers: int, **given: Any) -> None:
    """Add workers to the job NAME, which runs here: Trainer(name=NAME), or untorn train --name NAME.

    In sync mode the weights that come out are the same bits, however many workers there are.
    """
    _resized(by=workers, **given)


@click.command(short_help="Take workers away from a running job.")
@_options("How many leave.")
def leave(*, workers: int, **given: Any) -> None:
    """Take workers away from the job NAME, which runs here and goes on with the others. At least one stays.

    In sync mode the weights that come out are the same bits, however many workers there are.
    """
    _resized(by=-workers, **given)


def _resized(*, name: str, by: int, timeout_s: float, as_json: bool, debug: bool) -> None:
    """Ask for so many workers more, or fewer, and say what came of it."""
    with reported(debug=debug):
        answer = resize(name, by, timeout_s)
        if as_json:
            say(json_line(answer))
        else:
            say(f"{plain(name)}: {count(answer['workers'], 'worker')} (was {answer['was']})")
