"""Descriptors that somebody closed behind untorn's back, and whose numbers are other files' by now.

Daemonisers do that. The channel's calls then fail, and say why; no other file is written to, locked or closed, and the
locks of another file are no word about who lives.
"""

import errno
import os
import pickle
import shutil

import numpy as np
import pytest

import untorn
from helpers import descriptors, start
from untorn import _core

PRECIOUS = b"precious" * 1024
CAUSE = "something in this process closed the channel's descriptors"


def take_over(path, numbers) -> list[int]:
    """Let the numbers lead to a file of the user's own."""
    with open(path, "wb") as file:
        file.write(PRECIOUS)
    mine = os.open(path, os.O_RDWR)
    for fd in numbers:
        os.dup2(mine, fd)
    os.close(mine)
    return list(numbers)


def numbers_of(*attachments) -> list[int]:
    return [fd for attachment in attachments for fd in (attachment.control_fd, attachment.data_fd)]


def wrong_of(path, numbers) -> list[str]:
    """Return what has happened to the user's file and descriptors."""
    wrong = [] if path.read_bytes() == PRECIOUS else ["the user's file has changed"]
    for fd in numbers:
        try:
            if not os.path.samestat(os.fstat(fd), os.stat(path)):
                wrong.append(f"{fd} leads elsewhere")
        except OSError:
            wrong.append(f"{fd} is closed")
    return wrong


def published(folder, named, **options):
    where = {"name": "chan", "directory": folder} if named else {}
    return untorn.publish({"x": np.arange(4096.0)}, **where, **options)


def _edit(publisher):
    with publisher.edit() as value:
        value["x"][:] = 0


def _calls(publisher, reader):
    return (
        lambda: publisher.update({"x": np.zeros(2)}),
        lambda: publisher.update({"x": np.zeros(10**6)}),
        lambda: publisher.patch({"x": np.zeros(4096)}),
        lambda: _edit(publisher),
        publisher.readers,
        reader.publisher_alive,
        lambda: reader.wait(1, 5),
        lambda: reader.wait(1),
        lambda: pickle.dumps(publisher.subscriber()),
    )


def _both_sides(pipe, folder, named):
    publisher = published(folder, named)
    reader = untorn.subscribe(publisher)
    view = reader.snapshot().value["x"]
    numbers = take_over(folder / "mine", numbers_of(publisher._attachment, reader._attached.attachment))
    causes = []
    for call in _calls(publisher, reader):
        with pytest.raises(OSError) as caught:
            call()
        causes.append((caught.value.errno, CAUSE in str(caught.value)))
    child = os.fork()
    if child == 0:
        os._exit(0 if view.sum() == np.arange(4096.0).sum() and not wrong_of(folder / "mine", numbers) else 1)
    forked = os.waitpid(child, 0)[1]
    whole = bool((reader.snapshot().value["x"] == view).all() and (view == np.arange(4096.0)).all())
    publisher.close()
    reader.close()
    del publisher, reader, view, call
    pipe.put((causes, forked, whole, wrong_of(folder / "mine", numbers)))


@pytest.mark.parametrize("named", [False, True], ids=["anonymous", "named"])
def test_a_file_that_has_a_channels_descriptor_is_left_alone(tmp_path, named):
    with start(_both_sides, tmp_path, named) as child:
        causes, forked, whole, wrong = child.get()
        assert set(causes) == {(errno.EBADF, True)}
        assert forked == 0
        assert whole
        assert wrong == []
        assert child.join() == 0


def _publish_without_locks(pipe, folder):
    publisher = published(folder, True, max_slots=2)
    pipe.put()
    pipe.get()
    take_over(folder / "mine", [publisher._attachment.control_fd])
    errors = []
    for value in range(6):
        try:
            publisher.update({"x": np.full(4096, float(value))}, timeout_s=0)
        except OSError as error:
            errors.append(CAUSE in str(error))
    pipe.put(errors)


def test_locks_of_another_file_do_not_make_a_living_reader_dead(tmp_path):
    with start(_publish_without_locks, tmp_path) as child:
        child.get()
        view = untorn.subscribe(tmp_path / "chan").snapshot().value["x"]
        child.put()
        errors = child.get()
        assert errors == [True] * 5  # the first has a free slot
        assert (view == np.arange(4096.0)).all()
        del view
        assert child.join() == 0


def _read_without_locks(pipe, folder):
    reader = untorn.subscribe(folder / "chan")
    reader.snapshot()
    take_over(folder / "mine", numbers_of(reader._attached.attachment))
    with pytest.raises(OSError, match=CAUSE):
        reader.publisher_alive()
    again = untorn.subscribe(folder / "chan")  # new descriptors
    pipe.put((again.publisher_alive(), again.snapshot().value["x"].sum()))


def test_locks_of_another_file_do_not_make_a_living_publisher_dead(tmp_path):
    with published(tmp_path, True) as publisher, start(_read_without_locks, tmp_path) as child:
        assert child.get() == (True, np.arange(4096.0).sum())
        assert child.join() == 0
        publisher.unlink()


def test_a_copy_of_a_channels_files_is_another_channel_however_it_came_here(tmp_path):
    with published(tmp_path, True) as publisher:
        one = publisher.subscriber()
        one.snapshot()
        for part in ("control", "data"):
            shutil.copy(tmp_path / f"chan.{part}", tmp_path / f"copy.{part}")
        with untorn.publish("the copy's", name="copy", directory=tmp_path) as other:
            for reader in (untorn.subscribe(tmp_path / "copy"), other.subscriber()):
                sent = pickle.loads(pickle.dumps(reader))
                assert sent.snapshot().value == "the copy's"
                sent.close()
            sent = pickle.loads(pickle.dumps(one))
            assert sent.snapshot().value["x"].sum() == np.arange(4096.0).sum()
            sent.close()


def _no_descriptor_left(pipe, folder):
    import resource

    path = folder / "chan"
    sent = pickle.dumps(untorn.subscribe(path))
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    messages = []
    for call in (
        lambda: untorn.publish(1),
        lambda: untorn.publish(1, name="other", directory=folder),
        lambda: untorn.subscribe(path),
        lambda: pickle.loads(sent).snapshot(),
    ):
        free = [fd for fd in range(100) if fd not in descriptors()]
        for limit in free[:3]:  # at the first descriptor of the call, and at later ones
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
            try:
                call()
            except OSError as error:
                messages.append(str(error))
    pipe.put(messages)


def test_without_a_descriptor_left_the_error_says_which_limit(tmp_path):
    with published(tmp_path, True), start(_no_descriptor_left, tmp_path) as child:
        messages = child.get()
        assert len(messages) >= 4
        assert [message for message in messages if "ulimit -n" not in message] == []
        assert child.join() == 0


def _forks_with_what_it_owns(pipe, folder):
    owned = os.open(folder / "lock", os.O_RDWR | os.O_CREAT)
    _core.own_descriptor(owned)
    statuses = []
    for lost in (False, True):
        numbers = take_over(folder / "mine", [owned]) if lost else []
        child = os.fork()
        if child == 0:
            try:
                os.fstat(owned)
            except OSError:
                os._exit(1)
            os._exit(2 if wrong_of(folder / "mine", numbers) else 0)
        statuses.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    _core.own_descriptor_end(owned)
    pipe.put(statuses)


def test_a_forked_child_closes_its_parents_own_descriptors_and_no_others(tmp_path):
    (tmp_path / "mine").write_bytes(PRECIOUS)
    with start(_forks_with_what_it_owns, tmp_path) as child:
        assert child.get() == [1, 0]
        assert child.join() == 0
