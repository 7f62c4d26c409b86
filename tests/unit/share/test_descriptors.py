"""With the standard streams closed, nothing that untorn keeps open has the numbers 0, 1 and 2, so that what a library
writes to the standard error reaches nobody's memory."""

import contextlib
import errno
import os
import pickle
import socket
import subprocess
import sys
import textwrap

import numpy as np
import pytest

import untorn
from helpers import start
from untorn.cli.gc import collect
from untorn.descriptors import keep, keep_socket, opener, standard_streams
from untorn.share import opening
from untorn.share.inspect import ChannelView, files_of


def low() -> list[str]:
    """Return what the three numbers lead to, of those that are open."""
    found = []
    for fd in range(3):
        with contextlib.suppress(OSError):
            os.fstat(fd)
            found.append(f"{fd}: {os.readlink(f'/proc/self/fd/{fd}')}")
    return found


def closed(check):
    """The body of a child with its standard streams closed: check(*args) says what is wrong, or nothing."""

    def body(pipe, *args):
        sys.stdin = sys.stdout = sys.stderr = None
        for fd in range(3):
            os.close(fd)
        wrong = check(*args)
        pipe.put([*(wrong or []), *low()])

    return body


def scribble() -> None:
    """Write to the three numbers as C libraries do, whether they are open or not."""
    for fd in range(3):
        with contextlib.suppress(OSError):
            os.write(fd, b"warning: something has happened\n" * 200)


def use(publisher, reader) -> list[str]:
    """Return what is wrong with a channel after all that is written to the three numbers."""
    wrong = low()
    before = reader.snapshot()
    expected = before.value["x"].copy()
    scribble()
    if not np.array_equal(before.value["x"], expected):
        wrong.append("a snapshot has changed")
    version = publisher.update({"x": np.ones(4096)})
    scribble()
    if reader.snapshot().value["x"].sum() != 4096 or reader.snapshot().version != version:
        wrong.append("the next version is not whole")
    return wrong


def _anonymous():
    with untorn.publish({"x": np.arange(4096.0)}) as publisher:
        return use(publisher, publisher.subscriber())


def _named(folder, tmpfile):
    if not tmpfile:  # a file system that has no nameless files
        real = os.open

        def without(path, flags, *args, **kwargs):
            if flags & os.O_TMPFILE == os.O_TMPFILE:
                raise OSError(errno.EOPNOTSUPP, "no nameless files here")
            return real(path, flags, *args, **kwargs)

        os.open = without
    with untorn.publish({"x": np.arange(4096.0)}, name="c", directory=folder) as publisher:
        wrong = use(publisher, untorn.subscribe(folder / "c"))
        with ChannelView.open(files_of(f"{folder}/c")) as view:
            wrong += low()
            assert view.state().version == 2
    with untorn.publish({"x": np.arange(4096.0)}, name="c", directory=folder, durable=True) as publisher:
        wrong += use(publisher, pickle.loads(pickle.dumps(untorn.subscribe(folder / "c"))))
    collect(folder)
    return wrong


def _handed_over(reader):
    snap = reader.snapshot()
    wrong = low()
    scribble()
    return wrong + ([] if (snap.value == 7).all() else ["the snapshot has changed"])


def _forked():
    """A child's own description of the control file is opened while the parent forks."""
    with untorn.publish({"x": np.arange(4096.0)}) as publisher:
        reader = publisher.subscriber()
        kept = reader.snapshot().value["x"]
        reading, writing = (keep(fd) for fd in os.pipe())
        pid = os.fork()
        if pid == 0:
            wrong = low()
            scribble()
            same = np.array_equal(kept, np.arange(4096.0)) and np.array_equal(reader.snapshot().value["x"], kept)
            os.write(writing, repr(wrong if same else [*wrong, "changed"]).encode())
            os._exit(0)
        os.waitpid(pid, 0)
        found = os.read(reading, 10_000).decode()
        os.close(reading), os.close(writing)
        return use(publisher, reader) + ([] if found == "[]" else [f"child: {found}"])


@pytest.mark.parametrize("check", [_anonymous, _forked])
def test_anonymous_channels(check):
    with start(closed(check)) as child:
        assert child.get() == []


@pytest.mark.parametrize("tmpfile", [True, False])
def test_named_channels(tmp_path, tmpfile):
    with start(closed(_named), tmp_path, tmpfile) as child:
        assert child.get() == []


def test_a_channel_that_is_handed_over():
    with untorn.publish(np.full(1000, 7)) as publisher, start(closed(_handed_over), publisher.subscriber()) as child:
        assert child.get() == []
        assert (publisher.subscriber().snapshot().value == 7).all()


def _places():
    """Opened by numbers of /proc, of which each opens the lowest that is free."""
    with untorn.publish(1) as publisher:
        address = publisher.subscriber().address
        attachment = opening.open_channel(address.places, "x", untorn._core.READER, id=address.id)
        assert attachment.control_fd > 2 and attachment.data_fd > 2
        return low()


def test_a_place_in_proc():
    with start(closed(_places)) as child:
        assert child.get() == []


# -- a program that trains


PROGRAM = """
    import contextlib, os, pathlib, sys
    import numpy as np
    import untorn
    from untorn import Callback, CSVLogger

    report, folder = int(sys.argv[1]), sys.argv[2]
    found = []

    def low(where):
        for fd in range(3):
            with contextlib.suppress(OSError):
                os.write(fd, b"warning: something has happened\\n" * 200)
                is_at = os.readlink(f"/proc/self/fd/{fd}")
                if where == "after" or is_at != "/dev/null":  # meanwhile a checkpoint may be written, behind /dev/null
                    found.append(f"{where}: {fd} is {is_at}")

    def model(params, batch, rng):
        x, y = batch
        for fd in range(3):  # a worker's are open, and nobody's
            assert os.readlink(f"/proc/self/fd/{fd}") == "/dev/null", os.listdir("/proc/self/fd")
        print("worker", "x" * 100_000, flush=True)
        error = x @ params["w"] - y
        return float(error @ error), {"w": 2 * x.T @ error}

    class Look(Callback):
        def on_batch_end(self, batch, logs):
            low("step")

        def on_epoch_end(self, epoch, logs):
            low("epoch")

    def main():
        rng = np.random.default_rng(0)
        x = rng.normal(size=(64, 3))
        data = (x, x @ np.ones(3))
        with untorn.Trainer(
            model, {"w": np.zeros(3)}, optimizer=untorn.SGD(0.01), workers=2, name=os.path.basename(folder)
        ) as trainer:
            trainer.fit(data, epochs=2, batch_size=8, checkpoint_dir=folder,
                        callbacks=[Look(), CSVLogger(f"{folder}/log.csv")])
            low("after")
            weights = np.array(trainer.params["w"])
        from untorn.train.checkpoints.saver import newest
        assert newest(pathlib.Path(folder)) is not None
        os.write(report, repr([found, weights.tobytes().hex()]).encode())

    if __name__ == "__main__":
        try:
            main()
        except BaseException as error:
            os.write(report, repr([[f"{type(error).__name__}: {error}"], ""]).encode())
            raise
"""


def test_a_training_in_a_program_that_starts_without_standard_streams(tmp_path):
    """Its channels, board, checkpoints, files and sockets; and those of its workers, which may write what they like."""
    program = tmp_path / "program.py"
    program.write_text(textwrap.dedent(PROGRAM))
    folder = tmp_path / f"untorn-{os.getpid()}"
    folder.mkdir()
    reading, writing = os.pipe()
    try:
        command = ["/bin/sh", "-c", f'exec "$0" "$1" {writing} "$2" <&- >&- 2>&-', sys.executable, program, folder]
        code = subprocess.run(command, pass_fds=[writing], check=False).returncode
    finally:
        os.close(writing)
        with os.fdopen(reading) as file:
            report = file.read()
    found, weights = eval(report or "[['no report'], '']")
    assert (code, found) == (0, [])
    assert not np.array_equal(np.frombuffer(bytes.fromhex(weights)), np.zeros(3))
    assert (folder / "log.csv").read_text().count("\n") == 3


# -- the parts


def _kept(kind):
    wrong = []
    if kind == "file":
        fd = keep(os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC))
        if fd < 3 or os.get_inheritable(fd):
            wrong.append(f"descriptor {fd}")
    elif kind == "socket":
        for timeout_s in (None, 0.0, 1.5):
            made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            made.settimeout(timeout_s)
            kept = keep_socket(made)
            if kept.fileno() < 3 or kept.gettimeout() != timeout_s or kept.family != socket.AF_UNIX:
                wrong.append(f"{kept} from {made}")
            if keep_socket(kept) is not kept:
                wrong.append("it was moved twice")
            kept.close()
    elif kind == "open":
        with open(os.devnull, "r+b", opener=opener) as file:
            if file.fileno() < 3 or os.get_inheritable(file.fileno()):
                wrong.append(f"{file}")
    else:
        for inherited in (False, True):
            with standard_streams(inherited=inherited):
                if low() != [f"{fd}: /dev/null" for fd in range(3)]:
                    wrong.append(str(low()))
                if [os.get_inheritable(fd) for fd in range(3)] != [inherited] * 3:
                    wrong.append("inherited")
                fd = os.open(os.devnull, os.O_RDWR)
                if fd < 3:
                    wrong.append(f"descriptor {fd} inside")
                os.close(fd)
                os.dup2(os.memfd_create("mine"), 1)  # the program opens its output just now
            if low() != ["1: /memfd:mine (deleted)"]:
                wrong.append(str(low()))
            os.close(1)
    return wrong


@pytest.mark.parametrize("kind", ["file", "socket", "open", "streams"])
def test_numbers_that_may_be_kept(kind):
    with start(closed(_kept), kind) as child:
        assert child.get() == []


def test_where_the_streams_are_open_nothing_changes():
    before = [os.fstat(fd) for fd in range(3)]
    with standard_streams(inherited=True):
        assert [os.fstat(fd) for fd in range(3)] == before
    reading, writing = os.pipe()
    assert keep(reading) == reading
    os.close(reading), os.close(writing)
