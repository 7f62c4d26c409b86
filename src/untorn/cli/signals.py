"""Turn the signals that end a program into an exception, so that it cleans up first."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

__all__ = ["Ended", "cleaning_up_after_signals"]


class Ended(SystemExit):
    """Ends the program because of a signal, with the exit status that shells use for it."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.signal = signal.Signals(number)


@contextmanager
def cleaning_up_after_signals() -> Iterator[None]:
    """Have SIGTERM and SIGHUP (the terminal is gone) raise Ended in the block. A signal that is ignored, as under
    nohup, stays ignored."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    caught = [number for number, handler in before.items() if handler is not signal.SIG_IGN]
    for number in caught:
        signal.signal(number, _end)
    try:
        yield
    finally:
        for number in caught:
            signal.signal(number, before[number])


def _end(number: int, _: object) -> NoReturn:
    raise Ended(number)
