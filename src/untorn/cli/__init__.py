"""The command line: ``untorn COMMAND``, one file per command.

``main`` is the entry point. click and rich come with the extra ``untorn[cli]``; without them ``main`` exits with a
message that says so, and importing this package needs neither. ``group.py`` has the list of commands.
"""

from __future__ import annotations

import io
import sys

__all__ = ["main"]


def main() -> None:
    """Run ``untorn`` with this process's arguments, and exit.

    Raises:
        SystemExit: always; 0 for success, 1 for an error (reported on stderr), 2 for wrong usage, 130 if interrupted.

    """
    try:
        from untorn.cli.errors import reported
        from untorn.cli.group import group
    except ModuleNotFoundError as error:
        if error.name not in ("click", "rich"):
            raise
        sys.exit(f"error: the command line needs {error.name}, which is not installed: pip install 'untorn[cli]'")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a key may be a text that the locale does not have
    with reported(debug=False):  # what click itself writes, such as --help
        group(prog_name="untorn")
