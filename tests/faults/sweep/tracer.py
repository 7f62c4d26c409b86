"""Steers a forked process to one of its system calls, or instructions: tracer.c from Python.

A ``Victim`` is a forked process that waits. ``prepare()`` has it do what needs no watching, ``run(plan)`` lets it do
its work under the tracer and tells what became of it.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import pickle
import re
import select
import shutil
import signal
import struct
import subprocess
import sysconfig
import tempfile
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

#: no claim about speed: it turns a hang into a failure
WATCHDOG_S = 40.0
_SOURCE = Path(__file__).with_name("tracer.c")
_ROOM = 1 << 16

COUNT, KILL_AT_STOP, FAIL_CALL, KILL_AT_STEP = range(4)
REACHED_END, EXITED, KILLED, DIED, HUNG = range(1, 6)


class _Plan(ctypes.Structure):
    _fields_ = [
        ("mode", ctypes.c_int32),
        ("error", ctypes.c_int32),
        ("at", ctypes.c_int64),
        ("keep_failing", ctypes.c_int32),
        ("do_call", ctypes.c_int32),
        ("follow_child", ctypes.c_int32),
        ("number", ctypes.c_int32),
        ("text_start", ctypes.c_uint64),
        ("text_end", ctypes.c_uint64),
        ("watchdog_s", ctypes.c_double),
    ]


class _Result(ctypes.Structure):
    _fields_ = [
        ("stops", ctypes.c_int64),
        ("calls", ctypes.c_int64),
        ("steps", ctypes.c_int64),
        ("call_number", ctypes.c_int64),
        ("at_entry", ctypes.c_int32),
        ("ended", ctypes.c_int32),
        ("status", ctypes.c_int32),
        ("failed", ctypes.c_int32),
    ]


@dataclass(frozen=True)
class Plan:
    """The treatment of a victim.

    Attributes:
        at: counted from 1: the stop (two for each call), the call of this name, or the instruction.
        call: the call that fails, where it is this one.
        error: the errno with which it does; with ``keep_failing`` all later ones of its number do too.
        do_call: the failing call is executed nevertheless, like a close() that returns EIO.
        marked: the victim makes a system call of no effect before and after each call of a function that is marked().
        text: count instructions in this range of addresses, while stepped() says so.
    """

    mode: int = COUNT
    at: int = 0
    call: str = ""
    error: int = 0
    keep_failing: bool = False
    do_call: bool = False
    follow_child: bool = False
    marked: bool = False
    text: tuple[int, int] = (0, 0)


@dataclass(frozen=True)
class Run:
    """The fate of a victim.

    Attributes:
        calls: the names of the system calls that it made, in order.
        call: the one where it was killed, or that failed.
        signal: the signal that it died of, if it was not ours.
        report: its result, if it ended by itself; a Failure if it raised.
    """

    ended: int
    stops: int
    steps: int
    calls: tuple[str, ...]
    call: str
    at_entry: bool
    failed: int
    signal: int
    report: Any = None


@dataclass(frozen=True)
class Failure:
    """The victim's own code failed; its traceback."""

    text: str


@functools.cache
def call_names() -> dict[int, str]:
    """The system calls of this machine by number, as the C compiler knows them."""
    found = _compile(["-E", "-dM", "-"], input="#include <sys/syscall.h>\n")
    return {int(number): name for name, number in re.findall(r"#define __NR_(\w+) (\d+)\n", found)}


@functools.cache
def call_numbers() -> dict[str, int]:
    """The same, by name."""
    return {name: number for number, name in call_names().items()}


@functools.cache
def _library() -> ctypes.CDLL:
    """The tracer, compiled once a process."""
    with tempfile.TemporaryDirectory(prefix="tracer-") as folder:
        made = os.path.join(folder, "tracer.so")
        _compile(["-std=c11", "-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", str(_SOURCE), "-o", made])
        library = ctypes.CDLL(made)
    pointers = [ctypes.POINTER(_Plan), ctypes.POINTER(_Result), ctypes.POINTER(ctypes.c_int32)]
    library.tracer_run.argtypes = [ctypes.c_int, *pointers, ctypes.c_int64]
    library.tracer_run.restype = None
    return library


def _compile(arguments: list[str], input: str | None = None) -> str:
    compiler = (sysconfig.get_config_var("CC") or "cc").split()[0]
    compiler = shutil.which(compiler) or "cc"
    mode = ["-x", "c"] if input is not None else []
    done = subprocess.run([compiler, *mode, *arguments], input=input, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{compiler} cannot compile the tracer:\n{done.stderr}")
    return done.stdout


def obstacle() -> str:
    """Return why this system does not let a process trace its child; empty if it does."""
    victim = Victim(lambda: None, lambda state: None)
    try:
        victim.prepare()
        victim.run(Plan())
    except OSError as error:
        return f"this system does not allow ptrace ({error.strerror})"
    finally:
        victim.end()
    return ""


def extension_text() -> tuple[int, int]:
    """Return where the machine code of the C extension lies in this process, and in those that it forks."""
    from untorn import _core

    for line in Path("/proc/self/maps").read_text().splitlines():
        if line.endswith(_core.__file__) and " r-xp " in line:
            start, _, end = line.split()[0].partition("-")
            return int(start, 16), int(end, 16)
    raise LookupError(f"{_core.__file__} is not mapped")


@contextlib.contextmanager
def watched() -> Iterator[None]:
    """Mark the part of a victim that the tracer counts."""
    pid = os.getpid()
    os.kill(pid, signal.SIGUSR1)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGUSR2)


def marked(call: Callable[..., Any]) -> Callable[..., Any]:
    """Return the victim's function with a system call of no effect before it and after it."""

    @functools.wraps(call)
    def between_marks(*args: Any, **rest: Any) -> Any:
        os.getppid()
        try:
            return call(*args, **rest)
        finally:
            os.getppid()

    return between_marks


def stepped(call: Callable[..., Any]) -> Callable[..., Any]:
    """Return the victim's function; the tracer counts its instructions if the plan is about instructions."""

    @functools.wraps(call)
    def counted(*args: Any, **rest: Any) -> Any:
        if _stepping:
            return call(*args, **rest)
        _stepping.append(True)
        os.kill(os.getpid(), signal.SIGURG)
        try:
            return call(*args, **rest)
        finally:
            os.kill(os.getpid(), signal.SIGWINCH)
            _stepping.clear()

    return counted


#: not empty inside a stepped() function
_stepping: list[bool] = []


def trace(pid: int, plan: Plan, go: Callable[[], None]) -> Run:
    """Trace a process that waits in a read(), let it ``go()``, and return what became of it. Raises OSError if it may
    not be traced."""
    error = _library().tracer_attach(pid, int(plan.follow_child))
    if error:
        raise OSError(error, os.strerror(error))
    result, calls = _Result(), (ctypes.c_int32 * _ROOM)()
    given = _Plan(
        mode=plan.mode,
        error=plan.error,
        at=plan.at,
        keep_failing=plan.keep_failing,
        do_call=plan.do_call,
        follow_child=plan.follow_child,
        number=call_numbers().get(plan.call, -1),
        text_start=plan.text[0],
        text_end=plan.text[1],
        watchdog_s=WATCHDOG_S,
    )
    go()
    _library().tracer_run(pid, given, result, calls, _ROOM)
    names = call_names()
    return Run(
        ended=result.ended,
        stops=result.stops,
        steps=result.steps,
        calls=tuple(names.get(number, str(number)) for number in calls[: min(result.calls, _ROOM)]),
        call=names.get(result.call_number, str(result.call_number)),
        at_entry=bool(result.at_entry),
        failed=result.failed,
        signal=os.WTERMSIG(result.status) if result.ended == DIED else 0,
    )


@dataclass
class Victim:
    """A forked process. ``end()`` kills and reaps it at the latest.

    Args:
        first: run by prepare(); returns a state, and a message for the other side.
        then: run by run() with that state; puts its work into ``with watched():`` and returns a report.
    """

    first: Callable[[], Any]
    then: Callable[[Any], Any]
    pid: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        go_in, self._go = os.pipe()
        self.told, tell = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self._go)
            os.close(self.told)
            self._live(go_in, tell)
        os.close(go_in)
        os.close(tell)

    def _live(self, go: int, tell: int) -> None:
        """The victim's life; never returns."""
        signal.signal(signal.SIGUSR2, signal.SIG_IGN)  # the tracer of its child does not catch it
        try:
            os.read(go, 1)
            try:
                state, message = self.first() or (None, None)
            except BaseException:
                _tell(tell, Failure(traceback.format_exc()))
                return
            _tell(tell, message)
            os.read(go, 1)
            try:
                report = self.then(state)
            except BaseException:
                report = Failure(traceback.format_exc())
            _tell(tell, report)
        finally:
            os._exit(0)

    def prepare(self) -> Any:
        """Return the message of ``first``. Raises RuntimeError if that failed."""
        self.go()
        message = self.hear()
        if isinstance(message, Failure):
            raise RuntimeError(message.text)
        return message

    def run(self, plan: Plan) -> Run:
        """Let it go, and return what became of it. Raises OSError if it may not be traced."""
        run = trace(self.pid, plan, self.go)
        if run.ended != REACHED_END and not plan.follow_child:
            return run
        return replace(run, report=self.hear())

    def go(self) -> None:
        """Let it go, untraced."""
        os.write(self._go, b"g")

    def hear(self) -> Any:
        """Return what it told us, or a Failure."""
        header = self._read(4)
        content = self._read(struct.unpack("I", header)[0]) if header is not None else None
        return Failure(f"pid {self.pid} died, or hung") if content is None else pickle.loads(content)

    def _read(self, nbytes: int) -> bytes | None:
        content = b""
        while len(content) < nbytes:
            if not select.select([self.told], [], [], WATCHDOG_S)[0]:
                return None
            more = os.read(self.told, nbytes - len(content))
            if not more:
                return None
            content += more
        return content

    def end(self) -> bool:
        """Kill what is left of it. Returns whether all that it forked ends as well."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self.pid, 0)
        ended = True
        while ended:  # its children have our pipe's other end as long as they live
            ended = bool(select.select([self.told], [], [], WATCHDOG_S)[0])
            if ended and not os.read(self.told, 1 << 16):
                break
        os.close(self._go)
        os.close(self.told)
        return ended


def _tell(pipe: int, message: Any) -> None:
    content = pickle.dumps(message)
    os.write(pipe, struct.pack("I", len(content)) + content)
