"""``untorn demo``: the torn reads of plain shared memory beside those of untorn, none, and then a network that learns.

A writer flips the sign of a whole array as fast as it can. Two processes read the array, and count the reads in which
some elements have the old sign and some the new one. ``examples/torn.py`` does the same with multiprocessing.Array.
"""

from __future__ import annotations

import importlib.util
import mmap
import multiprocessing
import signal
import time
from collections.abc import Callable
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

import untorn
from untorn.cli.errors import reported
from untorn.cli.train import train

__all__ = ["demo"]

_ELEMENTS = 100_000
_READERS = 2
Read = Callable[[], NDArray[np.float64]]
Write = Callable[[float], None]


@click.command(short_help="Count torn reads, and watch a network learn.")
@click.option(
    "--seconds", type=click.FloatRange(0, min_open=True), default=2.0, show_default=True, help="Duration of each count."
)
@click.option("--train/--no-train", "trains", default=True, help="Whether a network learns afterwards.")
@click.pass_context
def demo(context: click.Context, seconds: float, trains: bool) -> None:
    """Count the torn reads of plain shared memory and of untorn, then train a small network on two worker processes."""
    with reported(debug=False):
        click.echo(f"Two processes read an array of {_ELEMENTS:,} numbers while another one keeps changing all of it.")
        click.echo("Torn: half old, half new.\n")
        click.echo(f"{'':24}{'reads':>12}{'torn reads':>12}{'writes':>12}")
        for label, count in (("plain shared memory", _with_plain_memory), ("untorn", _with_untorn)):
            click.echo(f"{label:24}" + "".join(f"{number:12,}" for number in count(seconds)))
    if not trains:
        return
    if importlib.util.find_spec("sklearn") is None:
        click.echo("\nA network that learns on two processes: pip install 'untorn[cli,train,digits]', and again")
        return
    click.echo("\nA network learns handwritten digits: two worker processes read whole versions of its weights.\n")
    context.invoke(train, recipe="digits", workers=2)


def _with_plain_memory(seconds: float) -> tuple[int, int, int]:
    array = np.frombuffer(mmap.mmap(-1, 8 * _ELEMENTS))  # forks share it

    def write(sign: float) -> None:
        array[:] = sign

    return _measure(array.copy, write, seconds)


def _with_untorn(seconds: float) -> tuple[int, int, int]:
    with untorn.publish(np.ones(_ELEMENTS)) as channel:
        reader = channel.subscriber()

        def write(sign: float) -> None:
            with channel.edit(copy=False) as array:
                array[:] = sign

        return _measure(lambda: reader.snapshot().value, write, seconds)


def _measure(read: Read, write: Write, seconds: float) -> tuple[int, int, int]:
    """Write in this process while others read; return the numbers of reads, torn reads and writes."""
    fork = multiprocessing.get_context("fork")
    with untorn.queue(_READERS) as results:
        readers = [fork.Process(target=_count, args=(read, seconds, results), daemon=True) for _ in range(_READERS)]
        for reader in readers:
            reader.start()
        writes = 0
        while any(reader.is_alive() for reader in readers):
            for _ in range(10):
                write(1.0 if writes % 2 else -1.0)
                writes += 1
        counts = results.get_many(_READERS, timeout_s=0)
    return sum(reads for reads, _ in counts), sum(torn for _, torn in counts), writes


def _count(read: Read, seconds: float, results: untorn.Queue[Any]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends this process
    deadline = time.monotonic() + seconds
    reads = torn = 0
    while time.monotonic() < deadline:
        positive = read() > 0
        torn += bool(positive.any() and not positive.all())
        reads += 1
    results.put((reads, torn))
