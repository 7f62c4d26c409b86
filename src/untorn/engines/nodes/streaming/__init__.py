"""Versions of a channel on another machine: a server sends the newest ones, a follower publishes them in a channel of
its own machine, under the same numbers.

::

    publisher ──> channel ──> VersionServer ═══ a connection each ═══> Follower ──> channel ──> subscribers
                                          <── what it has ───────────
                                          ─── the newest version ───>   straight from the socket into a free slot

A follower asks for a version when it has published the one before, and gets the newest one then. So a slow one misses
versions, holds one slot at the source at most, and keeps nobody waiting. While there is none, the server says every
second whether the publisher lives. The end of the source reaches the follower's subscribers as it reaches the source's:

=========================================  =============================================================
at the source                              in the follower's channel
=========================================  =============================================================
the publisher closes it                    it is closed
the publisher dies                         it has lost its publisher, as if that had died
a new publisher takes it over              it is continued
the names are removed                      the names are removed
another channel is made under the name     another channel is made under the name
the server's process dies                  it has lost its publisher; if the server comes again, it is continued
the server's machine is cut off            the same, after ``LOST_AFTER_S``
=========================================  =============================================================

A follower that is killed leaves its channel as a killed publisher does. The next one continues it: if its newest
version is the source's, byte for byte, it stays as it is, and if it is older, the next one follows it.

fetch() and send_newest() are the same for a single version.
"""

from untorn.engines.nodes.streaming.follower import LOST_AFTER_S, Follower
from untorn.engines.nodes.streaming.server import Feed, VersionServer
from untorn.engines.nodes.streaming.single import fetch, send_newest

__all__ = ["LOST_AFTER_S", "Feed", "Follower", "VersionServer", "fetch", "send_newest"]
