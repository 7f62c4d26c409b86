"""share: one process publishes a value, any number read whole, zero-copy snapshots of it.

specs.py        what can be shared, as a tree of leaves that are described
paths.py        places in a tree, as people write them
layout.py       where leaves lie in a slot, and the schema that readers get
frozen_dict.py  a dictionary that is looked up where it lies
storage.py      the two files of a channel: memfds, or names in a directory
guard.py        whether a file may be a channel's: its kind, owner and mode
obstacles.py    what a file system refuses, in words
versions.py     how a version is made, and what a slot has of it already
publisher.py    publish, update, patch
edit.py         edit: the next version in place
attached.py     this process's reading side of a channel
snapshot.py     one version, as readers have it
subscriber.py   snapshot, wait
subscribing.py  subscribe
waiting.py      the same for asyncio
typevars.py     the type of a channel's value, for type checkers
inspect.py      a channel from outside, for the commands
lowlevel.py     the door for the other packages: what they need of all this
"""

from untorn.share.frozen_dict import FrozenDict
from untorn.share.publisher import Publisher, publish
from untorn.share.snapshot import Snapshot
from untorn.share.subscriber import Subscriber
from untorn.share.subscribing import subscribe
from untorn.share.versions import ReaderInfo

__all__ = ["FrozenDict", "Publisher", "ReaderInfo", "Snapshot", "Subscriber", "publish", "subscribe"]
