"""``untorn join NAME`` and ``untorn leave NAME``: change the number of workers of a running job."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from untorn.cli.errors import reported
from untorn.cli.jobs import resize
from untorn.cli.tables import count, json_line, plain, say

__all__ = ["join", "leave"]

_SECONDS = click.FloatRange(min=0, min_open=True)


def _options(workers_help: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Add the options that both commands have."""
    options = [
        click.argument("name"),
        click.option("--workers", type=click.IntRange(min=1), default=1, show_default=True, help=workers_help),
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
@_options("The number of workers to add.")
def join(*, workers: int, **given: Any) -> None:
    """Add workers to the running job NAME, started with Trainer(name=NAME) or untorn train --name NAME.

    In sync mode, the number of workers does not change a single bit of the resulting weights.
    """
    _resize(by=workers, **given)


@click.command(short_help="Remove workers from a running job.")
@_options("The number of workers to remove.")
def leave(*, workers: int, **given: Any) -> None:
    """Remove workers from the running job NAME, which continues with the others. It keeps at least one.

    In sync mode, the number of workers does not change a single bit of the resulting weights.
    """
    _resize(by=-workers, **given)


def _resize(*, name: str, by: int, timeout_s: float, as_json: bool, debug: bool) -> None:
    """Ask the job for ``by`` more workers, or fewer if negative, and print its answer."""
    with reported(debug=debug):
        answer = resize(name, by, timeout_s)
        if as_json:
            say(json_line(answer))
        else:
            say(f"{plain(name)}: {count(answer['workers'], 'worker')} (was {answer['was']})")
