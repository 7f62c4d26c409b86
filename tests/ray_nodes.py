"""A Ray cluster whose nodes are virtual nodes: each has its own network, /dev/shm, /tmp, pids and HOME.

::

    with RayNodes(3) as cluster:
        cluster.call(0, ray_programs.something, 3)      # runs it in a new process on node 0, and returns its result
        with cluster.start(0, ray_programs.other) as program:
            cluster.nodes[2].kill()
            program.get()

Programs are functions of an importable module of tests. They may call ``ray.init()``, which finds the cluster.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import virtual_nodes.ray_nodes
from virtual_nodes import VirtualNodes

TESTS = Path(__file__).parent
#: turns a hang into a failure
WATCHDOG_S = 90.0
#: of all processes of Ray
ENVIRONMENT = {
    # soon noticed: Ray's health checks take a minute by default
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_timeout_ms": "1000",
    "RAY_health_check_failure_threshold": "3",
}


def missing() -> str:
    """Return why there can be no such cluster here, or an empty text."""
    try:
        import ray  # noqa: F401
    except ImportError:
        return "Ray is not installed"
    return virtual_nodes.missing()


class Failure(RuntimeError):
    """A program failed, or was silent for too long."""


class Program:
    """A function that runs in a process of a node. As a context manager it is killed at the end."""

    def __init__(self, process: subprocess.Popen[bytes], errors: Any) -> None:
        self.process = process
        self._errors = errors
        self._received = b""

    def get(self) -> Any:
        """Return the next value that the program passed to ``say``, or at last its result."""
        assert self.process.stdout is not None
        deadline = time.monotonic() + WATCHDOG_S
        while b"\n" not in self._received:
            if not select.select([self.process.stdout], [], [], max(0, deadline - time.monotonic()))[0]:
                raise Failure(f"silent for {WATCHDOG_S} s\n{self.errors()}")
            part = os.read(self.process.stdout.fileno(), 1 << 16)
            if not part:
                raise Failure(f"ended with {self.process.wait(WATCHDOG_S)}\n{self.errors()}")
            self._received += part
        line, _, self._received = self._received.partition(b"\n")
        return json.loads(line)

    def put(self, value: Any = None) -> None:
        """Send a value to the program's ``hear``."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(value).encode() + b"\n")
        self.process.stdin.flush()

    def errors(self) -> str:
        """Return the end of what it wrote to its standard error."""
        self._errors.seek(0)
        return self._errors.read().decode(errors="replace")[-6000:]

    def kill(self) -> None:
        """Kill it, and wait for its end."""
        self.process.kill()
        self.process.wait(WATCHDOG_S)

    def __enter__(self) -> Program:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        for pipe in (self.process.stdin, self.process.stdout, self._errors):
            with contextlib.suppress(OSError):
                pipe.close()


class RayNodes:
    """A cluster of ``count`` virtual nodes, of which the first ``started`` run Ray; node 0 is the head.

    Attributes:
        nodes: the virtual nodes.
        address: of the cluster.
        environment: what a program needs to find it.
    """

    def __init__(self, count: int, *, started: int | None = None, cpus: int = 2, **network: Any) -> None:
        self.nodes = VirtualNodes(count, **network)
        self._ray = virtual_nodes.ray_nodes.RayNodes(self.nodes, env=ENVIRONMENT, store_bytes=200_000_000)
        self._started = count if started is None else started
        self._cpus = cpus
        self.address = self._ray.address
        self.environment = self._ray.driver_environment()

    def __enter__(self) -> RayNodes:
        self.nodes.__enter__()
        try:
            self._ray.start_head(cpus=self._cpus)
            for index in range(1, self._started):
                self.join(index)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.nodes.__exit__()

    def join(self, index: int) -> None:
        """Let a node join the cluster."""
        self._ray.join(index, cpus=self._cpus)

    def start(self, index: int, program: Callable[..., Any], *arguments: Any, **environment: str) -> Program:
        """Run a function in a new process on a node."""
        errors = tempfile.TemporaryFile()  # noqa: SIM115 (closed with the Program)
        code = "import sys, ray_nodes; ray_nodes.run_program(*sys.argv[1:])"  # a file, or a -c program, is not __main__
        command = [sys.executable, "-c", code, program.__module__, program.__name__, json.dumps(arguments)]
        env = {**self.environment, **environment}
        process = self.nodes[index].popen(
            command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, bufsize=0
        )
        return Program(process, errors)

    def call(self, index: int, program: Callable[..., Any], *arguments: Any, **environment: str) -> Any:
        """Run a function in a new process on a node, and return its result."""
        with self.start(index, program, *arguments, **environment) as running:
            return running.get()


# -- in the program

_output: Any = None


def say(value: Any) -> None:
    """Send a value to the test."""
    _output.write(json.dumps(value) + "\n")
    _output.flush()


def hear() -> Any:
    """Wait for a value of the test; end if the test has ended."""
    line = sys.stdin.readline()
    if not line:
        sys.exit(0)
    return json.loads(line)


def run_program(module: str, name: str, arguments: str) -> None:
    """Run a function; its result is what it says last. What libraries print goes to the standard error."""
    global _output  # noqa: PLW0603
    import importlib

    _output = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    say(getattr(importlib.import_module(module), name)(*json.loads(arguments)))
