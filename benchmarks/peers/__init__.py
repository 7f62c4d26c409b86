"""The competitors, one file each, behind one interface, so that all do the same work.

A peer module has:

    NAME                            its name in the tables
    NOTE                            differences from untorn in the measurement; may be empty
    missing() -> str                the reason why it cannot run here (not installed), or an empty string
    Writer(array)                   open a channel in shared memory with this first version (1-d uint8)
        .publish(array)             publish the next version, copied from the array
        .address                    picklable address for readers in other processes
        .close()
    Reader(address)
        .read() -> buffer           return the newest version as a NumPy array, without a copy where NOTE names none
        .close()

peers/untorn_peer.py is untorn itself.
"""

from __future__ import annotations

from multiprocessing.connection import Connection
from types import ModuleType
from typing import Any

from benchmarks.peers import gunicorn_peer, iceoryx2_peer, lmdb_peer, pickle_peer, pyshmem_peer, untorn_peer

#: untorn first: the others are compared with it
ALL: tuple[ModuleType, ...] = (untorn_peer, lmdb_peer, iceoryx2_peer)
#: those that copy at every read, too: too slow for the many reads of snapshot.py
COMPARED: tuple[ModuleType, ...] = (*ALL, pyshmem_peer, gunicorn_peer, pickle_peer)


def attach(pipe: Connection, addresses: dict[Any, Any]) -> tuple[dict[Any, Any], dict[Any, Any]]:
    """Attach a reader process: return readers and what each has read first, by the keys of their addresses.

    The first part of a key is the name of the peer. Says "attached" through the pipe, and waits there until the writers
    have published. All pages are touched.
    """
    modules = {peer.NAME: peer for peer in COMPARED}
    readers = {key: modules[key[0]].Reader(address) for key, address in addresses.items()}
    pipe.send("attached")
    pipe.recv()
    views = {key: reader.read() for key, reader in readers.items()}
    for view in views.values():
        view.sum()
    return readers, views
