"""share: one process publishes a value, any number read whole, zero-copy snapshots of it.

tree.py         a value as a tree: spec and leaves
layout.py       where leaves lie in a slot, and the schema that readers get
storage.py      the two files of a channel: memfds, or names in a directory
publisher.py    publish, update, edit
subscriber.py   subscribe, snapshot, wait
"""

from untorn.share.publisher import Publisher, ReaderInfo, publish
from untorn.share.subscriber import Snapshot, Subscriber, subscribe

__all__ = ["Publisher", "ReaderInfo", "Snapshot", "Subscriber", "publish", "subscribe"]
