"""``untorn leave NAME``: a running job gets by with fewer workers."""

from __future__ import annotations

import click

from untorn.cli.join import resized

__all__ = ["leave"]


@click.command(short_help="Take workers away from a running job.")
@click.argument("name")
@click.option("--workers", type=click.IntRange(min=1), default=1, show_default=True, help="How many leave.")
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
def leave(*, name: str, workers: int, timeout_s: float, as_json: bool, debug: bool) -> None:
    """Take workers away from the job NAME, which runs here and goes on with the others. At least one stays.

    In sync mode the weights that come out are the same bits, however many workers there are.
    """
    resized(name, -workers, timeout_s=timeout_s, as_json=as_json, debug=debug)
