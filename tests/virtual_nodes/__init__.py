"""Virtual nodes: this machine looks like several to the programs that run in them.

::

    with VirtualNodes(3, delay_ms=1, rate_mbit=1000) as nodes:
        server = nodes[1].popen([sys.executable, "serve.py"])
        nodes.cut(1)  # nobody reaches node 1 any more
        nodes[2].kill()  # as if it were switched off and its connections were reset

A node has its own network, process ids, host name, System V objects, /tmp, /dev/shm and HOME; all else of the file
system is the machine's. Nodes see each other as node0, node1, ... and nothing else: there is no way to the Internet. A
switch (switch.c) carries their packets with a delay and a rate, counts them, and cuts nodes off.

Everything is anonymous, so nothing outlives the program that made it (main.c), which ends with its standard input: with
the block, and if this process is killed. Nodes need root; ``missing`` says what else they need.
"""

from __future__ import annotations

import functools
import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).parent
PROGRAM = HERE / "build" / "nodes"
#: turns a hang into an error; claims nothing about speed
WATCHDOG_S = 30.0


class Failure(RuntimeError):
    """The program that makes the nodes failed, or did not answer."""


class Counters(NamedTuple):
    """What a node sent and received since it was made.

    ``bytes`` include the headers of IP and TCP, once for each packet of up to 64 KiB that the kernel passed on in one
    piece; ``payload`` is without headers.
    """

    sent_bytes: int
    sent_payload: int
    sent_packets: int
    received_bytes: int
    received_payload: int
    received_packets: int
    dropped_packets: int

    def __sub__(self, before: Counters) -> Counters:
        """Return what was counted since ``before``."""
        return Counters(*(now - then for now, then in zip(self, before, strict=True)))


@functools.cache
def missing() -> str:
    """Return why there can be no virtual nodes here, or an empty text."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "virtual nodes need Linux, and root"
    if not os.path.exists("/dev/net/tun"):
        return "virtual nodes need /dev/net/tun"
    try:
        with VirtualNodes(1):
            return ""
    except (Failure, OSError, subprocess.SubprocessError) as error:
        return f"virtual nodes do not work here: {error}"


def build() -> None:
    """Build the program if it is older than its sources. Raises Failure with the compiler's messages."""
    done = subprocess.run(["make", "-C", HERE], capture_output=True, text=True, timeout=WATCHDOG_S, check=False)
    if done.returncode != 0:
        raise Failure(f"make -C {HERE}: {done.stderr.strip()}")


class Node:
    """One virtual node; see VirtualNodes.

    Attributes:
        index: its number.
        address: its IPv4 address.
        hostname: its name, which every node can look up.
    """

    def __init__(self, nodes: VirtualNodes, index: int) -> None:
        self._nodes = nodes
        self.index = index
        self.address = f"10.77.0.{index + 1}"
        self.hostname = f"node{index}"
        self._first: int | None = None
        self._commands: list[subprocess.Popen[Any]] = []

    def popen(self, command: Sequence[str | Path], *, env: dict[str, str] | None = None, **options: Any):
        """Start a command in the node, in the current directory; return its subprocess.Popen.

        ``env`` is added to this process's environment; HOME is the node's own. The other options are Popen's. The pid
        of the Popen is that of a process outside the node that stands for the command: SIGTERM, SIGINT and SIGKILL to
        it reach the command, and it ends as the command ends.
        """
        if self._first is None:
            raise Failure(f"{self.hostname} is off; start it first")
        whole = {**os.environ, "HOME": "/tmp/home", **(env or {})}
        entered = [PROGRAM, "enter", str(self._first), *map(str, command)]
        process = subprocess.Popen(entered, env=whole, **{"start_new_session": True, **options})
        self._commands.append(process)
        return process

    def run(self, command: Sequence[str | Path], *, timeout_s: float = WATCHDOG_S, **options: Any) -> str:
        """Run a command in the node; return its standard output. Raises subprocess.CalledProcessError if it fails, and
        subprocess.TimeoutExpired."""
        process = self.popen(command, stdout=subprocess.PIPE, text=True, **options)
        with process:
            try:
                output, _ = process.communicate(timeout=timeout_s)
            except BaseException:
                process.kill()
                raise
        if process.returncode != 0:
            raise subprocess.CalledProcessError(process.returncode, list(command), output)
        return output

    def pids(self) -> list[int]:
        """Return the living processes of the node, as this process sees them, without the node's first process."""
        if self._first is None:
            return []
        own = os.readlink(f"/proc/{self._first}/ns/pid")
        found = []
        for pid in map(int, filter(str.isdigit, os.listdir("/proc"))):
            with suppress(OSError):
                if pid != self._first and os.readlink(f"/proc/{pid}/ns/pid") == own and _is_alive(pid):
                    found.append(pid)
        return found

    def kill(self, *, silently: bool = False) -> None:
        """Kill every process of the node; return when they are gone.

        The kernel closes their connections, and the other nodes hear of it at once. With ``silently`` the node is cut
        off first, as if its power had failed: nobody hears anything.
        """
        if self._first is None:
            return
        if silently:
            self._nodes.cut(self.index)
        first = os.pidfd_open(self._first)
        try:
            self._nodes.tell(f"kill {self.index}")
            # readable when the first process is dead, which it is after all others
            if not select.select([first], [], [], WATCHDOG_S)[0]:
                raise Failure(f"{self.hostname}: a process was not dead {WATCHDOG_S} s after SIGKILL")
        finally:
            os.close(first)
        self._first = None
        self.reap()

    def start(self) -> None:
        """Start the node again after ``kill``, with the same address and an empty /tmp and /dev/shm. It stays cut off
        if it was."""
        self._first = int(self._nodes.tell(f"start {self.index}")[0])

    def reap(self) -> None:
        """Wait for the commands of this node, which was killed."""
        for process in self._commands:
            process.wait(WATCHDOG_S)
            for pipe in (process.stdin, process.stdout, process.stderr):
                if pipe is not None:
                    with suppress(OSError):  # a full buffer for a process that is gone
                        pipe.close()
        self._commands.clear()

    def set_first(self, pid: int) -> None:
        """Note the node's first process."""
        self._first = pid


class VirtualNodes:
    """Nodes that exist within a ``with`` block, joined by a switch. It is a sequence of Nodes.

    Args:
        count: number of nodes, at most 64.
        delay_ms: how long a packet is under way, one way.
        rate_mbit: how much each node sends, and receives, per second, in 10**6 bits; None for no limit.
        kept: directories under /tmp that the nodes shall see; those of Python and of this checkout are always visible.

    Raises Failure if the nodes cannot be made; see ``missing``.
    """

    def __init__(
        self, count: int, *, delay_ms: float = 0.0, rate_mbit: float | None = None, kept: Sequence[Path] = ()
    ) -> None:
        self._nodes = [Node(self, index) for index in range(count)]
        self._delay_ms, self._rate_mbit = delay_ms, rate_mbit
        self._kept = [path for path in map(str, _needed_directories() | set(kept)) if path.startswith("/tmp/")]
        self._program: subprocess.Popen[bytes] | None = None
        self._messages: Any = None

    def __enter__(self) -> VirtualNodes:
        build()
        self._messages = tempfile.TemporaryFile()
        self._program = subprocess.Popen(
            [PROGRAM, "run", str(len(self)), *self._kept],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._messages,
            bufsize=0,
        )
        try:
            for node, pid in zip(self, self._answer("start"), strict=True):
                node.set_first(int(pid))
            self.set_delay(self._delay_ms)
            self.set_rate(self._rate_mbit)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        assert self._program is not None
        assert self._program.stdin is not None
        assert self._program.stdout is not None
        self._program.stdin.close()
        try:
            self._program.wait(WATCHDOG_S)
        except subprocess.TimeoutExpired:
            self._program.kill()  # each node's first process dies with it
            self._program.wait()
        finally:
            self._program.stdout.close()
            self._messages.close()
            for node in self:
                node.reap()

    def __len__(self) -> int:
        return len(self._nodes)

    def __getitem__(self, index: int) -> Node:
        return self._nodes[index]

    def __iter__(self) -> Iterator[Node]:
        return iter(self._nodes)

    @property
    def pid(self) -> int:
        """The process of the switch."""
        assert self._program is not None
        return self._program.pid

    def set_delay(self, delay_ms: float) -> None:
        """Set how long the packets that are sent from now on are under way, one way."""
        self.tell(f"delay {delay_ms / 1e3}")

    def set_rate(self, rate_mbit: float | None) -> None:
        """Set how much each node sends, and receives, per second, in 10**6 bits; None for no limit."""
        self.tell(f"rate {0 if rate_mbit is None else rate_mbit * 1e6}")

    def cut(self, node: int, other: int | None = None) -> None:
        """Lose every packet between a node and another one, or all others."""
        self._connect(node, other, connected=False)

    def heal(self, node: int, other: int | None = None) -> None:
        """End a cut."""
        self._connect(node, other, connected=True)

    def _connect(self, node: int, other: int | None, *, connected: bool) -> None:
        for each in range(len(self)) if other is None else [other]:
            if each != node:
                self.tell(f"connect {node} {each} {int(connected)}")

    def counters(self) -> list[Counters]:
        """Return what each node sent and received."""
        return [Counters(*map(int, line.split())) for line in self.tell("counters")]

    def tell(self, command: str) -> list[str]:
        """Give the program a command (main.c lists them); return the lines of its answer."""
        assert self._program is not None
        assert self._program.stdin is not None
        with suppress(BrokenPipeError):  # _answer says why
            self._program.stdin.write(f"{command}\n".encode())
        return self._answer(command)

    def _answer(self, command: str) -> list[str]:
        """Return the lines before the next ``ok``."""
        assert self._program is not None
        assert self._program.stdout is not None
        answer, end = b"", time.monotonic() + WATCHDOG_S
        while not answer.endswith(b"ok\n"):
            ready, _, _ = select.select([self._program.stdout], [], [], max(0, end - time.monotonic()))
            if not ready:
                raise Failure(f"{command}: no answer within {WATCHDOG_S} s")
            part = self._program.stdout.read(1 << 16)
            if not part:
                self._messages.seek(0)
                said = self._messages.read().decode(errors="replace").strip()
                raise Failure(f"{command}: the program of the nodes ended: {said or 'without a message'}")
            answer += part
        return answer.decode().splitlines()[:-1]


def _is_alive(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"


def _needed_directories() -> set[Path]:
    """Return the directories that a Python program of this checkout needs."""
    return {Path(sys.prefix), Path(sys.base_prefix), HERE.parents[1], Path.cwd()}
