"""This process's reading side of a channel, which all its subscribers in the process share.

A process has one Attached per channel, found by the channel's id, even if many subscribers were made or unpickled.
"""

from __future__ import annotations

import contextlib
import os
import weakref
from typing import Any

from untorn import _core
from untorn.errors import CapacityError, ChannelNotFoundError, FormatError, UnsupportedTypeError, UntornError
from untorn.share import opening
from untorn.share.caching import Results
from untorn.share.decoder import UNREADABLE, Decoder, unreadable
from untorn.share.frozen_dict import Changes, FrozenDict
from untorn.share.journal import log_channel
from untorn.share.naming import signpost_target
from untorn.share.places import Address
from untorn.share.storage_errors import labelled, meaning
from untorn.share.tree_plans import tree_plan_of

__all__ = ["Attached", "attached_to", "drop_dead_attachments", "forget", "keep", "schema_of"]

_MAX_DECODERS = 64


class Attached:
    """This process's reading side of a channel, which all its subscribers in the process share."""

    def __init__(self, attachment: _core.Attachment, address: Address) -> None:
        self.attachment = attachment
        self.address = address
        #: what this process made from versions
        self.results: Results = Results()
        self._decoders: dict[int, Decoder] = {}
        #: by schema_id: for reading versions in one call; None for a schema that has no plan
        self._plans: dict[int, _core.TreePlan | None] = {}
        self._last_schema_id = 0

    def value(self, hold: _core.Hold, allow_pickle: bool = False) -> Any:
        """Return the value of a pinned version. Raises what Decoder does."""
        schema_id = hold.schema_id
        plan = self._plans.get(schema_id)
        if plan is not None:
            try:
                value = plan.read(hold)
            except UNREADABLE as error:
                raise unreadable(error) from error
            if value is not NotImplemented:
                return value
        repeats, self._last_schema_id = schema_id == self._last_schema_id, schema_id
        decoder = self.decoder(hold, allow_pickle)
        value = decoder.value(hold)
        if type(value) is Changes:
            return self._over_base(value, hold, allow_pickle)
        if repeats and schema_id not in self._plans:
            self._plans[schema_id] = tree_plan_of(decoder.schema, decoder.payload, decoder.slot_nbytes)
            _drop_oldest(self._plans, _MAX_DECODERS)
        return value

    def _over_base(self, changes: Changes, hold: _core.Hold, allow_pickle: bool) -> FrozenDict[Any, Any]:
        try:
            base = hold.base()
        except _core.StatusError:
            raise FormatError(
                f"channel {self.address.label!r}, version {hold.version}: it consists of changes of another version, "
                "which is not in its slot; the channel's file is damaged"
            ) from None
        return changes.over(self.value(base, allow_pickle))

    def decoder(self, hold: _core.Hold, allow_pickle: bool = False, *, arrays: bool = False) -> Decoder:
        """Return the decoder of a pinned version, which is kept while the schema stays the same."""
        key = hold.schema_id << 2 | arrays << 1 | allow_pickle
        known = self._decoders.get(key)
        if known is not None and known.slot_nbytes <= hold.nbytes:
            return known
        try:
            decoder = Decoder(schema_of(hold), hold.nbytes, allow_pickle=allow_pickle, arrays=arrays)
        except (FormatError, UnsupportedTypeError, ImportError) as error:
            raise type(error)(f"channel {self.address.label!r}, version {hold.version}: {error}") from error
        self._decoders[key] = decoder
        _drop_oldest(self._decoders, _MAX_DECODERS)
        return decoder

    def pin(self) -> _core.Hold:
        """Pin the newest version. Raises CapacityError if there is no row or no slot for another one."""
        label = self.address.label
        try:
            return self.attachment.pin()
        except _core.StatusError as error:
            if error.args[0] == "no_row" and self.attachment.control_fd < 0:
                raise CapacityError(
                    f"channel {label!r}: this process was forked when its parent could open no file for it (ulimit -n, "
                    "or /proc is not mounted); subscribe again here"
                ) from None
            if error.args[0] == "no_row":
                raise CapacityError(
                    f"channel {label!r}: this process was forked when every reader row was taken, and none is free "
                    "now; close some subscribers, or publish with a larger max_readers"
                ) from None
            if error.args[0] == "no_slot":
                raise CapacityError(
                    f"channel {label!r}: this process holds {self.held} versions, and the slots that are left are "
                    "reserved for the publisher; let old snapshots and views go, and copy what is to be kept"
                ) from None
            raise meaning(error, label) from None
        except OSError as error:
            raise labelled(error, label) from None

    @property
    def held(self) -> int:
        """The number of versions that this process holds."""
        rows = self.attachment.rows()
        return max((held.bit_count() for _, pid, _, held in rows if pid == os.getpid()), default=0)


def schema_of(hold: _core.Hold) -> bytes:
    """Return the schema of a pinned version. Raises FormatError, and copies nothing, if it cannot be a schema."""
    try:
        return hold.schema()
    except _core.StatusError:
        raise FormatError(
            f"its schema should be {hold.schema_nbytes:,} bytes of text, and there are zeros in it; the channel's file "
            "is damaged, or was not written by untorn"
        ) from None


# The code below takes no lock, because it also runs in signal handlers, finalizers and forked children, between any two
# instructions of a thread that could not release the lock meanwhile. Each step is one operation of a dict, and a file
# has one _core.Attachment per process, even if several threads ask for it at the same time (csrc/module_channel.c).

_attached: weakref.WeakValueDictionary[bytes, Attached] = weakref.WeakValueDictionary()


def attached_to(address: Address) -> Attached:
    """Return this process's reading side of the channel at an address, and attach if there is none. Raises
    ChannelNotFoundError, or the error of opening its files."""
    known = _attached.get(address.id)
    if known is not None:
        return _unless_copied(known, address)
    attachment = opening.open_channel(address.places, address.label, _core.READER, id=address.id or None)
    if attachment.version == 0:
        attachment, address = _follow(attachment, address)
    known = _attached.get(attachment.id)  # the same channel at another address, or a copy of its files
    if known is not None and known.attachment is attachment:
        return known
    attached = Attached(attachment, Address(attachment.id, address.places, address.label))
    log_channel(attachment, address.label)  # it may have the row of a dead reader
    if known is None:  # another thread may be faster; then two objects share one attachment
        _attached[attachment.id] = attached
    return attached


def _unless_copied(known: Attached, address: Address) -> Attached:
    """Return the channel that is known by this id, unless the address leads to another channel with the same id, which
    exists if a channel's files were copied and both are in use."""
    with contextlib.suppress(UntornError, OSError):  # it is gone, or another channel has the name now
        if address.leads_elsewhere(known.attachment):
            attachment = opening.open_channel(address.places, address.label, _core.READER, id=address.id)
            if attachment is not known.attachment and attachment.version != 0:
                return Attached(attachment, address)
    return known


def _follow(signpost: _core.Attachment, address: Address) -> tuple[_core.Attachment, Address]:
    """Follow a signpost, which is a channel without a version, to the channel that lost its files. Raises
    ChannelNotFoundError if it is not a signpost, but was only partly created or removed."""
    target = signpost_target(signpost.control_fd, address.label)
    if target is not None:
        with contextlib.suppress(ChannelNotFoundError):
            attachment = opening.open_channel(target.places, target.label, _core.READER, id=target.id)
            return attachment, Address(target.id, (*target.places, *address.places), target.label)
    raise opening.not_found(address.places, address.label)


#: attachments of unpickled subscribers, the most recent last; without these, a pool's task that receives a Subscriber
#: would attach again each time
_kept: dict[bytes, Attached] = {}
_MAX_KEPT = 8


def keep(attached: Attached) -> None:
    """Keep this attachment for the next task; drop those without a publisher, and the oldest if there are too many."""
    _kept.pop(attached.attachment.id, None)
    _kept[attached.attachment.id] = attached
    _drop_oldest(_kept, _MAX_KEPT)
    drop_dead_attachments()


def forget(attached: Attached) -> None:
    """No longer keep this attachment for the next task."""
    _kept.pop(attached.attachment.id, None)


def _drop_oldest(table: dict[Any, Any], most: int) -> None:
    """Remove all but the newest ``most`` entries."""
    if len(table) > most:
        for key in list(table)[:-most]:
            table.pop(key, None)


def drop_dead_attachments() -> None:
    """Of the attachments kept for the next task, close those to channels that have neither a publisher nor a name."""
    for attached in list(_kept.values()):
        with contextlib.suppress(OSError):  # it is not known that its publisher is dead
            if not attached.attachment.publisher_alive() and not attached.address.is_named(attached.attachment):
                _kept.pop(attached.attachment.id, None)
