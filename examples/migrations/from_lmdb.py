"""From LMDB to a FrozenDict in a durable channel: lookups by key in a table on the disk.

``before`` and ``after`` do the same work. Usage: python examples/migrations/from_lmdb.py
"""

import sys
import tempfile

import untorn

ENTRIES = {f"key-{i}": i * i for i in range(1000)}
WANTED = ["key-7", "key-999", "key-1000"]


def before():
    import lmdb

    with tempfile.TemporaryDirectory() as folder:
        with lmdb.open(folder, map_size=1 << 24) as table:  # the largest size that it may ever have
            with table.begin(write=True) as transaction:
                for key, number in ENTRIES.items():
                    transaction.put(key.encode(), str(number).encode())
            with table.begin() as transaction:  # it sees one state of the table
                found = [transaction.get(key.encode()) for key in WANTED]
        return [None if number is None else int(number) for number in found]


def after():
    with tempfile.TemporaryDirectory() as folder:
        with untorn.publish(untorn.FrozenDict(ENTRIES), name="table", directory=folder, durable=True):
            pass
        table = untorn.subscribe("table", directory=folder).snapshot().value  # one version of the table
        return [table.get(key) for key in WANTED]


if __name__ == "__main__":
    for half in sys.argv[1:] or ["before", "after"]:
        print(f"{half}:", globals()[half]())
