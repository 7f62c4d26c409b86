"""Serve the newest model with the workers of gunicorn or uvicorn, while its publisher is killed and started again.

    clients ──> gunicorn or uvicorn ──> 2 worker processes ──> the channel of the model <── publisher, killed at times

Each worker subscribes once and asks for the newest model with each request. The clients count the requests that failed
and the answers that mix two models; the program ends when every worker has answered with a model of the last publisher.
``wsgi`` is a plain WSGI application, ``api`` makes a FastAPI application. Usage:

    python examples/web_workers.py --server gunicorn --kills 3
    python examples/web_workers.py --server uvicorn

and by hand, in two terminals:

    python examples/web_workers.py --publish my-model
    cd examples; MODEL=my-model gunicorn --workers 2 web_workers:wsgi      # curl http://127.0.0.1:8000/2.5
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import http.client
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np

import untorn

FEATURES = 100_000
WORKERS = 2
CLIENTS = 3


# -- the application, in each worker


@functools.cache
def model():
    """Subscribe, once in each worker: with the first request, so after the fork that made the worker."""
    return untorn.subscribe(os.environ["MODEL"], timeout_s=30)


def build(value):
    """Return the function that answers: made once per version and worker."""
    weights, number = value["weights"], value["number"]

    def answer(x):
        return {"model": number, "y": float(weights.sum() * x), "pid": os.getpid()}

    return answer


def wsgi(environ, start_response):
    """Answer ``GET /2.5`` with the newest model."""
    answer = model().cached(build)(float(environ["PATH_INFO"][1:]))
    start_response("200 OK", [("Content-Type", "application/json")])
    return [json.dumps(answer).encode()]


def api():
    """Return the same application, made with FastAPI."""
    from fastapi import FastAPI

    application = FastAPI()

    @application.get("/{x}")
    async def predict(x: float) -> dict:  # the newest model costs a microsecond, so this may be a coroutine
        return model().cached(build)(x)

    return application


# -- the publisher


def publish(name):
    """Publish models whose weights are all their number; go on after the last model of the publisher before."""
    try:
        first = untorn.subscribe(name).snapshot().value["number"] + 1
    except untorn.ChannelNotFoundError:
        first = 1
    with untorn.publish({"weights": np.full(FEATURES, float(first)), "number": first}, name=name) as channel:
        for number in itertools.count(first + 1):
            channel.update({"weights": np.full(FEATURES, float(number)), "number": number})
            time.sleep(0.0005)


# -- the trial


class Load:
    """Clients that send one request after another, and what they saw."""

    def __init__(self, address):
        self.answers, self.failed, self.torn = 0, [], 0
        self.newest = {}  # the newest model that each worker answered with
        self._address, self._stop, self._lock = address, threading.Event(), threading.Lock()
        self._threads = [threading.Thread(target=self._ask) for _ in range(CLIENTS)]

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _ask(self):
        while not self._stop.is_set():
            connection = http.client.HTTPConnection(*self._address, timeout=60)
            try:
                connection.request("GET", "/2.5")
                response = connection.getresponse()
                body = response.read()
                answer = json.loads(body) if response.status == 200 else None
            except (OSError, http.client.HTTPException, ValueError) as error:
                answer, body = None, repr(error)
            finally:
                connection.close()
            with self._lock:
                self.answers += 1
                if answer is None:
                    self.failed.append(body)
                else:
                    self.torn += answer["y"] != answer["model"] * FEATURES * 2.5
                    self.newest[answer["pid"]] = max(answer["model"], self.newest.get(answer["pid"], 0))

    def wait_until_all_have(self, number):
        """Wait until every worker has answered with this model or a newer one."""
        until = time.monotonic() + 60
        while sum(newest >= number for newest in dict(self.newest).values()) < WORKERS:
            if self.failed or time.monotonic() > until:
                raise SystemExit(f"no answer with model {number}: {self.newest}, failed: {self.failed[:3]}")
            time.sleep(0.01)


def server_command(server, descriptor):
    if server == "gunicorn":
        options = ["--workers", str(WORKERS), "--bind", f"fd://{descriptor}", "--log-level", "warning"]
        return [sys.executable, "-m", "gunicorn", *options, "--no-control-socket", "web_workers:wsgi"]
    options = ["--workers", str(WORKERS), "--fd", str(descriptor), "--log-level", "warning"]
    return [sys.executable, "-m", "uvicorn", *options, "--factory", "web_workers:api"]


@contextlib.contextmanager
def running_server(server, name):
    """Start the server on a free port of this machine; give its address."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        process = subprocess.Popen(
            server_command(server, listener.fileno()),
            pass_fds=[listener.fileno()],
            cwd=Path(__file__).parent,
            env=os.environ | {"MODEL": name, "OPENBLAS_NUM_THREADS": "1"},
        )
        try:
            yield listener.getsockname()
        finally:
            process.terminate()
            process.wait()


def start_publisher(name):
    return subprocess.Popen([sys.executable, __file__, "--publish", name])


def trial(server, name, kills):
    publisher = start_publisher(name)
    try:
        with running_server(server, name) as address, Load(address) as load:
            load.wait_until_all_have(1)
            for _ in range(kills):
                publisher.send_signal(signal.SIGKILL)
                if publisher.wait() != -signal.SIGKILL:
                    raise SystemExit("the publisher ended before it was killed")
                last = untorn.subscribe(name).snapshot().value["number"]  # still there, for the workers too
                publisher = start_publisher(name)
                load.wait_until_all_have(last + 2)  # the second model of that publisher
    finally:
        publisher.kill()
        publisher.wait()
        untorn.publish(None, name=name).unlink()
    print(f"{load.answers:,} answers of {len(load.newest)} workers, {len(load.failed)} failed, {load.torn} torn")
    print(f"killed {kills} times; every worker answered with a model newer than {last + 1:,}")
    if load.failed or load.torn:
        raise SystemExit(f"failed: {load.failed[:3]}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--server", choices=["gunicorn", "uvicorn"], default="gunicorn")
    parser.add_argument("--kills", type=int, default=3, help="how often the publisher is killed (default: 3)")
    parser.add_argument("--publish", metavar="NAME", help="only publish models under this name, until Ctrl-C")
    options = parser.parse_args()
    if options.publish:
        with contextlib.suppress(KeyboardInterrupt):
            publish(options.publish)
    else:
        trial(options.server, f"web-workers-{os.getpid()}", options.kills)


if __name__ == "__main__":
    main()
