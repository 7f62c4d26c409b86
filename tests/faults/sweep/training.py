"""The sweep for training: workers and servers that are killed, or have errors, inside ``fit``.

A victim is a server that trains a small model, forked from the sweeper; its workers are forked in turn, so that one
takes milliseconds to start and not half a second. The sweep hits one of:

- the server itself, anywhere in ``fit``, with two workers or with the serial engine, which writes checkpoints;
- the first of its workers that passes a ``Turnstile``: while it starts, or in its first steps.

A worker's death must not change a bit of the weights. After a server's death nothing of it is left, and resuming from
its checkpoints gives the same bits.
"""

from __future__ import annotations

import os
import pickle
import select
import shutil
import signal
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import networks
from helpers import descriptors, untorn_mappings
from sweep import tracer
from sweep.errnos import Outcome
from sweep.sweeper import Sweep, judged, mark_extension, swept
from sweep.tracer import Plan, Run, Victim, watched
from untorn import SGD, Trainer, UntornError, WorkerError
from untorn.engines import processes
from untorn.engines.child import ChildProcess
from untorn.train import weights_sha256

__all__ = ["TRAININGS", "serve"]

DATA = networks.data_of(24, 3)
EPOCHS, BATCH, SHARDS = 2, 12, 3
#: gradients that a victim among the workers computes while it is watched
GRADIENTS = 3


@dataclass(frozen=True)
class Training:
    """One row of this sweep.

    Attributes:
        engine: arguments of the trainer.
        fit: arguments of fit; those with ``{}`` get the victim's directory.
        place: of the turnstile through which a worker goes to be the victim; none: the server is the victim.
        begun: how many epochs are in the directory's checkpoints already.
    """

    name: str
    engine: dict[str, Any]
    fit: dict[str, Any]
    place: str = ""
    begun: int = 0


_SERIAL, _TWO = {"engine": "serial"}, {"engine": "processes", "workers": 2}
#: it has every step to itself, so that it makes the same system calls each time
_ALONE = {"engine": "processes", "workers": 1}
_ALL = {"checkpoint_every_s": 0.0, "keep": 2}
TRAININGS = {
    each.name: each
    for each in (
        Training("checkpoints", _SERIAL, _ALL),
        Training("resuming", _SERIAL, _ALL, begun=1),
        Training("server", _TWO, _ALL),
        Training("worker_starting", _TWO, {}, place="start"),
        Training("worker_in_its_steps", _ALONE, {}, place="gradient"),
    )
}


def serve(pipe: Any) -> None:
    """Do for trainings what sweeper.serve does."""
    while True:
        how, name, base, seed, limit = pipe.get()
        pipe.put(sweep(how, name, Path(base), seed, limit, pipe.put))


def sweep(how: str, name: str, base: Path, seed: int, limit: int, progress: Callable[[str], None]) -> Sweep:
    """Sweep one training, as sweeper.sweep does an operation."""
    training = TRAININGS[name]
    folder = Path(tempfile.mkdtemp(dir=base))
    digest = fit(folder, _SERIAL, _ALL)  # loads the modules for all later victims
    assert fit(folder, _SERIAL, {**_ALL, "resume": True}) == digest
    shutil.rmtree(folder)
    return swept(how, name, partial(one, training, digest, base), Plan(), seed, limit, progress)


def one(training: Training, digest: str, base: Path, plan: Plan) -> tuple[Run, list[str]]:
    """One victim, and what follows it."""
    folder, turnstile = Path(tempfile.mkdtemp(dir=base)), Turnstile(training.place)
    if training.begun:
        in_a_child(partial(fit, folder, _SERIAL, {**_ALL, "epochs": training.begun}))
    victim = Victim(lambda: (None, None), lambda _: _serve(training, folder, turnstile, plan))
    problems: list[str] = []
    try:
        victim.prepare()
        run = _worker_hit(victim, turnstile, plan) if training.place else victim.run(plan)
    finally:
        if not victim.end():
            problems.append("a process of this training does not end")
        turnstile.close()
    # a worker's end is not its server's, which has to continue
    problems += judged(plan, replace(run, ended=tracer.REACHED_END) if training.place else run)
    if isinstance(run.report, Outcome) and not run.report.failed and run.report.value != digest:
        problems.append(f"other weights: {run.report.value}")
    if training.fit:
        problems += _resumed(folder, digest)
    shutil.rmtree(folder)
    return run, problems


def _worker_hit(victim: Victim, turnstile: Turnstile, plan: Plan) -> Run:
    """Trace the worker that comes through the turnstile; the report is its server's."""
    victim.go()
    pid = turnstile.passed(victim)
    run = tracer.trace(pid, plan, turnstile.let_go) if pid else Run(tracer.EXITED, 0, 0, (), "", False, 0, 0)
    return replace(run, report=victim.hear())


def _resumed(folder: Path, digest: str) -> list[str]:
    """Return what is wrong with going on from the checkpoints that are there now."""
    outcome = in_a_child(partial(fit, folder, _SERIAL, {**_ALL, "resume": True}))
    if not isinstance(outcome, str):
        return [f"resuming fails: {outcome}"]
    left = sorted(entry.name for entry in folder.iterdir())
    problems = [] if outcome == digest else [f"resuming gives other weights: {outcome}"]
    if any(name.startswith(".") for name in left) or len(left) > _ALL["keep"] + 1:
        problems.append(f"checkpoints that nobody needs stay: {left}")
    return problems


def in_a_child(work: Callable[[], Any]) -> Any:
    """Return what ``work`` returns in a forked process; a Failure if it raises."""
    child = Victim(lambda: (None, None), lambda _: work())
    try:
        child.prepare()
        child.go()
        return child.hear()
    finally:
        child.end()


# -- the server


def trainer_of(engine: dict[str, Any]) -> Trainer:
    """The trainer that all share."""
    given = {"optimizer": SGD(0.05, momentum=0.9), "shards": SHARDS, "seed": 5, "max_restarts": 10} | engine
    return Trainer(_model, networks.line_params(3), **given)


def _model(params: Any, batch: Any) -> Any:
    Turnstile.pass_through("gradient")
    return networks.line(params, batch)


def fit(folder: Path, engine: dict[str, Any], arguments: dict[str, Any]) -> str:
    """Train; the digest of the weights."""
    arguments = {"epochs": EPOCHS, **arguments}
    if "keep" in arguments:
        arguments["checkpoint_dir"] = folder
    with trainer_of(engine) as trainer:
        trainer.fit(DATA, batch_size=BATCH, **arguments)
        return weights_sha256(trainer.params)


def _serve(training: Training, folder: Path, turnstile: Turnstile, plan: Plan) -> Outcome:
    """The victim's work: one fit."""
    processes.launch_worker = _launch
    if plan.marked:
        mark_extension(tracer.marked)
    Turnstile.here = turnstile
    before = (set(descriptors()), len(untorn_mappings()))
    arguments = {**training.fit, "resume": True} if training.begun else training.fit
    error, digest = None, ""
    with _unwatched() if training.place else watched():
        try:
            digest = fit(folder, training.engine, arguments)
        except Exception as raised:
            error = raised
    outcome = Outcome.of(error)
    if isinstance(error, WorkerError):
        outcome.add(error.worker_traceback)
    error = None
    outcome.value = digest
    outcome.look_for_leaks(*before)
    return outcome


@contextmanager
def _unwatched() -> Iterator[None]:
    yield


def _launch(name: str, call: tuple[Any, Any], **for_interpreters: Any) -> ChildProcess:
    """Fork a worker, as a fresh interpreter for each would take most of the time."""
    content = pickle.dumps(call)
    pid = os.fork()
    if pid == 0:
        try:
            Turnstile.pass_through("start")
            function, arguments = pickle.loads(content)
            function(*arguments, None)  # there was no problem with the main program
            os._exit(0)
        except (OSError, UntornError):
            pass  # an error that was made; another worker will come
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)
    return ChildProcess.of(_Forked(pid))


@dataclass
class _Forked:
    """The part of subprocess.Popen that ChildProcess needs."""

    pid: int
    returncode: int | None = None

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)

    def wait(self) -> None:
        os.waitpid(self.pid, 0)


class Turnstile:
    """The place where one worker of a server becomes the victim, and waits for the tracer; the others go by.

    Made before the server is forked: its pipes are inherited by all.
    """

    here: Turnstile | None = None

    def __init__(self, place: str) -> None:
        self.place = place
        self._token, self._announce, self._go = os.pipe(), os.pipe(), os.pipe()
        os.set_blocking(self._token[0], False)
        os.write(self._token[1], b"t")
        self._left = 0

    @classmethod
    def pass_through(cls, place: str) -> None:
        """Pass this place, in a worker or in another process."""
        if cls.here is not None:
            cls.here._pass(place)

    def _pass(self, place: str) -> None:
        if self._left:  # the victim
            self._left -= place == "gradient"
            if not self._left:
                os.kill(os.getpid(), signal.SIGUSR2)
            return
        if place != self.place:
            return
        try:
            os.read(self._token[0], 1)
        except BlockingIOError:
            return
        os.write(self._announce[1], f"{os.getpid():10}".encode())
        os.read(self._go[0], 1)
        self._left = 1 if place == "start" else GRADIENTS
        os.kill(os.getpid(), signal.SIGUSR1)

    def passed(self, server: Victim) -> int:
        """The pid of the worker that came; 0 if the server ended without one."""
        readable, _, _ = select.select([self._announce[0], server.told], [], [], tracer.WATCHDOG_S)
        return int(os.read(self._announce[0], 10)) if self._announce[0] in readable else 0

    def let_go(self) -> None:
        """Let the victim go."""
        os.write(self._go[1], b"g")

    def close(self) -> None:
        """Close the pipes, in the sweeper."""
        for fd in (*self._token, *self._announce, *self._go):
            os.close(fd)
