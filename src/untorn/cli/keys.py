"""Read single keys from a terminal, whose settings are restored however the program ends."""

from __future__ import annotations

import contextlib
import os
import select
import sys
import termios
import time
import tty
from collections.abc import Callable, Iterator

from untorn.cli.signals import cleaning_up_after_signals

__all__ = ["keys"]


@contextlib.contextmanager
def keys() -> Iterator[Callable[[float], str]]:
    """Read keys without Enter and without echo. Yields a function that waits for the given number of seconds and
    returns "q" at once if that key is pressed. Without a terminal on stdin it only waits.

    Ctrl-Z is disabled, because it would show the shell on the alternate screen.
    """
    with cleaning_up_after_signals():
        if sys.stdin.isatty():
            with _cbreak(sys.stdin.fileno()) as fd:
                yield lambda seconds: _wait_for_q(fd, seconds)
        else:
            yield _only_wait


@contextlib.contextmanager
def _cbreak(fd: int) -> Iterator[int]:
    before = termios.tcgetattr(fd)
    try:
        tty.setcbreak(fd, termios.TCSANOW)
        changed = termios.tcgetattr(fd)
        changed[6][termios.VSUSP] = b"\0"
        termios.tcsetattr(fd, termios.TCSANOW, changed)
        yield fd
    finally:
        with contextlib.suppress(termios.error):  # the terminal is gone
            termios.tcsetattr(fd, termios.TCSANOW, before)


def _wait_for_q(fd: int, seconds: float) -> str:
    deadline = time.monotonic() + seconds
    while (left := deadline - time.monotonic()) > 0 and select.select([fd], [], [], left)[0]:
        typed = os.read(fd, 64).lower()
        if b"q" in typed or not typed:  # an empty read means that the terminal is gone
            return "q"
    return ""


def _only_wait(seconds: float) -> str:
    time.sleep(seconds)
    return ""
