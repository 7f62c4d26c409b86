"""The ``untorn`` command and the one list of its subcommands."""

from __future__ import annotations

import click

import untorn
from untorn.cli.doctor import doctor
from untorn.cli.export import export
from untorn.cli.gc import gc
from untorn.cli.join import join, leave
from untorn.cli.ls import ls
from untorn.cli.rm import rm
from untorn.cli.show import show
from untorn.cli.top import top
from untorn.cli.train import train

__all__ = ["COMMANDS", "group"]

COMMANDS: tuple[click.Command, ...] = (train, join, leave, ls, show, top, export, rm, gc, doctor)


@click.group(
    context_settings={"help_option_names": ["-h", "--help"]},
    short_help="Share consistent snapshots, and train on them.",
)
@click.version_option(untorn.__version__, "--version", prog_name="untorn", message="%(prog)s %(version)s")
def group() -> None:
    """Share consistent snapshots between processes, and train models with data parallelism."""


for _command in (group, *COMMANDS):
    _command.help = _command.help or _command.short_help  # python -OO removes docstrings
for _command in COMMANDS:
    group.add_command(_command)
