"""The command line: ``untorn COMMAND``, one file per command.

``main`` is the entry point. click and rich come with the extra ``untorn[cli]``; without click it says so in one line,
so importing this package needs neither. The group and the list of commands are in ``group.py``.
"""

from __future__ import annotations

import sys

__all__ = ["main"]


def main() -> None:
    """Run ``untorn`` with this process's arguments, and exit.

    Raises:
        SystemExit: always; 0 done, 1 an error (told on stderr), 2 wrong usage, 130 interrupted.

    """
    try:
        from untorn.cli.group import group
    except ModuleNotFoundError as error:
        if error.name not in ("click", "rich"):
            raise
        sys.exit(f"error: the command line needs {error.name}, which is not installed: pip install 'untorn[cli]'")
    group(prog_name="untorn")
