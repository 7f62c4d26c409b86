"""Serve the newest version of a model from several worker processes, while its publisher is killed and started again.

Two worker processes of an HTTP server answer on one socket. Each takes the newest model for each request, and builds it
once per version. A trainer publishes better and better models, is killed with SIGKILL, and another one takes its
channel over: no request fails, and no answer mixes two models. Usage:

    python examples/web.py --seconds 3
"""

from __future__ import annotations

import argparse
import collections
import http.client
import http.server
import json
import multiprocessing
import os
import signal
import socket
import time

import numpy as np

import untorn

FEATURES = 1000


def build(value):
    """Return the function that answers: made once per version and process."""
    weights, number = value["weights"], value["number"]

    def answer(x):
        return {"model": number, "y": float(weights @ np.full(FEATURES, x)), "pid": os.getpid()}

    return answer


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers ``GET /2.5`` with y of the newest model."""

    model: untorn.Subscriber

    def do_GET(self):
        """Answer; http.server calls this for each request."""
        body = json.dumps(self.model.cached(build)(float(self.path[1:]))).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        """Write nothing: there are thousands of requests."""


def work(listener, name):
    Handler.model = untorn.subscribe(name, timeout_s=30)
    server = http.server.HTTPServer(listener.getsockname(), Handler, bind_and_activate=False)
    server.socket.close()
    server.socket = listener
    server.serve_forever()


def train(name, number):
    """Publish a model with a new number, again and again: all of its weights are the number."""
    with untorn.publish({"weights": np.full(FEATURES, float(number)), "number": number}, name=name) as model:
        while True:
            number += 1
            model.update({"weights": np.full(FEATURES, float(number)), "number": number})


def ask(address, seconds):
    """Send requests one after another; return how many each worker answered, the wrong answers, the newest model."""
    answered, wrong, newest = collections.Counter(), 0, 0
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        connection = http.client.HTTPConnection(*address, timeout=30)
        connection.request("GET", "/1")
        answer = json.loads(connection.getresponse().read())
        connection.close()
        answered[answer["pid"]] += 1
        wrong += answer["y"] != answer["model"] * FEATURES
        newest = max(newest, answer["model"])
    return answered, wrong, newest


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=3.0, help="duration of each half (default: 3)")
    options = parser.parse_args()
    name = f"web-model-{os.getpid()}"
    trainer = multiprocessing.Process(target=train, args=(name, 1), daemon=True)
    trainer.start()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        workers = [multiprocessing.Process(target=work, args=(listener, name), daemon=True) for _ in range(2)]
        for worker in workers:
            worker.start()
        try:
            before, wrong_before, _ = ask(listener.getsockname(), options.seconds)
            os.kill(trainer.pid, signal.SIGKILL)
            trainer.join()
            last = untorn.subscribe(name).snapshot().value["number"]  # still there, as it is for the workers
            trainer = multiprocessing.Process(target=train, args=(name, last + 1), daemon=True)
            trainer.start()
            after, wrong_after, newest = ask(listener.getsockname(), options.seconds)
        finally:
            for process in (trainer, *workers):
                process.kill()
                process.join()
            untorn.publish(None, name=name).unlink()
    total = before + after
    print(f"{total.total():,} answers of {len(total)} workers, {wrong_before + wrong_after} wrong")
    print(f"the publisher was killed after model {last:,}; the next one was at model {newest:,}")


if __name__ == "__main__":
    main()
