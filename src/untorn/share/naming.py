"""Keep the name of a published channel, even if its files are removed.

systemd removes a user's files in /dev/shm when the last session ends (RemoveIPC), and so do cleaners of temporary
files. The publisher notices at its next version, and attached readers are not affected. Files that have lost their last
name cannot get one again, so new readers are directed to the channel by a signpost::

    NAME.control, NAME.data        new files, without a version, locked by the publisher: a signpost
        page 0 ── {"pid", "control", "data", "id"} ──> /proc/<pid>/fd/...: the channel, as before

A process that tries to publish under the name finds the signpost's lock taken. Without its publisher a signpost is a
channel without a version, which readers ignore and the next publisher removes.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
import warnings
from pathlib import Path
from typing import final

from untorn import _core
from untorn.errors import BrokenChannelError, CapacityError
from untorn.share import opening, places, storage
from untorn.share.guard import is_there
from untorn.share.notes import read_note, write_note
from untorn.share.places import Address, Files

__all__ = ["NameKeeper", "signpost_target"]

#: how often a publisher checks where its names lead. It notices at once if the data file has lost its last name
LOOK_INTERVAL_S = 0.2
#: how many processes can read a signpost at the same time, each for a moment
_SIGNPOST_READERS = 1000
#: whose frames lie between a warning and the code that it is about
_INSIDE = (os.fspath(Path(__file__).parents[1]) + os.sep, contextlib.__file__)

_CAUSE = (
    "its files were removed while it is published: systemd does that, with RemoveIPC=yes, when a user's last session "
    "ends, and so do cleaners of temporary files"
)
_PREVENT = "to prevent it, run `loginctl enable-linger`, set RemoveIPC=no in logind.conf, or use directory= elsewhere"


@final
class NameKeeper:
    """Looks after the name of one publisher's channel. The caller ensures that only one thread does at a time.

    ``tolerant``: if another channel has the name, warn instead of raising an error.
    """

    def __init__(self, files: Files, attachment: _core.Attachment, *, durable: bool, tolerant: bool) -> None:
        self._files = files
        self._attachment = attachment
        self._durable = durable
        self._tolerant = tolerant
        self._signpost: _core.Attachment | None = None
        self._look_at = time.monotonic() + LOOK_INTERVAL_S
        self._ended = False
        # another thread or a signal handler may end it in the middle of look()
        self._unlinked = self._closed = False
        attachment.set_named(True)

    def looks(self) -> bool:
        """Return whether look() would check the names now."""
        return not self._ended and time.monotonic() >= self._look_at

    def look(self) -> None:
        """Check now and then that the names still lead to the channel, and restore() them if they do not."""
        if not self.looks():
            return
        self._look_at = time.monotonic() + LOOK_INTERVAL_S
        try:
            kept = self._leads_here()
        except OSError:
            return  # this process may not look there, so it is not known that the names are gone
        if not kept:
            self.restore()

    def restore(self) -> None:
        """Make a channel that has lost its names findable again, and say so in a RuntimeWarning.

        Raises BrokenChannelError, and changes nothing, if another channel has the name, or if a durable channel's files
        are gone.
        """
        files, label = self._files, self._files.label
        if self._unlinked or self._closed:
            return
        try:
            if self._leads_here():  # a file system that does not count names and reports 0 for every file
                self._attachment.set_named(False)
                return
        except OSError as error:
            self._give_up()
            _warn(f"channel {label!r}: {_CAUSE}. {_not_found(error)}; {_PREVENT}")
            return
        if files.exists() and not files.is_same_file(self._named().control_fd):
            self._fail(
                f"channel {label!r} has lost its name: {_CAUSE}, and another channel has been made under it. Attached "
                "readers keep reading this one, new ones read the other; close this publisher, and have only one "
                f"program publish under that name; {_PREVENT}"
            )
            return
        if is_there(files.data) and not files.is_same_data(self._named().data_fd):
            self._fail(
                f"channel {label!r} has lost its data file: {files.data!r} is another file now, which another program "
                "put there. Attached readers keep the channel, new ones cannot read it; move that file away"
            )
            return
        if self._durable:
            self._fail(
                f"channel {label!r} is no longer durable: its files were removed, so nothing of it stays on the disk "
                "when its processes end; publish again"
            )
            return
        state = self._find_again()
        if self._unlinked:
            self.unlink()
        elif self._closed:
            self.close()
        else:
            _warn(f"channel {self._files.label!r}: {_CAUSE}. {state}; {_PREVENT}")

    def _fail(self, message: str) -> None:
        if not self._tolerant:
            raise BrokenChannelError(message)
        self._give_up()
        _warn(message)

    def _find_again(self) -> str:
        """Make the channel findable again. Returns a sentence about its name."""
        try:
            if self._files.folder == places.default_path():
                places.default_directory()  # systemd removes it as well
            if self._files.is_same_file(self._named().control_fd):
                self._files.unlink()  # one of the two names exists
            if self._signpost is None and self._is_linked() and self._take_back():
                return "It has its name back"
            self._signpost = _put_signpost(self._files, self._attachment)
        except (OSError, CapacityError) as error:
            self._give_up()
            return _not_found(error)
        self._attachment.set_named(False)  # it cannot get a name; from here on look() checks the signpost
        if self._signpost is None:
            self._look_at = 0.0  # another process was faster; the next version finds out
        return "New readers find it again, for as long as this publisher lives"

    def _leads_here(self) -> bool:
        own = self._named()
        return self._files.is_same_file(own.control_fd) and self._files.is_same_data(own.data_fd)

    def _named(self) -> _core.Attachment:
        """The channel that the names should lead to."""
        return self._signpost or self._attachment

    def _is_linked(self) -> bool:
        """Return whether both files still have a name somewhere, without which they cannot get another."""
        return all(os.fstat(fd).st_nlink > 0 for fd in (self._attachment.control_fd, self._attachment.data_fd))

    def _take_back(self) -> bool:
        return storage.give_names(self._files, self._attachment, durable=False)

    def _give_up(self) -> None:
        self._ended = True
        self._attachment.set_named(False)

    def unlink(self) -> None:
        """Give up the publisher's name."""
        self._unlinked = True
        self._give_up()
        if self._files.is_same_file(self._named().control_fd):
            self._files.unlink()

    def close(self) -> None:
        """Close with the publisher. A channel that can outlive it keeps the name; a signpost is removed."""
        self._closed = True
        self._give_up()
        if self._signpost is not None:
            with contextlib.suppress(OSError):  # the next publisher removes it
                if self._files.is_same_file(self._signpost.control_fd):
                    self._files.unlink()
            self._signpost.retire()


def _not_found(why: Exception) -> str:
    return f"New readers cannot find it any more ({why}); those that are attached keep it"


def _put_signpost(files: Files, attachment: _core.Attachment) -> _core.Attachment | None:
    """Give the name to a signpost to this channel. Returns None if another channel has the name."""
    made = opening.attach(*storage.nameless(files, _SIGNPOST_READERS, 2, 1), _core.PUBLISHER, files.label)
    target = {
        "pid": os.getpid(),
        "control": attachment.control_fd,
        "data": attachment.data_fd,
        "id": attachment.id.hex(),
    }
    write_note(made, target)
    return made if storage.give_names(files, made, durable=False) else None


def signpost_target(control_fd: int, label: str) -> Address | None:
    """Return the address in a signpost; None if the channel is not one."""
    target = read_note(control_fd)
    try:
        pid, control, data = (int(target[key]) for key in ("pid", "control", "data"))
        id = bytes.fromhex(target["id"])
    except (ValueError, TypeError, LookupError, OverflowError):
        return None
    if len(id) != 16:
        return None
    return Address(id, ((f"/proc/{pid}/fd/{control}", f"/proc/{pid}/fd/{data}"),), label)


def _warn(message: str) -> None:
    """Issue a warning that appears to come from the caller of this package."""
    level, frame = 2, sys._getframe(1)  # noqa: SLF001 (documented)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_INSIDE):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, RuntimeWarning, stacklevel=level)
