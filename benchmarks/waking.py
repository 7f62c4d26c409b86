"""Compare waking a process that waits for a version with a pipe.

::

    this process: update()  ──>  other process: snapshot(newer_than=...), update()  ──>  this process: snapshot(...)

A hop is half of that. With coroutines the other process waits in asyncio, and its hop is what is left of the round
trip without the hop back. The pipe is multiprocessing's, ZeroMQ's a pair of sockets over ipc, both with a byte;
iceoryx2's is a pair of events, and Ray's a call of an actor's method that returns a byte. Back to back: the next hop
follows at once; rested: after a millisecond of sleep; busy: back to back beside one process that computes on every
processor but one. Ray comes at the end, beside a pipe, as its processes disturb all others.

Then ``update()`` of 1 KB with 1, 8, 64 and 200 attached readers that do nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import multiprocessing
import os
import tempfile
import time
from functools import partial

import numpy as np

import untorn
from benchmarks import peers
from benchmarks.measure import Row, interleaved, row, seconds

NAME = "waking"
QUESTION = "How long does a waiting process take to wake for a new version, compared with a pipe?"

TURNS, HOPS, WARM_UP = 40, 25, 2
READERS, UPDATES = (1, 8, 64, 200), 200


def answer(there, pipe) -> None:
    """Run the other process of the hops."""
    with untorn.publish(0) as back:
        pipe.send(back.subscriber())
        for snapshot in there:
            if snapshot.value < 0:
                return
            if snapshot.version > 1:
                back.update(snapshot.value)


def answer_in_asyncio(there, pipe) -> None:
    """Run the other process of the hops with a coroutine that waits."""

    async def run() -> None:
        with untorn.publish(0) as back:
            pipe.send(back.subscriber())
            async for snapshot in there:
                if snapshot.value < 0:
                    return
                if snapshot.version > 1:
                    back.update(snapshot.value)

    asyncio.run(run())


def echo_iceoryx2(address, pipe) -> None:
    """Run the other end of iceoryx2's events."""
    events = peers.iceoryx2_peer.Events(address)
    pipe.send("ready")
    while True:
        events.wait()
        events.wake()


def echo_zmq(address) -> None:
    """Run the other end of ZeroMQ's sockets."""
    import zmq

    socket = zmq.Context().socket(zmq.PAIR)
    socket.connect(address)
    while True:
        socket.send(socket.recv())


def echo(pipe) -> None:
    """Run the other end of the pipe."""
    while (message := pipe.recv_bytes()) != b"end":
        pipe.send_bytes(message)


def compute() -> None:
    """Keep a processor busy."""
    while True:
        sum(range(1000))


def attach(subscriber, pipe) -> None:
    """Attach, and do nothing."""
    held = subscriber.snapshot().version
    pipe.send(held)
    pipe.recv()


def run() -> list[Row]:
    context = multiprocessing.get_context("fork")
    with contextlib.ExitStack() as stack:
        hops = _contestants(context, stack)
        times = interleaved(
            {
                f"{name}, {how}": partial(_hop_s, hop, rest_s)
                for how, rest_s in (("back to back", 0.0), ("rested", 0.001))
                for name, hop in hops.items()
            },
            turns=TURNS,
            warm_up=WARM_UP,
        )
        for _ in range(len(os.sched_getaffinity(0)) - 1):
            _start(context, stack, compute)
        times |= interleaved(
            {f"{name}, busy": partial(_hop_s, hop, 0.0) for name, hop in hops.items()}, turns=TURNS, warm_up=WARM_UP
        )
    rows = []
    for how in ("back to back", "rested", "busy"):
        pipe, thread = times[f"pipe, {how}"], times[f"untorn, {how}"]
        rows.append(row(f"untorn, {how}", thread, to=pipe, ratio_to="a pipe", ratio_at_most=1.2))
        coroutine = [2 * both - back for both, back in zip(times[f"untorn, coroutine, {how}"], thread, strict=True)]
        rows.append(
            row(f"untorn, coroutine, {how}", coroutine, to=thread, ratio_to="a blocked thread", ratio_at_most=2)
        )
        rows += [
            row(what, times[what], to=pipe, ratio_to="a pipe")
            for what in (f"ZeroMQ, {how}", f"iceoryx2's event, {how}")
            if what in times
        ]
        rows.append(row(f"pipe, {how}", pipe))
    return rows + _with_readers(context) + _rows_of_ray(context)


def _start(context, stack, target, *args):
    process = context.Process(target=target, args=args, daemon=True)
    process.start()
    stack.callback(process.join)
    stack.callback(process.kill)
    return process


def _contestants(context, stack):
    """Return a function for each that makes one round trip."""
    made = {
        "untorn": _by_untorn(context, stack, answer),
        "untorn, coroutine": _by_untorn(context, stack, answer_in_asyncio),
        "pipe": _by_pipe(context, stack),
    }
    if importlib.util.find_spec("zmq"):
        made["ZeroMQ"] = _by_zmq(context, stack)
    if not peers.iceoryx2_peer.missing():
        made["iceoryx2's event"] = _by_iceoryx2(context, stack)
    return made


def _by_pipe(context, stack):
    pipe, other = context.Pipe()
    _start(context, stack, echo, other)

    def hop() -> None:
        pipe.send_bytes(b"x")
        pipe.recv_bytes()

    return hop


def _by_untorn(context, stack, target):
    there = stack.enter_context(untorn.publish(0))
    mine, theirs = context.Pipe()
    _start(context, stack, target, there.subscriber(), theirs)
    back = mine.recv()
    seen = [1]

    def hop() -> None:
        there.update(seen[0])
        snapshot = back.snapshot(newer_than=seen[0], timeout_s=60)
        assert snapshot.value is not None
        seen[0] = snapshot.version

    return hop


def _by_zmq(context, stack):
    address = f"ipc://{stack.enter_context(tempfile.TemporaryDirectory(prefix='untorn-benchmark-'))}/socket"
    _start(context, stack, echo_zmq, address)  # before this process has ZeroMQ's threads
    import zmq

    socket = stack.enter_context(zmq.Context().socket(zmq.PAIR))
    socket.bind(address)

    def hop() -> None:
        socket.send(b"x")
        socket.recv()

    return hop


def _by_iceoryx2(context, stack):
    events = stack.enter_context(contextlib.closing(peers.iceoryx2_peer.Events()))
    mine, theirs = context.Pipe()
    _start(context, stack, echo_iceoryx2, events.address, theirs)
    mine.recv()

    def hop() -> None:
        events.wake()
        events.wait()

    return hop


def _by_ray(stack):
    import ray

    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    stack.callback(ray.shutdown)

    @ray.remote(num_cpus=0)
    class Echo:
        def answer(self, message):
            return message

    actor = Echo.remote()
    return lambda: ray.get(actor.answer.remote(b"x"))


def _rows_of_ray(context) -> list[Row]:
    if not importlib.util.find_spec("ray"):
        return []
    rows = []
    with contextlib.ExitStack() as stack:
        hops = {"pipe beside Ray": _by_pipe(context, stack), "Ray": _by_ray(stack)}
        for how, rest_s in (("back to back", 0.0), ("rested", 0.001)):
            contestants = {name: partial(_hop_s, hop, rest_s) for name, hop in hops.items()}
            times = interleaved(contestants, turns=TURNS, warm_up=WARM_UP)
            rows.append(row(f"Ray, {how}", times["Ray"], to=times["pipe beside Ray"], ratio_to="a pipe"))
    return rows


def _hop_s(hop, rest_s: float) -> float:
    took = 0.0
    for _ in range(HOPS):
        if rest_s:
            time.sleep(rest_s)
        took += seconds(hop)
    return took / HOPS / 2


def _with_readers(context) -> list[Row]:
    value = np.zeros(1000, np.uint8)
    with contextlib.ExitStack() as stack:
        calls = {}
        for count in READERS:
            publisher = stack.enter_context(untorn.publish(value))
            mine, theirs = context.Pipe()
            for _ in range(count):
                _start(context, stack, attach, publisher.subscriber(), theirs)
            for _ in range(count):
                mine.recv()
            calls[f"update(), {count} readers"] = partial(seconds, lambda it=publisher: it.update(value), UPDATES)
        times = interleaved(calls, turns=TURNS, warm_up=WARM_UP)
    return [row(what, each) for what, each in times.items()]
