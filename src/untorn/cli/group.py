"""The command group ``untorn``: where every command is registered, and where every error becomes a line.

A command raises what it likes. The group prints it on stderr and sets the exit code, so no command needs to know how
errors look::

    click's own usage errors             exit code 2
    UntornError, ValueError, OSError...  exit code 1, "error: " and the message
    any other exception                  exit code 1, "error: ", its type and message, and how to see the traceback
    Ctrl-C                               exit code 130

With ``--debug``, before or after the command's name, exceptions go through with their traceback.
"""

from __future__ import annotations

from typing import Any

import click

from untorn import UntornError, __version__
from untorn.cli.train import train

__all__ = ["COMMANDS", "untorn"]

#: every command, each in its own file
COMMANDS: tuple[click.Command, ...] = (train,)

# What these say is enough: they come from what was given, not from a mistake in the code.
_EXPECTED = (UntornError, ValueError, TypeError, OSError, ImportError, NotImplementedError)
_DEBUG = "untorn.debug"


class _Group(click.Group):
    """A group whose commands' exceptions end as one line and an exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.Abort, click.exceptions.Exit, BrokenPipeError):
            raise  # click knows what to do with these
        except KeyboardInterrupt:
            click.echo("interrupted", err=True)
            ctx.exit(130)
        except Exception as error:
            if ctx.meta.get(_DEBUG):
                raise
            click.echo(f"error: {_describe(error)}", err=True)
            ctx.exit(1)


def _describe(error: Exception) -> str:
    kind = type(error).__name__
    if isinstance(error, _EXPECTED):
        return str(error) or kind
    return f"{kind}: {error}\n(untorn --debug ... shows the traceback)"


def _debug_option() -> click.Option:
    def remember(ctx: click.Context, _option: click.Parameter, given: bool) -> None:
        if given:
            ctx.meta[_DEBUG] = True  # shared by the contexts of the group and of the command

    return click.Option(
        ["--debug"], is_flag=True, expose_value=False, callback=remember, help="Show tracebacks of errors."
    )


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="untorn")
def untorn() -> None:
    """Consistent shared-memory snapshots, and data-parallel training on top of them."""


untorn.params.append(_debug_option())
for _command in COMMANDS:
    _command.params.append(_debug_option())
    untorn.add_command(_command)
