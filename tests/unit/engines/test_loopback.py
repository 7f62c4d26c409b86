"""The loopback cluster: what its node processes do when the driver has ended, or is another."""

from __future__ import annotations

import os
import socket
import threading

import pytest

from untorn.engines.nodes import Invitation, handshake
from untorn.engines.nodes.handshake import HandshakeError
from untorn.engines.nodes.loopback import _run


def no_main(node: object) -> None:
    raise AssertionError("it cannot have joined")


def invitation(address: tuple[str, int], secret: bytes) -> Invitation:
    return Invitation(address=address, secret=secret, number=3, workers=1, neighbours=1, main=no_main)


def test_a_node_whose_driver_has_ended_ends_quietly(capfd):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = listener.getsockname()
    _run(invitation(address, os.urandom(32)), None)
    assert capfd.readouterr() == ("", "")


def test_a_node_whose_driver_ends_meanwhile_ends_quietly(capfd):
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def end() -> None:
            listener.accept()[0].close()

        driver = threading.Thread(target=end)
        driver.start()
        _run(invitation(listener.getsockname(), os.urandom(32)), None)
        driver.join()
    assert capfd.readouterr() == ("", "")


def test_a_driver_with_another_secret_is_an_error():
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            with pytest.raises(HandshakeError):
                handshake.accept(listener.accept()[0], os.urandom(32), 60)

        driver = threading.Thread(target=answer)
        driver.start()
        with pytest.raises(HandshakeError, match="secret"):
            _run(invitation(listener.getsockname(), os.urandom(32)), None)
        driver.join()
