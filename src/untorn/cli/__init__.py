"""The ``untorn`` command.

    __init__.py     the entry point, which needs nothing but the standard library
    group.py        the command group: where every command is registered, and where every error becomes a line
    train.py        untorn train

One file per command. This module stays small on purpose: worker processes import the script that started training,
and with it this module.
"""

from __future__ import annotations

import sys

__all__ = ["main"]


def main() -> int:
    """Run the command line. Exit codes: 0 done, 1 an error, 2 wrong usage, 130 interrupted with Ctrl-C.

    Returns:
        1 when click is missing, after saying so; otherwise the command itself ends the process.

    """
    try:
        import click  # noqa: F401 - only to see whether it is there
    except ModuleNotFoundError as error:
        if error.name != "click":
            raise
        print("error: the untorn command needs click and rich: pip install 'untorn[cli]'", file=sys.stderr)
        return 1
    try:
        from untorn.cli.group import untorn

        untorn(prog_name="untorn")
    except KeyboardInterrupt:  # before the command began
        return 130
    return 0
