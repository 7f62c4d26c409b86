"""The competitors, one file each, behind one interface, so that everybody does the same work.

A peer module has:

    NAME                            what it is called in the tables
    NOTE                            what differs from untorn in what is measured; may be empty
    missing() -> str                why it cannot run here (not installed), or an empty string
    Writer(array)                   opens a channel in shared memory with this first version (1-d uint8)
        .publish(array)             the next version, copied from the array
        .address                    what another process needs to read; can be pickled
        .close()
    Reader(address)
        .read() -> buffer           the newest version: a usable NumPy array that copies nothing
        .close()

peers/untorn_peer.py is untorn itself behind it.
"""

from __future__ import annotations

from types import ModuleType

from benchmarks.peers import iceoryx2_peer, lmdb_peer, untorn_peer

#: untorn first: the others are compared with it
ALL: tuple[ModuleType, ...] = (untorn_peer, lmdb_peer, iceoryx2_peer)
