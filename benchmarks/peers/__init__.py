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
        .read() -> buffer           return the newest version as a NumPy array, without a copy
        .close()

peers/untorn_peer.py is untorn itself.
"""

from __future__ import annotations

from types import ModuleType

from benchmarks.peers import iceoryx2_peer, lmdb_peer, untorn_peer

#: untorn first: the others are compared with it
ALL: tuple[ModuleType, ...] = (untorn_peer, lmdb_peer, iceoryx2_peer)
