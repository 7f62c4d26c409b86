"""The ``untorn`` command and the one list of its subcommands."""

from __future__ import annotations

import click

import untorn
from untorn.cli.demo import demo
from untorn.cli.doctor import doctor
from untorn.cli.export import export
from untorn.cli.gc import gc
from untorn.cli.join import join, leave
from untorn.cli.ls import ls
from untorn.cli.rm import rm
from untorn.cli.show import show
from untorn.cli.top import top
from untorn.cli.train import train
from untorn.first_guesses import words

__all__ = ["COMMANDS", "group"]

COMMANDS: tuple[click.Command, ...] = (train, join, leave, ls, show, top, export, rm, gc, doctor, demo)


_GUESSES = words(
    ("version", "write untorn --version"),
    ("help", "write untorn --help"),
    ("list channels queues jobs", "write untorn ls, or untorn top for the running jobs"),
    ("info inspect describe cat get read status", "write untorn show NAME, or untorn top NAME for a running job"),
    ("watch monitor ps", "write untorn top"),
    ("delete remove unlink", "write untorn rm NAME"),
    ("clean cleanup prune", "write untorn gc"),
    ("check test", "write untorn doctor"),
    ("fit run start", "write untorn train RECIPE"),
    ("metrics prometheus serve", "write untorn export"),
    ("publish subscribe queue", "programs do that: import untorn; untorn.{}(...)"),
)


class _Group(click.Group):
    """Says the right word for a command that is not there."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] not in self.commands and args[0] in _GUESSES:
            ctx.fail(f"No such command {args[0]!r}: {_GUESSES[args[0]]}")
        return super().resolve_command(ctx, args)


@click.group(
    cls=_Group,
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
