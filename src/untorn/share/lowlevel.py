"""The inside of share that other packages of untorn use, under documented names.

Semi-public: users of ``untorn`` need none of this, and it may change with any version. Other packages neither use
share's private names nor import its other modules.

Versions with a second tree beside the value (a trainer keeps the state of its optimizer there)::

    publish_with_extra, update_with_extra, update_leaves        write it
    extra, read_value, copy_with_extra                          read it

Versions as bytes, for another channel, on this machine or another::

    raw_version                                         a version's bytes
    publish_raw, publish_received                       a channel whose first version has these bytes
    update_raw, receive_raw                             the next version
    continue_channel                                    take over a channel as it is
    id_of                                               which channel it is
    ending_of, has_name                                 whether its publisher, and its name, are still there
    learn_structure                                     then parts of it may be changed

A snapshot's value in memory that may be written to::

    copy_value       a copy: for the whole value to be changed, or kept
    private_value    a private mapping: only pages that are written to are copied

These, copy_with_extra, read_value and decoder_of take ``arrays=True``: a value of another library that is one array,
such as a tensor, is then read as that array, and the library is not needed.

A channel without a Publisher or Subscriber (a trainer's workers write versions beside the publisher)::

    attach_writer, decoder_of       in a worker
    attachment_of, newest_nbytes, no_slot_error, look_after_name, log_news       beside the publisher

The files of channels, for the commands::

    Files, named, default_path, default_directory, is_there             where they are
    ChannelView, ChannelState, files_of, open_file, decode_control, is_data_file      looking at them
    take_over, claim_name                                               removing them
    QueueView, QueueState, queue_files_of, remove_queue                 the same for queues

The form in which versions, and checkpoints, are described::

    flatten, Deferred, class_at                         a value as its leaves
    Layout, Decoder                                     where the leaves lie
    read_dtype, read_key                                a dtype or key of a dict, as a schema describes it
    items_of, name_of, count_of, MALFORMED              reading JSON that may be damaged
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any, Literal

from untorn import _core
from untorn.errors import CapacityError
from untorn.share.attached import schema_of
from untorn.share.decoder import Decoder
from untorn.share.described import MALFORMED, count_of, items_of, name_of, read_dtype, read_key
from untorn.share.frozen_dict import compacted
from untorn.share.guard import is_there
from untorn.share.inspect import (
    CONTROL_NBYTES,
    DATA_HEADER_NBYTES,
    ChannelState,
    ChannelView,
    decode_control,
    files_of,
    is_data_file,
    open_file,
)
from untorn.share.journal import log_channel
from untorn.share.layout import Layout
from untorn.share.opening import open_channel
from untorn.share.places import Address, Files, default_directory, default_path, named
from untorn.share.publisher import Publisher
from untorn.share.publishing import continue_channel, publish_received, publish_tree
from untorn.share.queue_files import remove_unused as remove_queue
from untorn.share.queue_inspect import QueueState, QueueView, queue_files_of
from untorn.share.received import whole_version
from untorn.share.snapshot import Snapshot
from untorn.share.specs import Deferred, class_at, flatten
from untorn.share.storage import claim_name, take_over
from untorn.share.storage_errors import meaning, shortage
from untorn.share.subscriber import Subscriber
from untorn.share.versions import FREE_SLOT_TIMEOUT_S, Tree, Versions
from untorn.typevars import T

__all__ = [
    "CONTROL_NBYTES",
    "DATA_HEADER_NBYTES",
    "FREE_SLOT_TIMEOUT_S",
    "MALFORMED",
    "Address",
    "ChannelState",
    "ChannelView",
    "Decoder",
    "Deferred",
    "Files",
    "Layout",
    "QueueState",
    "QueueView",
    "attach_writer",
    "attachment_of",
    "claim_name",
    "class_at",
    "continue_channel",
    "copy_value",
    "copy_with_extra",
    "count_of",
    "decode_control",
    "decoder_of",
    "default_directory",
    "default_path",
    "ending_of",
    "extra",
    "files_of",
    "flatten",
    "has_name",
    "id_of",
    "is_data_file",
    "is_there",
    "items_of",
    "learn_structure",
    "log_news",
    "look_after_name",
    "meaning",
    "name_of",
    "named",
    "newest_nbytes",
    "no_slot_error",
    "open_file",
    "private_value",
    "publish_raw",
    "publish_received",
    "publish_with_extra",
    "queue_files_of",
    "raw_version",
    "read_dtype",
    "read_key",
    "read_value",
    "receive_raw",
    "remove_queue",
    "shortage",
    "take_over",
    "update_leaves",
    "update_raw",
    "update_with_extra",
]

# -- reading


def extra(snapshot: Snapshot) -> Any:
    """Return the second tree that was published beside the value, as read-only views of shared memory; None if there is
    none.

    Does not block. Raises what ``Snapshot.value`` does.

    Example:
        >>> import numpy as np
        >>> with publish_with_extra({"w": np.zeros(2)}, {"momentum": np.ones(2)}) as weights:
        ...     extra(weights.subscriber().snapshot())["momentum"]
        array([1., 1.])
    """
    hold, decoder = _opened(snapshot)
    return decoder.extra(hold)


def ending_of(subscriber: Subscriber) -> Literal["", "closed", "dead"]:
    """Return whether the channel's publisher has closed it or is dead, according to the kernel; empty while it lives.
    Another publisher may take the channel over. Raises OSError if the kernel cannot tell."""
    if subscriber.publisher_alive():
        return ""
    return "closed" if subscriber._attached.attachment.closed else "dead"


def id_of(subscriber: Subscriber) -> bytes:
    """Return the channel's identity: 16 random bytes. A channel that is made under the same name later has another."""
    return subscriber._attached.attachment.id


def has_name(subscriber: Subscriber) -> bool:
    """Return whether a name in a directory still leads to the channel."""
    return subscriber.address.is_named(subscriber._attached.attachment)


def read_value(snapshot: Snapshot, *, arrays: bool = False) -> Any:
    """Return ``snapshot.value``; with ``arrays``, with arrays in place of tensors. Raises what that does.

    Example:
        >>> import torch, untorn
        >>> with untorn.publish({"w": torch.zeros(2)}) as weights:
        ...     read_value(weights.subscriber().snapshot(), arrays=True)
        {'w': array([0., 0.], dtype=float32)}
    """
    if not arrays:
        return snapshot.value
    hold, decoder = _opened(snapshot, arrays)
    return snapshot.value if hold.base_version else decoder.value(hold)


def copy_value(snapshot: Snapshot[T], *, arrays: bool = False) -> T:
    """Return a copy of the value, whose arrays are writable and share one block of memory. Raises what
    ``Snapshot.value`` does.

    Example:
        >>> import numpy as np, untorn
        >>> with untorn.publish({"w": np.zeros(2)}) as weights:
        ...     params = copy_value(weights.subscriber().snapshot())
        >>> params["w"] += 1
    """
    return copy_with_extra(snapshot, arrays=arrays)[0]


def copy_with_extra(snapshot: Snapshot[T], *, arrays: bool = False) -> tuple[T, Any]:
    """Return copies of the value and of the tree beside it (or None), as copy_value() does."""
    hold, decoder = _opened(snapshot, arrays)
    if hold.base_version:
        return _compacted(snapshot), None
    memory = bytearray(memoryview(hold))
    return decoder.value(memory), decoder.extra(memory)


def private_value(snapshot: Snapshot[T], *, arrays: bool = False) -> T:
    """Return the value as writable views of a private mapping of the version, which copies a page when it is first
    written to. Other processes and ``Snapshot.value`` do not see these writes; all private values of a snapshot share
    one mapping. Raises what ``Snapshot.value`` does."""
    hold, decoder = _opened(snapshot, arrays)
    value: T = _compacted(snapshot) if hold.base_version else decoder.value(hold.private())
    return value


def _compacted(snapshot: Snapshot) -> Any:
    """Return a FrozenDict that consists of changes of another version as one table, in private memory."""
    return compacted(snapshot.value)


def _opened(snapshot: Snapshot, arrays: bool = False) -> tuple[_core.Hold, Decoder]:
    hold = snapshot._held()
    return hold, snapshot._attached.decoder(hold, snapshot._allow_pickle, arrays=arrays)


def decoder_of(hold: _core.Hold, *, arrays: bool = False) -> Decoder:
    """Return the decoder of a pinned version, which reads every version of the same structure. Raises FormatError if
    the version's schema is damaged."""
    return Decoder(schema_of(hold), hold.nbytes, arrays=arrays)


# -- writing


def publish_with_extra(
    value: T,
    extra: Any = None,
    *,
    name: str | None = None,
    sizes: tuple[int, int, int] = (256, 64, 4),
    tolerant: bool = False,
) -> Publisher[T]:
    """Open a channel as untorn.publish() does, with ``extra`` beside the value (None for nothing).

    Args:
        value: as for untorn.publish(), copied.
        extra: a second such value.
        name: of the channel; None for an anonymous one.
        sizes: max_readers, max_slots and slots, as for untorn.publish().
        tolerant: warn, rather than raise BrokenChannelError, when another channel gets this one's name.
    """
    return publish_tree(Tree.of(value, extra), name=name, directory=None, sizes=sizes, tolerant=tolerant)


def update_with_extra(publisher: Publisher, value: Any, extra: Any, *, timeout_s: float = FREE_SLOT_TIMEOUT_S) -> int:
    """Publish ``value``, and ``extra`` beside it, as the next version; return its number. Blocks and raises as
    Publisher.update() does."""
    tree = Tree.of(value, extra)
    return publisher._write("update", lambda versions: versions.publish(tree, timeout_s))


def update_leaves(publisher: Publisher, leaves: Mapping[int, Any], *, timeout_s: float = FREE_SLOT_TIMEOUT_S) -> int:
    """Publish the next version, in which only these leaves have new values; return its number. It costs these leaves.

    Args:
        publisher: of the channel.
        leaves: index of a leaf -> new value, copied, of the same dtype and shape. Leaves are counted as flatten() lists
            them, those of the value first, then those beside it.
        timeout_s: as for Publisher.update(), which blocks and raises the same.
    """
    return publisher._write("update", lambda versions: versions.rewrite(leaves, timeout_s))


def look_after_name(publisher: Publisher) -> None:
    """Restore a named channel's files if they were removed, as each update does, at most once in a while. For a channel
    whose versions are written by others. Raises what Publisher.update() does for a channel that lost its name."""
    publisher._look_after_name()


# -- versions as bytes


def raw_version(snapshot: Snapshot) -> memoryview:
    """Return the bytes of the whole version, with what lies beside the value: a read-only view of shared memory, which
    pins the version. With ``snapshot.version`` they are what another channel needs to get the same version.

    The bytes name no address and no file, and so mean the same in every process and on every machine of the same byte
    order. They also state the version's number and the time at which it was published, but a channel that receives them
    sets its own. A FrozenDict that consists of changes of an older version is copied, as a whole one. Does not block.
    Raises ClosedError after Snapshot.close().

    Example:
        >>> import numpy as np, untorn
        >>> weights = untorn.publish({"w": np.zeros(2)})
        >>> with weights.subscriber().snapshot() as snapshot:
        ...     copy = publish_raw(raw_version(snapshot), 7)
        >>> copy.version, copy.subscriber().snapshot().value
        (7, {'w': array([0., 0.])})
        >>> weights.close(), copy.close()
        (None, None)
    """
    hold = snapshot._held()
    if not hold.base_version:
        return memoryview(hold).toreadonly()
    return whole_version(_compacted(snapshot), hold.version, hold.published_ns)


def publish_raw(
    raw: bytes | bytearray | memoryview,
    version: int,
    *,
    name: str | None = None,
    sizes: tuple[int, int, int] = (256, 64, 4),
    tolerant: bool = False,
) -> Publisher:
    """Open a channel as publish_with_extra() does, whose first version has these bytes and this number.

    Args:
        raw: the bytes of a version, as raw_version() returns them; copied.
        version: its number, from 1 on.
        name, sizes, tolerant: as for publish_with_extra().

    Raises what untorn.publish() does; FormatError if these are not the bytes of a version; ValueError if the channel of
    a dead publisher has this name, and a version of this number or a greater one. Then nothing is published.
    """
    given = memoryview(raw)
    return publish_received(
        lambda memory: _core.copy(memory, 0, given), given.nbytes, version, name=name, sizes=sizes, tolerant=tolerant
    )


def update_raw(
    publisher: Publisher, raw: bytes | bytearray | memoryview, version: int, *, timeout_s: float = FREE_SLOT_TIMEOUT_S
) -> int:
    """Publish these bytes as the next version, with this number, and return the number.

    Args:
        publisher: of the channel.
        raw: the bytes of a version, as raw_version() returns them; copied.
        version: its number, greater than that of the newest version.
        timeout_s: as for Publisher.update(), which blocks and raises the same.

    Raises also FormatError if these are not the bytes of a version, and ValueError if the number is not greater. Then
    nothing is published.
    """
    given = memoryview(raw)
    with receive_raw(publisher, given.nbytes, version, timeout_s=timeout_s) as memory:
        _core.copy(memory, 0, given)
    return version


def receive_raw(
    publisher: Publisher, nbytes: int, version: int, *, timeout_s: float = FREE_SLOT_TIMEOUT_S
) -> AbstractContextManager[memoryview, Literal[False]]:
    """Write the next version in place, as bytes: yield the memory for all of it, and publish it unless the block raises
    an error.

    Args:
        publisher: of the channel. Other threads wait meanwhile when they want to publish.
        nbytes: the size of the version, which is that of the memory. Its sender decides about it: check it before.
        version: as for update_raw(), as is ``timeout_s``.

    The memory has arbitrary bytes at first. It is released at the end of the block. Raises what update_raw() does.

    Example:
        >>> import untorn
        >>> source, target = untorn.publish([1, 2]), untorn.publish([])
        >>> raw = raw_version(source.subscriber().snapshot())
        >>> with receive_raw(target, len(raw), 9) as memory:
        ...     memory[:] = raw  # or socket.recv_into(memory)
        >>> target.version, target.subscriber().snapshot().value
        (9, [1, 2])
        >>> source.close(), target.close()
        (None, None)
    """
    return _core.Block(publisher._receive(nbytes, version, timeout_s))


def learn_structure(publisher: Publisher) -> None:
    """Make a channel whose newest version came as bytes accept update_leaves() for versions of this structure. Raises
    ValueError if the version is not laid out as publish_with_extra() would do it here.

    Example:
        >>> import numpy as np
        >>> source = publish_with_extra({"w": np.zeros(2), "b": np.ones(1)})
        >>> with source.subscriber().snapshot() as snapshot:
        ...     copy = publish_raw(raw_version(snapshot), 7)
        >>> learn_structure(copy)
        >>> update_leaves(copy, {1: np.full(1, 5.0)})
        8
        >>> copy.close(), source.close()
        (None, None)
    """
    with publisher.subscriber() as reader, reader.snapshot() as newest:
        hold, decoder = _opened(newest)
        _versions(publisher).learn(Tree.of(decoder.value(hold), decoder.extra(hold)))


# -- beside the publisher


def attach_writer(address: Address) -> _core.Attachment:
    """Attach to the channel at this address, to read its versions and to write some beside its publisher. Raises as
    untorn.subscribe() does."""
    return open_channel(address.places, address.label, _core.WRITER, id=address.id)


def attachment_of(publisher: Publisher) -> _core.Attachment:
    """Return the core's side of an open channel. Raises ClosedError after Publisher.close()."""
    return _versions(publisher).attachment


def log_news(publisher: Publisher) -> None:
    """Log that the channel grew, or whose slots became free, since the last call. Raises ClosedError as above."""
    log_channel(attachment_of(publisher), publisher._label)


def newest_nbytes(publisher: Publisher) -> int:
    """Return the capacity of the newest version's slot, in bytes. Maps nothing."""
    attachment = attachment_of(publisher)
    return next(capacity for slot, _, capacity, _, _ in attachment.slots() if slot == attachment.latest_slot)


def no_slot_error(publisher: Publisher, timeout_s: float) -> CapacityError:
    """Return the error for a channel whose slots were all held during this time; it names the holders."""
    return _versions(publisher).no_slot(timeout_s)


def _versions(publisher: Publisher) -> Versions:
    return publisher._versions
