"""``untorn doctor``: check that this machine has what channels and trainers need, and say what to do if not."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence

import click
from rich.table import Table
from rich.text import Text

from untorn.cli import probes
from untorn.cli.checks import CHECKS, Check, Machine
from untorn.cli.errors import reported
from untorn.cli.tables import count, json_line, plain, say

__all__ = ["doctor", "examine"]

_STYLES = {"ok": "green", "note": "yellow", "problem": "bold red"}
_SHM = "/dev/shm"


def examine(machine: Machine, directories: Sequence[str] = ()) -> list[Check]:
    """Run all checks, and all probes."""
    checks = [check for each in CHECKS for check in each(machine)]
    checks += probes.kernel()
    for path in (_SHM, *directories):
        checks += probes.directory(machine, path)
    return checks + probes.channels()


@click.command(short_help="Check that this machine has what untorn needs.")
@click.option(
    "--directory", "directories", metavar="DIRECTORY", multiple=True,
    help="Also check that channels can be created here; may be repeated.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def doctor(*, directories: tuple[str, ...], as_json: bool, debug: bool) -> None:
    """Check the kernel, memory, processors, limits and channels. The exit status is 1 if there is a problem.

    Kernel features are tried, not looked up by version. Nothing is changed, and no files are left behind.
    """
    with reported(debug=debug):
        checks = examine(Machine(), directories)
        counts = Counter(check.status for check in checks)
        if as_json:
            document = {
                "checks": [dataclasses.asdict(check) for check in checks],
                "problems": counts["problem"],
                "notes": counts["note"],
            }
            say(json_line(document, indent=2))
        else:
            say(_table(checks), "", f"{count(counts['problem'], 'problem')}, {count(counts['note'], 'note')}")
    if counts["problem"]:
        raise SystemExit(1)


def _table(checks: Sequence[Check]) -> Table:
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    table.add_column(overflow="fold")
    for check in checks:
        table.add_row(
            Text(check.status, style=_STYLES[check.status]), Text(plain(check.name)), Text(plain(check.found))
        )
        if check.advice:
            table.add_row("", "", Text(f"-> {plain(check.advice)}", style="bold"))
    return table
