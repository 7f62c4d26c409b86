"""Store data on disk, instead of with shelve: one program writes, others read, and the data outlives them.

    python examples/store.py --directory /tmp/prices write apple=1.2 pear=0.8
    python examples/store.py --directory /tmp/prices read apple plum
    python examples/store.py --directory /tmp/prices write plum=2.5
    python examples/store.py --directory /tmp/prices remove

When ``write`` returns, the data is on the disk (durable=True), even if the machine crashes. Readers see whole versions
and never block a writer.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import untorn

NAME = "prices"


def load(directory):
    """Return the store's newest version as a Mapping, which is empty if there is no version yet."""
    try:
        return untorn.subscribe(directory / NAME).snapshot().value
    except untorn.ChannelNotFoundError:
        return untorn.FrozenDict()


def write(directory, pairs):
    directory.mkdir(parents=True, exist_ok=True)
    changed = {name: float(price) for name, _, price in (pair.partition("=") for pair in pairs)}
    table = untorn.FrozenDict({**load(directory), **changed})
    with untorn.publish(table, name=NAME, directory=directory, durable=True) as store:
        print(f"version {store.version}: {len(table)} entries")


def read(directory, names):
    table = load(directory)
    for name in names or table:
        print(name, table.get(name, "is not there"))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--directory", type=Path, required=True)
    parser.add_argument("command", choices=["write", "read", "remove"])
    parser.add_argument("arguments", nargs="*", help="NAME=PRICE to write, NAME to read")
    options = parser.parse_args()
    try:
        if options.command == "write":
            write(options.directory, options.arguments)
        elif options.command == "read":
            read(options.directory, options.arguments)
        else:
            with untorn.publish(untorn.FrozenDict(), name=NAME, directory=options.directory) as store:
                store.unlink()
    except (untorn.UntornError, ValueError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
