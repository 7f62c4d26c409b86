"""A job's control socket: its answers, its access check, and that no client can block it.

A client here is a plain socket: its data is in the kernel when ``send`` returns, so one ``poll`` sees it.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import os
import socket
import threading
import time
import types
from collections.abc import Callable, Iterator

import pytest

import helpers
from untorn import control
from untorn.control import Control, addresses, client, is_running, protocol, running_jobs, server
from untorn.errors import BrokenChannelError, CapacityError, ChannelNotFoundError, FormatError, UntornError

ask = functools.partial(control.ask, timeout_s=helpers.WATCHDOG_S)


class Job:
    """Control handlers of a job with two workers."""

    def __init__(self) -> None:
        self.workers = 2
        self.nodes = 0
        self.answer: dict = {"step": 7}
        self.error: Exception | None = None
        self.calls: list = []

    def status(self) -> dict:
        self.calls.append("status")
        if self.error:
            raise self.error
        return self.answer

    def resize(self, workers: int) -> None:
        self.calls.append(workers)
        if self.error:
            raise self.error
        self.workers = workers

    def resize_nodes(self, nodes: int) -> None:
        self.calls.append(f"{nodes} nodes")
        if self.error:
            raise self.error
        self.nodes = nodes


@pytest.fixture
def job() -> Job:
    return Job()


@pytest.fixture
def listening(name) -> Iterator[Control]:
    with contextlib.closing(Control(name)) as opened:
        yield opened


@pytest.fixture
def later(monkeypatch) -> Callable[[], None]:
    """Advance the module's clock by more than the time that a client may be silent."""
    now = time.monotonic() + 2 * server.SILENCE_S
    clock = types.SimpleNamespace(monotonic=lambda: now, sleep=time.sleep)
    return lambda: monkeypatch.setattr(server, "time", clock)


class Client:
    """A connection that sends and receives bytes."""

    def __init__(self, name: str, said: bytes = b"") -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.connect(addresses.address_of(name))
        self.socket.setblocking(False)
        self.say(said)

    def say(self, said: bytes) -> None:
        self.socket.sendall(said)

    def heard(self) -> bytes:
        """Return the data that has arrived; fail if there is none."""
        return self.socket.recv(1_000_000)

    def answer(self) -> dict:
        """Return a complete answer, up to the end of the connection."""
        line = self.heard()
        assert line.endswith(b"\n")
        assert line.count(b"\n") == 1
        assert self.is_over()
        return json.loads(line)

    def is_over(self) -> bool:
        try:
            return self.socket.recv(1) == b""
        except ConnectionResetError:  # with unread data at the other end
            return True
        except BlockingIOError:
            return False

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()


@contextlib.contextmanager
def training(opened: Control, job: Job) -> Iterator[None]:
    """Run a thread with a loop that polls, as fit does."""
    over = threading.Event()

    def loop() -> None:
        while not over.wait(0.001):
            opened.poll(job)

    thread = threading.Thread(target=loop)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def request(**what: object) -> bytes:
    return json.dumps(what).encode() + b"\n"


# -- requests


def test_status_and_resize(name, listening, job):
    with training(listening, job):
        assert ask(name, {"do": "status"}) == {"step": 7}
        assert ask(name, {"do": "resize", "workers": 5}) == {"workers": 5, "was": 2}
        assert ask(name, {"do": "resize", "by": -2}) == {"workers": 3, "was": 5}
        assert ask(name, {"do": "resize", "by": 1}) == {"workers": 4, "was": 3}
        assert ask(name, {"do": "resize", "workers": 4}) == {"workers": 4, "was": 4}
    assert job.calls == ["status", 5, 3, 4]  # no work is done for a message of this size


def test_resizing_nodes(name, listening, job):
    job.nodes = 2
    with training(listening, job):
        assert ask(name, {"do": "resize", "nodes": 5}) == {"nodes": 5, "was": 2}
        assert ask(name, {"do": "resize", "nodes_by": -2}) == {"nodes": 3, "was": 5}
        assert ask(name, {"do": "resize", "nodes": 3}) == {"nodes": 3, "was": 3}
        assert ask(name, {"do": "resize", "by": 1}) == {"workers": 3, "was": 2, "nodes": 3}
        with pytest.raises(ValueError, match=r"has 3 nodes and keeps at least 1; found a request to remove 3"):
            ask(name, {"do": "resize", "nodes_by": -3})
        with pytest.raises(ValueError, match=r"has 3 workers on each node and keeps at least 1; found a request for 0"):
            ask(name, {"do": "resize", "workers": 0})
        job.error = CapacityError("no room")
        with pytest.raises(CapacityError, match="no room"):
            ask(name, {"do": "resize", "nodes": 9})
    assert job.calls == ["5 nodes", "3 nodes", 3, "9 nodes"]


@pytest.mark.parametrize("what", [{"nodes": 2}, {"nodes_by": 1}, {"nodes_by": -1}])
def test_a_job_of_one_machine_has_no_nodes(name, listening, job, what):
    with (
        training(listening, job),
        pytest.raises(ValueError, match=r"runs on this machine alone and has no nodes; .*engine='ray'"),
    ):
        ask(name, {"do": "resize"} | what)
    assert job.calls == []


def test_a_job_in_another_process(name):
    with helpers.start(train_until_told, name) as child:
        child.get()
        assert ask(name, {"do": "status"}) == {"pid": child.pid}
        assert name in running_jobs()
        child.kill()
    assert not is_running(name)  # the kernel has removed it without a close()
    with pytest.raises(ChannelNotFoundError):
        ask(name, {"do": "status"})


def train_until_told(pipe, name: str) -> None:
    job = Job()
    job.answer = {"pid": os.getpid()}
    with contextlib.closing(Control(name)) as opened:
        pipe.put()
        while not pipe.has_message():
            opened.poll(job)


@pytest.mark.parametrize("workers", [0, -3, 10**30 * -1])
def test_one_worker_stays(name, listening, job, workers):
    with training(listening, job), pytest.raises(ValueError, match="has 2 workers and keeps at least 1"):
        ask(name, {"do": "resize", "workers": workers})
    assert job.calls == []


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (ValueError("at most 4"), ValueError),
        (NotImplementedError("the serial engine has one"), NotImplementedError),
        (CapacityError("no memory"), CapacityError),
        (UntornError("something"), UntornError),
        (PermissionError("not that"), PermissionError),
    ],
)
def test_a_handlers_error_is_told_to_who_asked(name, listening, job, error, kind, caplog):
    job.error = error
    with training(listening, job):
        with pytest.raises(kind, match=str(error)):
            ask(name, {"do": "resize", "by": 1})
        job.error = None
        assert ask(name, {"do": "status"}) == {"step": 7}
    assert not caplog.records


def test_a_handlers_bug_is_logged_and_does_not_stop_training(name, listening, job, caplog):
    job.error = ZeroDivisionError("a bug")
    with training(listening, job), pytest.raises(UntornError, match="a bug"):
        ask(name, {"do": "status"})
    job.error, job.answer = None, {"step": object()}
    with training(listening, job):
        with pytest.raises(TypeError, match="not JSON"):
            ask(name, {"do": "status"})
        job.answer = {}
        assert ask(name, {"do": "status"}) == {}
    (record,) = caplog.records
    assert record.exc_info[0] is ZeroDivisionError


def test_an_interrupt_ends_training(name, listening, job):
    job.error = KeyboardInterrupt()  # type: ignore[assignment]
    with Client(name, request(do="status")), pytest.raises(KeyboardInterrupt):
        listening.poll(job)
    job.error = None
    with Client(name, request(do="status")) as client:
        listening.poll(job)
        assert client.answer() == {"step": 7}


def test_numbers_that_json_does_not_have_are_null(name, listening, job):
    job.answer = {"loss": float("nan"), "losses": [[1, float("inf")], [2, 0.5]], "metrics": {"norm": -float("inf")}}
    with training(listening, job):
        assert ask(name, {"do": "status"}) == {"loss": None, "losses": [[1, None], [2, 0.5]], "metrics": {"norm": None}}


# -- clients that misbehave


@pytest.mark.parametrize(
    "said",
    [
        b"hello\n",
        b"\n",
        b"\xff\xfe\n",
        b"[" * 4000 + b"\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"{}\n",
        b"3\n",
        request(do="stop"),
        request(do="status", more=1),
        request(do="resize"),
        request(do="resize", workers="3"),
        request(do="resize", workers=2.0),
        request(do="resize", workers=True),
        request(do="resize", by=None),
        request(do="resize", nodes=True),
        request(do="resize", nodes=1.5),
        request(do="resize", nodes=2, workers=2),
        request(do="resize", nodes_by="1"),
        request(do="resize", by=1, workers=3),
        b'{"do": "resize", "by": NaN}\n',
        b'{"do": "resize", "by": ' + b"9" * 4096,
    ],
)
def test_garbage_gets_an_error(name, listening, job, said):
    with Client(name, said) as client:
        listening.poll(job)
        answer = client.answer()
    assert answer["type"] == "ValueError"
    assert "expected" in answer["error"] or "a request is a line" in answer["error"]
    assert job.calls == []


@pytest.mark.parametrize("nbytes", [protocol.REQUEST_NBYTES + 1, 100_000])
def test_a_request_is_bounded(name, listening, job, nbytes):
    with Client(name, b"x" * nbytes) as client:
        listening.poll(job)
        assert "at most 4096 bytes" in client.answer()["error"]


def test_a_request_may_come_in_pieces(name, listening, job):
    with Client(name) as client:
        for byte in request(do="status")[:-1]:
            listening.poll(job)
            client.say(bytes([byte]))
            assert not client.is_over()
        client.say(b"\n")
        listening.poll(job)
        assert client.answer() == {"step": 7}


def test_silent_clients_are_dropped_and_others_served(name, listening, job, later):
    with Client(name) as client, Client(name, b'{"do": ') as slow:
        listening.poll(job)
        assert not client.is_over()
        with Client(name, request(do="status")) as other:
            listening.poll(job)
            assert other.answer() == {"step": 7}
        later()
        listening.poll(job)
        assert client.is_over()
        assert slow.is_over()


def test_a_request_that_came_while_the_job_was_busy_is_answered(name, listening, job, later):
    with Client(name) as client:
        listening.poll(job)
        client.say(request(do="status"))
        later()
        listening.poll(job)
        assert client.answer() == {"step": 7}


def test_a_handler_that_takes_its_time_is_no_clients_silence(name, listening, job, later):
    with Client(name) as client, Client(name, request(do="resize", by=1)) as other:
        job.resize = lambda workers: later()  # type: ignore[method-assign]
        listening.poll(job)
        assert other.answer() == {"workers": 3, "was": 2}
        client.say(request(do="status"))
        listening.poll(job)
        assert client.answer() == {"step": 7}


def test_a_request_of_who_has_hung_up_is_not_carried_out(name, listening, job):
    with Client(name, request(do="resize", by=1)):
        pass
    listening.poll(job)
    with Client(name) as client:
        listening.poll(job)
        client.say(request(do="resize", by=1))
    listening.poll(job)
    assert job.calls == []


def test_a_client_may_close_its_half_first(name, listening, job):
    with Client(name, request(do="status")) as client:
        client.socket.shutdown(socket.SHUT_WR)
        listening.poll(job)
        assert client.answer() == {"step": 7}
    with Client(name, b'{"do"') as client:
        client.socket.shutdown(socket.SHUT_WR)
        for _ in ("what it said", "that this was all"):
            listening.poll(job)
        assert client.is_over()


def test_an_answer_that_nobody_reads_is_given_up(name, listening, job, later):
    job.answer = {"losses": "x" * 3_000_000}  # more than the kernel accepts at once
    with Client(name, request(do="status")) as reading, Client(name, request(do="status")) as deaf:
        listening.poll(job)
        received = b""
        while not received.endswith(b"\n"):
            received += reading.heard()
            listening.poll(job)
        assert json.loads(received) == job.answer
        assert deaf.heard()
        later()
        listening.poll(job)
        assert not listening._clients
        while deaf.heard():  # the data in flight, and then the end
            pass


def test_many_at_once(name, listening, job):
    """With more clients than are served at a time, none is lost, and none delays the others for long."""
    clients = [Client(name, request(do="resize", by=1)) for _ in range(3 * server._MAX_CLIENTS)]
    for _ in range(3):
        listening.poll(job)
    answers = [client.answer()["workers"] for client in clients]
    assert sorted(answers) == list(range(3, 3 + len(clients)))
    for each in clients:
        each.socket.close()


def test_several_threads_ask(name, listening, job):
    answers: list[dict] = []
    askers = [threading.Thread(target=lambda: answers.append(ask(name, {"do": "resize", "by": 1}))) for _ in range(100)]
    with training(listening, job):
        for asker in askers:
            asker.start()
        for asker in askers:
            asker.join()
    assert sorted(answer["workers"] for answer in answers) == list(range(3, 103))


def test_a_handler_may_poll_or_close(name, listening, job):
    job.resize = lambda workers: listening.poll(job)  # type: ignore[method-assign]
    with Client(name, request(do="resize", by=1)) as client, Client(name) as other:
        listening.poll(job)
        assert client.answer() == {"workers": 3, "was": 2}
        assert not other.is_over()
        job.resize = lambda workers: listening.close()  # type: ignore[method-assign]
        other.say(request(do="resize", by=1))
        listening.poll(job)
        assert other.is_over()
    listening.poll(job)


# -- access


def test_another_user_is_refused(name, listening, job, monkeypatch):
    with Client(name, request(do="status")) as client:
        monkeypatch.setattr(server, "peer_uid", lambda connection: os.geteuid() + 1)
        listening.poll(job)
        answer = json.loads(client.heard())
        assert client.is_over()
    assert answer["type"] == "PermissionError"
    assert f"belongs to user {os.geteuid()}, and you are user {os.geteuid() + 1}" in answer["error"]
    assert job.calls == []


def test_root_is_not_refused(name, listening, job, monkeypatch):
    monkeypatch.setattr(server, "peer_uid", lambda connection: 0)
    with Client(name, request(do="status")) as client:
        listening.poll(job)
        assert client.answer() == {"step": 7}


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be another user")
def test_the_kernel_says_who_asks(name, listening, job):
    with helpers.start(ask_as_another_user, name, addresses.address_of(name)) as child:
        child.get()
        listening.poll(job)
        child.put()
        assert "and you are user 12345" in child.get()
    assert job.calls == []


def ask_as_another_user(pipe, name: str, address: bytes) -> None:
    os.setuid(12345)
    assert not is_running(name)  # an address contains its user
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(address)
        client.sendall(request(do="resize", by=1))
        pipe.put()
        pipe.get()
        pipe.put(json.loads(client.recv(65536))["error"])


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be another user")
def test_a_poll_is_bounded_whoever_connects(name, listening, job, monkeypatch):
    """If others connect as fast as they are refused, one poll accepts only its maximum number of clients."""
    refused = []
    refuse = Control._refuse

    def refuse_and_let_another_in(self, accepted, uid):
        refused.append(uid)
        refuse(self, accepted, uid)
        connecting.put()
        assert connecting.get() == "connected"

    monkeypatch.setattr(Control, "_refuse", refuse_and_let_another_in)
    with helpers.start(connect_again_and_again, addresses.address_of(name)) as connecting:
        assert connecting.get() == "connected"
        listening.poll(job)
        # it has ended; another process that looks whose job this is takes a place, too
        assert set(refused) == {12345}
        assert len(refused) <= server._MAX_CLIENTS
        with socket.socket(socket.AF_UNIX) as client:  # and the next poll serves a permitted client
            client.connect(addresses.address_of(name))
            client.sendall(request(do="status"))
            listening.poll(job)
            assert json.loads(client.recv(65536)) == {"step": 7}


def connect_again_and_again(pipe, address: bytes) -> None:
    os.setuid(12345)
    while True:
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(address)
        pipe.put("connected")
        pipe.get()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be another user")
def test_another_user_in_the_place_of_a_job(name, caplog):
    with helpers.start(listen_as_another_user, addresses.address_of(name)) as child:
        child.get()
        assert name not in running_jobs()
        assert not is_running(name)
        with pytest.raises(PermissionError, match="belongs to user 12345, and you are user 0"):
            ask(name, {"do": "status"})
        Control(name).close()
        assert "user 12345 uses its address" in caplog.text


def listen_as_another_user(pipe, address: bytes) -> None:
    os.setuid(12345)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen()
        pipe.put()
        pipe.get()


def test_who_listens_in_the_jobs_place_is_not_asked(name, listening, job, monkeypatch):
    monkeypatch.setattr(client, "peer_uid", lambda connection: os.geteuid() + 1)
    with pytest.raises(PermissionError, match=f"belongs to user {os.geteuid() + 1}"):
        ask(name, {"do": "status"})
    listening.poll(job)
    assert job.calls == []


# -- names


@pytest.mark.parametrize("over", [-20, -1, 0, 1, 6, 100])
def test_a_name_of_any_length(name, job, over):
    name = name.ljust(addresses._ADDRESS_NBYTES - len(addresses.address_of("")) + over, "n")
    with contextlib.closing(Control(name)) as opened, training(opened, job):
        assert is_running(name)
        assert ask(name, {"do": "status"}) == {"step": 7}
        (shown,) = [shown for shown in running_jobs() if shown.startswith(name[:40])]
        assert (shown == name) == (over <= 0)
        assert is_running(shown)
        assert ask(shown, {"do": "status"}) == {"step": 7}
        assert not is_running(name + "n")
    assert not is_running(name)


def test_long_names_that_begin_alike_are_two(name):
    first, second = Control(name.ljust(120, "n")), Control(name.ljust(121, "n"))
    with contextlib.closing(first), contextlib.closing(second):
        assert len([shown for shown in running_jobs() if shown.startswith(name)]) == 2


@pytest.mark.parametrize("name", ["", "a/b", "ü", "\udcff", "a\nb", "x" * 5000])
def test_what_cannot_be_a_job(name):
    with pytest.raises(ChannelNotFoundError):
        ask(name, {"do": "status"})
    assert not is_running(name)


def test_the_jobs_of_this_user_alone():
    table = b"""Num       RefCount Protocol Flags    Type St Inode Path
0000000000000000: 00000002 00000000 00010000 0001 01 23456 @untorn/1000/policy
0000000000000000: 00000002 00000000 00010000 0001 01    17 @untorn/1000/a@b
0000000000000000: 00000003 00000000 00000000 0001 03 23457 @untorn/1000/policy
0000000000000000: 00000003 00000000 00000000 0001 03 23458 @untorn/1000/connected-alone
0000000000000000: 00000002 00000000 00010000 0001 01 23459 @untorn/10001/other
0000000000000000: 00000002 00000000 00010000 0001 01 23460 /run/untorn/1000/file
0000000000000000: 00000003 00000000 00000000 0001 03 23461
"""
    assert client._names_in(table, b"untorn/1000/") == ["a@b", "policy"]


def test_an_address_with_a_newline_in_it_is_no_row_of_the_table():
    row = b"0: 2 0 00010000 0001 01 7 "
    table = b"head\n" + row + b"@of another user\n1: 2 0 unheard-of 0001 01 7 @x\n" + row + b"@untorn/1000/policy\n"
    assert client._names_in(table, b"untorn/1000/") == ["policy"]


def test_a_second_job_of_the_same_name_goes_on_without(name, listening, job, caplog):
    with contextlib.closing(Control(name)) as second:
        other = Job()
        with Client(name, request(do="status")) as client:
            second.poll(other)
            listening.poll(job)
            assert client.answer() == {"step": 7}
        assert other.calls == []
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "another job of this name is running" in record.getMessage()
    assert is_running(name)


@pytest.mark.parametrize("call", ["socket", "bind"])
def test_without_sockets_training_goes_on(name, job, monkeypatch, caplog, call):
    class Forbidden(socket.socket):
        def __init__(self, *args: object) -> None:
            if call == "socket":
                raise PermissionError(1, "Operation not permitted")
            super().__init__(*args)

        def bind(self, address: object) -> None:
            raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(socket, "socket", Forbidden)
    opened = Control(name)
    opened.poll(job)
    opened.close()
    assert "cannot be watched or resized by other processes: [Errno 1]" in caplog.text


def test_closing(name, listening, job):
    with Client(name) as client:
        listening.poll(job)
        listening.close()
        assert client.is_over()
    listening.close()
    listening.poll(job)
    assert not is_running(name)


def test_a_forked_child_does_not_keep_the_name(name, listening, job):
    with helpers.start(wait_for_a_message) as child, Client(name) as client:
        child.get()
        listening.poll(job)
        listening.close()
        assert client.is_over()
        assert not is_running(name)
        with contextlib.closing(Control(name)) as again, training(again, job):
            assert ask(name, {"do": "status"}) == {"step": 7}


def wait_for_a_message(pipe) -> None:
    pipe.put()
    pipe.get()


# -- errors of a client


def test_no_such_job(name):
    with pytest.raises(ChannelNotFoundError, match=r"Trainer\(name=...\).*`untorn top`") as raised:
        ask(name, {"do": "status"})
    assert repr(name) in str(raised.value)
    assert isinstance(raised.value, UntornError)
    assert isinstance(raised.value, FileNotFoundError)


def test_no_such_job_but_others(name, listening):
    with pytest.raises(ChannelNotFoundError, match=f"running: .*{name!r}"):
        ask(f"{name}-else", {"do": "status"})


def test_a_busy_job(name, listening, job):
    with pytest.raises(TimeoutError, match=r"did not answer within 0\.02 s: .*validation"):
        ask(name, {"do": "resize", "by": 1}, timeout_s=0.02)
    listening.poll(job)
    assert job.calls == []


def test_a_job_with_a_full_queue_is_busy(name, listening):
    with contextlib.ExitStack() as waiting:
        with contextlib.suppress(BlockingIOError):
            while True:
                client = waiting.enter_context(socket.socket(socket.AF_UNIX))
                client.setblocking(False)
                client.connect(addresses.address_of(name))
        with pytest.raises(TimeoutError, match="did not answer"):
            ask(name, {"do": "status"}, timeout_s=0.02)


@contextlib.contextmanager
def answering(name: str, said: bytes) -> Iterator[None]:
    """Listen under this name, and send this answer to one client again and again until it closes the connection."""
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(addresses.address_of(name))
        server.listen()

        def answer() -> None:
            accepted, _ = server.accept()
            with accepted, contextlib.suppress(ConnectionError):
                while said:
                    accepted.sendall(said)

        thread = threading.Thread(target=answer)
        thread.start()
        yield
        thread.join()


@pytest.mark.parametrize("said", [b"5\n", b"[]\n", b"{\n", b"null\n", b"\xff\n", b"[" * 9999 + b"\n", b"\n", b"NaN\n"])
def test_an_answer_that_is_none_is_a_format_error(name, said):
    with answering(name, said), pytest.raises(FormatError, match=f"{name!r} answers .*which no job of untorn does"):
        ask(name, {"do": "status"})


@pytest.mark.parametrize("said", [b'{"error": [1], "type": []}\n', b'{"error": null, "type": "SystemExit"}\n'])
def test_an_error_of_another_form_is_an_error(name, said):
    with answering(name, said), pytest.raises(UntornError):
        ask(name, {"do": "status"})


def test_an_answer_that_never_ends_is_bounded(name, monkeypatch):
    """An answer is bounded in bytes and in time: one that never ends is late too."""
    for module in (client, protocol):
        monkeypatch.setattr(module, "ANSWER_NBYTES", 1 << 20)
    with answering(name, b"[" * 4096), pytest.raises(FormatError, match="more than 1048576 bytes"):
        ask(name, {"do": "status"}, timeout_s=60.0)
    for module in (client, protocol):
        monkeypatch.setattr(module, "ANSWER_NBYTES", 1 << 60)
    with answering(name, b"["), pytest.raises(TimeoutError):
        ask(name, {"do": "status"}, timeout_s=0.05)


def test_a_job_that_ends_before_it_answers(name):
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(addresses.address_of(name))
        server.listen()

        def accept_and_end(said: bytes) -> None:
            accepted, _ = server.accept()
            accepted.sendall(said)
            accepted.close()

        for said in (b"", b'{"ste'):
            thread = threading.Thread(target=accept_and_end, args=(said,))
            thread.start()
            with pytest.raises(BrokenChannelError, match="ended before it had answered"):
                ask(name, {"do": "status"})
            thread.join()
