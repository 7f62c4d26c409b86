"""One process publishes a value, and any number of processes read consistent, zero-copy snapshots of it.

specs.py        the values that can be shared, as trees of described leaves
paths.py        paths in a tree, such as "head/w"
layout.py       the positions of leaves in a slot, and the schema for readers
decoder.py      makes values from a slot, by its schema
frozen_dict.py  a dictionary that is looked up in shared memory
table_edit.py   the value that edit() gives for one that a channel holds
table_writer.py its changes as versions; with table_overlay.py (what changed), compaction.py (a new base)
places.py       where the two files of a channel are
opening.py      opens them
storage.py      makes them: memfds, or named files in a directory; takes over those of a dead publisher
naming.py       keeps a channel's name even if its files are removed
near_names.py   names that a misspelled one may mean
guard.py        checks that a file can be trusted: its kind, owner and mode
storage_errors.py    errors of the system and the core, with what to do
versions.py     makes a version, and knows what each slot contains
publishing.py   publish: opens a channel, or takes over a dead one's
publisher.py    update, patch
edit.py         edit: writes the next version in place
attached.py     this process's reading side of a channel
snapshot.py     one version, as readers see it
subscriber.py   snapshot, wait
subscribing.py  subscribe
waiting.py      waiting in asyncio
typevars.py     the type of a channel's value, for type checkers
queues.py       Queue: put, get, take
queue_opening.py     makes queues, and opens those that have a name
queue_putting.py     a value's way into a queue
queue_taking.py      and out of it
queue_waiting.py     waiting for items, or for room
queue_items.py       one item, as its taker sees it
queue_processes.py   who has a queue, and does what with it
queue_files.py       the file of a queue, and what this process has attached
queue_inspect.py     a queue seen from outside
tree_plans.py   small trees, written and read in one call
inspect.py      a channel seen from outside, for the commands
lowlevel.py     the names of this package that other packages of untorn use
"""

from untorn.share.frozen_dict import FrozenDict
from untorn.share.publisher import Publisher
from untorn.share.publishing import publish
from untorn.share.queue_items import Item
from untorn.share.queue_opening import queue
from untorn.share.queue_processes import QueueProcess
from untorn.share.queues import Queue
from untorn.share.snapshot import Snapshot
from untorn.share.subscriber import Subscriber
from untorn.share.subscribing import subscribe
from untorn.share.versions import ReaderInfo

__all__ = [
    "FrozenDict",
    "Item",
    "Publisher",
    "Queue",
    "QueueProcess",
    "ReaderInfo",
    "Snapshot",
    "Subscriber",
    "publish",
    "queue",
    "subscribe",
]
