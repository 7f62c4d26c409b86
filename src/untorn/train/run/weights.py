"""The weights of a training: the channel that workers read, and the channel that they write the next version to.

::

    fused optimizer      workers ── next weights ──> channel ──> workers, subscribers, checkpoints
    another library's    workers ── summed gradients ──> target ──> ServerStepper ── next weights ──> channel ──> ...

Every version holds the optimizer's state beside the weights, so a training can continue from a single version.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self, TypeAlias

import numpy as np

from untorn import _core
from untorn.board import Board
from untorn.errors import CapacityError
from untorn.share import Publisher, Snapshot, Subscriber, lowlevel
from untorn.share.lowlevel import FREE_SLOT_TIMEOUT_S, flatten, meaning, shortage
from untorn.train.checkpoints import checkpoint
from untorn.train.models.base import Parts
from untorn.train.optim.base import Optimizer
from untorn.train.run.parameter_layout import ABSENT, ParameterLayout

__all__ = ["Weights", "WeightsForm", "copy_weights"]

Blob: TypeAlias = bytes | bytearray | memoryview

#: the reader rows, the slots, and the slots that keep their memory, of the channel of the weights
_CHANNEL_SIZES = (1024, 64, 8)
#: the slots reserved for training, which other subscribers cannot hold
_RESERVED_SLOTS = 24
#: the first version of a received channel for summed gradients; a job has at most 2**32 steps
_FIRST_SUMS = 1 << 32
_RETRY_S = 0.001


@dataclass(frozen=True)
class WeightsForm:
    """What a copy of the weights on another machine needs to know of them. It is pickled.

    Attributes:
        layout: the layout of the parameters in a version and in a gradient buffer.
        untrained: the number of kept parameters and the number of model buffers, which are not trained.
    """

    layout: ParameterLayout
    untrained: tuple[int, int]


class Weights:
    """The newest weights, with the optimizer's state beside them, and the room for the next version.

    Args:
        form: the form of the weights.
        channel: the channel of the weights, which this object owns.
        target: the channel that a board writes to, if it is another one: a channel for summed gradients.
        shown: see Parts.

    Attributes:
        channel, form: the arguments.
        target: the channel that a board writes to.
    """

    def __init__(
        self,
        form: WeightsForm,
        channel: Publisher,
        target: Publisher | None,
        shown: Callable[[Any], Any] | None = None,
    ) -> None:
        self.form = form
        self.channel = channel
        self.target = channel if target is None else target
        self._shown = shown
        lowlevel.attachment_of(channel).reserve_slots(_RESERVED_SLOTS)
        self._reader = channel.subscriber()

    @classmethod
    def begin(cls, parts: Parts, optimizer: Optimizer, name: str | None, *, shards: int) -> Self:
        """Publish the first version.

        Args:
            parts: the initial values.
            optimizer: provides the initial state, and determines whether workers write weights or sums.
            name: publish the weights under this name.
            shards: the number of shards, which arrays that are carried are cut into.
        """
        kept, buffers = len(parts.kept), len(parts.buffers)
        state = optimizer.state_for(parts.trained)
        sums = {ABSENT: np.zeros(len(flatten(parts.trained)[1]), np.uint8)}
        cut: dict[str, Any] = {
            "buffers": buffers,
            "carried": parts.carried,
            "shards": shards,
            "tables": parts.tables,
            "by_rows": optimizer.by_rows,
        }
        if optimizer.server_steps:
            layout = ParameterLayout.of(parts.summed, sums, sums=True, **cut)
        else:
            layout = ParameterLayout.of(parts.published, state, kept=kept, groups=optimizer.assignment, **cut)
        sizes = _CHANNEL_SIZES
        channel = lowlevel.publish_with_extra(parts.published, state, name=name, sizes=sizes, tolerant=True)
        target = lowlevel.publish_with_extra(parts.summed, sums, sizes=sizes) if optimizer.server_steps else None
        return cls(WeightsForm(layout, (kept, buffers)), channel, target, parts.shown)

    @classmethod
    def received(cls, form: WeightsForm, raw: Blob, version: int, raw_target: Blob | None) -> Self:
        """Publish a version that another process has sent, with its number.

        Args:
            form: the form of the weights.
            raw: the bytes of the version.
            version: its number.
            raw_target: the bytes of any version of the channel for summed gradients, if there is one.
        """
        channel = lowlevel.publish_raw(raw, version, sizes=_CHANNEL_SIZES)
        target = None
        if raw_target is not None:  # its numbers mean nothing elsewhere, and must leave room for those of a job's steps
            target = lowlevel.publish_raw(raw_target, _FIRST_SUMS, sizes=_CHANNEL_SIZES)
            lowlevel.learn_structure(channel)  # the server publishes the parts that its steps change
        return cls(form, channel, target)

    @property
    def layout(self) -> ParameterLayout:
        """The layout of the parameters in a version and in a gradient buffer."""
        return self.form.layout

    @property
    def untrained(self) -> tuple[int, int]:
        """The number of kept parameters and the number of model buffers, which are not trained."""
        return self.form.untrained

    @property
    def version(self) -> int:
        """The version of the newest weights."""
        return self.channel.version

    def snapshot(self) -> Snapshot:
        """Return the newest weights, without a copy. Its value is what others see; lowlevel.read_value reads arrays."""
        return self._reader.snapshot()

    def subscriber(self) -> Subscriber:
        """Return a subscriber to the weights."""
        return self.channel.subscriber()

    def copy(self) -> Any:
        """Return a writable copy of the newest weights."""
        with self.snapshot() as newest:
            return lowlevel.copy_value(newest, arrays=True)

    def replace(self, fill: Callable[[Any, Any], None]) -> None:
        """Call ``fill`` with a writable copy of the newest weights and optimizer state, and publish the copy. If
        ``fill`` raises, nothing is published."""
        with self.snapshot() as newest:
            params, state = lowlevel.copy_with_extra(newest, arrays=True)
        fill(params, state)
        lowlevel.update_with_extra(self.channel, self._shown(params) if self._shown else params, state)

    def make_room(self, board: Board) -> None:
        """Make room for the next version, after the workers have found no free slot in their target. Raises
        CapacityError if there is no memory, or if readers hold every slot for too long."""
        attachment = lowlevel.attachment_of(self.target)
        nbytes = lowlevel.newest_nbytes(self.target)
        deadline = time.monotonic() + FREE_SLOT_TIMEOUT_S
        while True:
            try:
                attachment.grow(nbytes)
            except (_core.StatusError, OSError) as error:
                if reason := shortage(error):
                    raise CapacityError(
                        f"the weights: no memory for one more version of {nbytes:,} bytes ({reason}); "
                        "let old snapshots of the weights go"
                    ) from None
                if isinstance(error, OSError):
                    raise
                if error.args[0] != "no_slot":
                    raise meaning(error, "weights") from None
                if time.monotonic() > deadline:
                    raise lowlevel.no_slot_error(self.target, FREE_SLOT_TIMEOUT_S) from None
                time.sleep(_RETRY_S)
                continue
            board.slot_ready()
            lowlevel.log_news(self.target)
            return

    def no_mapping(self, board: Board) -> CapacityError:
        """Return the error for a step that every worker has refused repeatedly."""
        nbytes = lowlevel.newest_nbytes(self.target)
        return CapacityError(
            f"the weights: no worker of {board.active} can map a version of {nbytes:,} bytes, although each has tried "
            f"repeatedly ({os.strerror(board.refused)}); look at the limits of a process (ulimit -v, vm.max_map_count) "
            "and at what the model keeps in memory"
        )

    def look_after_name(self) -> None:
        """Restore the files of the weights' name if they were removed. Most calls return without looking."""
        lowlevel.look_after_name(self.channel)

    def close(self) -> None:
        """Close the channels, and remove the name of the weights."""
        self._reader.close()
        self.channel.unlink()
        self.channel.close()
        if self.target is not self.channel:
            self.target.close()


def copy_weights(target: Any, value: Any) -> None:
    """Copy a tree of arrays into a writable one. Raises ValueError, naming the leaf, if they differ in structure,
    shape or dtype; then nothing is changed."""
    targets, values = checkpoint.named_arrays("params", target), checkpoint.named_arrays("params", value)
    for name in sorted(targets.keys() ^ values.keys()):
        there, here = ("lack", "has") if name in targets else ("have", "lacks")
        raise ValueError(f"params: the new weights {there} {_short(name)}, which this trainer {here}")
    arrays = {name: np.asarray(leaf) for name, leaf in values.items()}
    for name, array in arrays.items():
        wanted = targets[name]
        if (array.dtype, array.shape) != (wanted.dtype, wanted.shape):
            raise ValueError(
                f"params: {_short(name)}: expected {wanted.dtype} of shape {wanted.shape}, "
                f"found {array.dtype} of shape {array.shape}"
            )
    for name, array in arrays.items():
        np.copyto(targets[name], array)


def _short(name: str) -> str:
    return name.removeprefix("params/")
