"""The handshake between machines: two that know the secret find each other, others get a clear error in time."""

import contextlib
import socket
import struct
import threading

import pytest

from untorn.engines.nodes import handshake
from untorn.engines.nodes.handshake import HELLO_NBYTES, HandshakeError, accept, connect

SECRET = b"s" * 32
HELLO = b'{"kind": "link", "node": 3}'
LONG_S, SHORT_S = 60, 0.2
GREETING_NBYTES = 8 + 2 + 1 + 32


class Acceptor:
    """Listens on this machine, and runs accept() for one connection in a thread."""

    def __init__(self, secret=SECRET, timeout_s=LONG_S):
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address = self.listener.getsockname()
        self.connection = self.hello = self.error = None
        self._thread = threading.Thread(target=self._run, args=(secret, timeout_s))
        self._thread.start()

    def _run(self, secret, timeout_s):
        self.connection, _ = self.listener.accept()
        try:
            self.hello = accept(self.connection, secret, timeout_s)
        except HandshakeError as error:
            self.error = error

    def wait(self):
        self._thread.join()
        return self

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._thread.join()
        self.listener.close()
        self.connection.close()


@contextlib.contextmanager
def server_that(behave):
    """A server of another kind."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def run():
            connection, _ = listener.accept()
            with connection:
                behave(connection)

        thread = threading.Thread(target=run)
        thread.start()
        yield listener.getsockname()
        thread.join()


def until_closed(connection):
    with contextlib.suppress(OSError):
        while connection.recv(4096):
            pass


def greeting_of(role, protocol=handshake.PROTOCOL):
    return struct.pack("!8sHc", b"\xf5untorn\n", protocol, role) + bytes(32)


@pytest.mark.parametrize("hello", [b"", HELLO, bytes(HELLO_NBYTES)], ids=len)
def test_both_sides_that_know_the_secret_get_a_plain_connection(hello):
    with Acceptor() as acceptor, connect(acceptor.address, SECRET, hello, LONG_S) as connection:
        assert acceptor.wait().hello == hello
        for one, other in ((connection, acceptor.connection), (acceptor.connection, connection)):
            assert one.gettimeout() is None
            assert one.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            one.sendall(b"what follows")
            assert other.recv(100) == b"what follows"


def test_another_secret_is_refused_on_both_sides():
    with Acceptor(secret=b"t" * 32) as acceptor:
        with pytest.raises(
            HandshakeError, match=r"127.0.0.1:\d+ refuses this process: it has another secret"
        ) as raised:
            connect(acceptor.address, SECRET, HELLO, LONG_S)
        assert raised.value.reason == "secret"
        error = acceptor.wait().error
        assert error.reason == "secret"
        assert "does not know the secret" in str(error)
        assert acceptor.hello is None
        assert acceptor.connection.fileno() == -1


def test_an_acceptor_that_only_claims_to_know_the_secret_is_refused():
    def pretend(connection):
        connection.sendall(greeting_of(b"A"))
        connection.recv(GREETING_NBYTES)
        connection.sendall(b"\x01" + bytes(32))
        until_closed(connection)

    with server_that(pretend) as address, pytest.raises(HandshakeError, match="does not know the secret") as raised:
        connect(address, SECRET, HELLO, LONG_S)
    assert raised.value.reason == "secret"


def test_a_recorded_handshake_does_not_work_again():
    recorded = bytearray()
    with Acceptor() as first:

        def record(connection):
            with socket.create_connection(first.address) as onward:

                def answers():
                    while answer := onward.recv(4096):
                        connection.sendall(answer)

                thread = threading.Thread(target=answers)
                thread.start()
                while len(recorded) < GREETING_NBYTES + 4 + len(HELLO) + 32:
                    received = connection.recv(4096)
                    recorded.extend(received)
                    onward.sendall(received)
                first.wait()
                first.connection.close()
                thread.join()

        with server_that(record) as address:
            connect(address, SECRET, HELLO, LONG_S).close()
        assert first.hello == HELLO
    with Acceptor() as second, socket.create_connection(second.address) as connection:
        connection.sendall(recorded)
        assert second.wait().error.reason == "secret"


def test_what_is_sent_back_does_not_prove_anything():
    def mirror(connection):
        with contextlib.suppress(OSError):
            while received := connection.recv(4096):
                connection.sendall(received)

    with (
        server_that(mirror) as address,
        pytest.raises(HandshakeError, match="both sides are in the role b'C'") as raised,
    ):
        connect(address, SECRET, HELLO, LONG_S)
    assert raised.value.reason == "foreign"


def test_another_version_is_named_on_both_sides():
    with Acceptor() as acceptor, socket.create_connection(acceptor.address) as connection:
        connection.sendall(greeting_of(b"C", 7))
        error = acceptor.wait().error
        assert error.reason == "protocol"
        assert (
            f"speaks version 7 of untorn's protocol between nodes, and this process speaks version {handshake.PROTOCOL}"
            in str(error)
        )
        assert (
            struct.unpack_from("!8sH", connection.recv(100))[1] == handshake.PROTOCOL
        )  # so the other side learns it, too


@pytest.mark.parametrize(
    "found", [b"GET / HTTP/1.1\r\n\r\n", b"\0", b"\xf5untorN", b"SSH-2.0-OpenSSH_9.2\r\n"], ids=repr
)
def test_a_peer_of_another_kind_is_named_by_its_first_bytes_at_once(found):
    with Acceptor() as acceptor, socket.create_connection(acceptor.address) as connection:
        connection.sendall(found)
        error = acceptor.wait().error
        assert error.reason == "foreign"
        assert repr(found[:24]) in str(error)

    def banner(connection):
        connection.sendall(found)
        until_closed(connection)

    with server_that(banner) as address, pytest.raises(HandshakeError) as raised:
        connect(address, SECRET, HELLO, LONG_S)
    assert raised.value.reason == "foreign"
    assert repr(found[:24]) in str(raised.value)


def test_a_hello_that_is_too_long_is_not_waited_for():
    with Acceptor() as acceptor, socket.create_connection(acceptor.address) as connection:
        connection.sendall(greeting_of(b"C") + struct.pack("!I", HELLO_NBYTES + 1))
        assert acceptor.wait().error.reason == "foreign"
    with pytest.raises(ValueError, match="at most 65,536 bytes"):
        connect(("127.0.0.1", 1), SECRET, bytes(HELLO_NBYTES + 1), LONG_S)


@pytest.mark.parametrize(
    "sent", [0, 1, 8, GREETING_NBYTES - 1, GREETING_NBYTES, GREETING_NBYTES + 4, GREETING_NBYTES + 10]
)
def test_silence_and_half_a_frame_end_in_time(sent):
    message = greeting_of(b"C") + struct.pack("!I", 20) + bytes(20)
    with Acceptor(timeout_s=SHORT_S) as acceptor, socket.create_connection(acceptor.address) as connection:
        connection.sendall(message[:sent])
        error = acceptor.wait().error
        assert error.reason == "silent"
        assert "within the 0.2 s that a handshake may take" in str(error)
        until_closed(connection)


def test_a_byte_now_and_then_does_not_win_time():
    with Acceptor(timeout_s=SHORT_S) as acceptor, socket.create_connection(acceptor.address) as connection:
        message = iter(greeting_of(b"C"))
        with contextlib.suppress(OSError):
            while acceptor.error is None:
                connection.sendall(bytes([next(message, 0)]))
                acceptor._thread.join(SHORT_S / 8)
        assert acceptor.wait().error.reason in ("silent", "foreign")


def test_a_silent_server_ends_in_time():
    with server_that(until_closed) as address, pytest.raises(HandshakeError, match=r"within the 0\.2 s") as raised:
        connect(address, SECRET, HELLO, SHORT_S)
    assert raised.value.reason == "silent"


@pytest.mark.parametrize("sent", [0, 1, GREETING_NBYTES, GREETING_NBYTES + 10])
def test_a_peer_that_hangs_up_is_named(sent):
    message = greeting_of(b"C") + struct.pack("!I", 20) + bytes(20)
    with Acceptor() as acceptor:
        with socket.create_connection(acceptor.address) as connection:
            connection.sendall(message[:sent])
        error = acceptor.wait().error
        assert error.reason == "closed"


def test_nobody_at_the_address_is_named():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = listener.getsockname()
    with pytest.raises(ConnectionRefusedError, match=rf"127.0.0.1:{address[1]} cannot be reached: Connection refused"):
        connect(address, SECRET, HELLO, LONG_S)


def test_random_bytes_are_never_taken(rng):
    """Mistakes at any place of a right conversation, and garbage from the start."""
    for _ in range(200):
        one, other = socket.socketpair()
        with one, other:
            noise = bytearray(greeting_of(b"C") + struct.pack("!I", 20) + bytes(52))
            for _ in range(rng.randrange(4)):
                noise[rng.randrange(len(noise))] = rng.randrange(256)
            other.sendall(noise[: rng.choice((len(noise), rng.randrange(len(noise))))])
            other.shutdown(socket.SHUT_WR)
            with pytest.raises(HandshakeError):
                accept(one, SECRET, LONG_S)
