"""Log records, warnings and prints of workers appear as in a program of one process."""

from __future__ import annotations

import logging
import os
import signal
import socket
import warnings
from pathlib import Path

import numpy as np
import pytest

from untorn import SGD, Trainer
from untorn.engines import worker_logs
from untorn.engines.worker_logs import LogReceiver

log = logging.getLogger("model_of_tests")
quiet = logging.getLogger("model_of_tests.quiet")


def talkative(params, batch):
    """A model that logs, warns and prints."""
    log.debug("too much")
    log.info("a step of %d", len(batch), extra={"examples": len(batch), "what": {1, 2}})
    quiet.warning("of no interest")
    quiet.error("of interest")
    try:
        raise ValueError("caught")
    except ValueError:
        log.exception("an error")
    warnings.warn("think of it", UserWarning, stacklevel=1)
    return 1.0, {"w": np.zeros(2)}


def fit(model, **settings) -> None:
    with Trainer(model, {"w": np.zeros(2)}, optimizer=SGD(0.1), workers=1, shards=1, **settings) as trainer:
        trainer.fit(np.zeros((4, 1)), epochs=1, batch_size=4)


@pytest.fixture(autouse=True)
def levels(caplog):
    caplog.set_level(logging.INFO)
    quiet.setLevel(logging.ERROR)
    yield
    quiet.setLevel(logging.NOTSET)


def test_records_are_handled_by_the_servers_loggers(caplog):
    logging.captureWarnings(True)
    try:
        fit(talkative)
    finally:
        logging.captureWarnings(False)
    records = [each for each in caplog.records if each.processName == "untorn-worker-0"]
    found = [(each.name, each.levelname, each.getMessage()) for each in records]
    assert found[:3] == [
        ("model_of_tests", "INFO", "a step of 4"),
        ("model_of_tests.quiet", "ERROR", "of interest"),
        ("model_of_tests", "ERROR", "an error"),
    ]
    assert [each[:2] for each in found[3:]] == [("py.warnings", "WARNING")]
    assert "UserWarning: think of it" in found[3][2]
    step, _, error, _ = records
    assert (step.examples, step.funcName, Path(step.pathname)) == (4, "talkative", Path(__file__))
    assert step.process != os.getpid()
    assert error.exc_text.endswith("ValueError: caught")
    assert "talkative" in error.exc_text


class Dying:
    """A model that logs, and then kills its process in the first two lives."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def loss_and_grad(self, params, batch):
        deaths = len(list(self.folder.iterdir()))
        for number in range(50):
            log.info("record %d of life %d", number, deaths)
        if deaths < 2:
            (self.folder / str(deaths)).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return 1.0, {"w": np.zeros(2)}


def test_records_of_workers_that_were_killed(caplog, tmp_path):
    fit(Dying(tmp_path))
    found = [each.getMessage() for each in caplog.records if each.name == log.name]
    assert found == [f"record {number} of life {life}" for life in range(3) for number in range(50)]


# -- sender and receiver in one process


@pytest.fixture
def ends():
    """Return a receiver, and a logger that sends to it."""
    receiver = LogReceiver()
    sender = worker_logs._Sender(socket.socket(fileno=os.dup(receiver.fd)))
    yield receiver, sender
    sender._server.close()
    receiver.forget()


def record_of(message: str) -> logging.LogRecord:
    return logging.LogRecord(log.name, logging.INFO, __file__, 1, message, None, None)


@pytest.fixture(autouse=True)
def as_in_a_worker(monkeypatch):
    """Ignore the handlers of pytest, which a worker does not have."""
    monkeypatch.setattr(worker_logs, "_handled_here", lambda name: False)


def test_what_finds_no_room_is_counted(ends, caplog):
    receiver, sender = ends
    sent = 0
    while sender._lost < 3:
        sender.emit(record_of(f"record {sent}"))
        sent += 1
    receiver.handle()
    assert [each.getMessage() for each in caplog.records] == [f"record {number}" for number in range(sent - 3)]
    caplog.clear()
    sender.emit(record_of("at last"))
    receiver.handle()
    assert [each.getMessage() for each in caplog.records] == [
        "3 log records of MainProcess were lost: their buffer was full",
        "at last",
    ]


@pytest.mark.parametrize("text", ["x" * 1_000_000, "\u20ac" * 1_000_000])
def test_what_is_too_long_is_cut(ends, caplog, text):
    receiver, sender = ends
    sender.emit(record_of(text))
    receiver.handle()
    (record,) = caplog.records
    assert record.getMessage() == f"{text[:2000]} ... (1000000 characters)"


def test_what_is_no_record_is_passed_over(ends, caplog):
    receiver, sender = ends
    for message in (b"\xff", b"hello", b"[]", b"{}", b'{"lost": 0, "name": 3}', b'{"lost": 0, "levelno": "high"}'):
        sender._server.send(message)
    sender.emit(record_of("whole"))
    receiver.handle()
    assert [each.getMessage() for each in caplog.records if each.name == log.name] == ["whole"]


def test_nothing_is_raised_where_the_server_is_gone(ends):
    receiver, sender = ends
    receiver.forget()
    sender.emit(record_of("to nobody"))


def test_a_logger_with_a_handler_of_its_own_is_not_sent(monkeypatch):
    monkeypatch.undo()
    monkeypatch.setattr(logging.root, "handlers", [])
    handler = logging.StreamHandler()
    assert not worker_logs._handled_here("model_of_tests.quiet")
    log.addHandler(logging.NullHandler())
    assert not worker_logs._handled_here("model_of_tests.quiet")
    log.addHandler(handler)
    try:
        assert worker_logs._handled_here("model_of_tests.quiet")
        quiet.propagate = False
        assert not worker_logs._handled_here("model_of_tests.quiet")
    finally:
        quiet.propagate = True
        log.handlers.clear()
