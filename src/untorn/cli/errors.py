"""Report a command's errors: one line on stderr and an exit status, and a traceback only with ``--debug``.

======  ======================================================================
status  meaning
======  ======================================================================
0       success
1       an error caused by the input or the machine: ``error: ...``
2       wrong usage (reported by click)
130     interrupted by Ctrl-C (128 + SIGINT)
======  ======================================================================
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import click

from untorn.errors import UntornError

__all__ = ["INTERRUPTED", "reported"]

INTERRUPTED = 130
_EXPLAINED = (UntornError, ValueError, TypeError, OSError, ImportError, NotImplementedError)


@contextlib.contextmanager
def reported(*, debug: bool) -> Iterator[None]:
    """Turn an error that the input or the machine caused into a line on stderr and exit status 1.

    Args:
        debug: raise the error itself, so that Python prints the traceback.

    Raises:
        SystemExit: 1, or 130 after Ctrl-C, once the line is written.

    """
    try:
        yield
    except _EXPLAINED as error:
        if debug:
            raise
        with contextlib.suppress(OSError):  # stderr itself may be what failed
            click.echo(f"error: {str(error) or type(error).__name__}", err=True)
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        click.echo("interrupted", err=True)
        raise SystemExit(INTERRUPTED) from None
