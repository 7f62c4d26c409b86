"""Training leaves the process as it was, and trainers in several threads do not see one another."""

from __future__ import annotations

import contextlib
import locale
import os
import signal
import subprocess
import sys
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from threadpoolctl import threadpool_info
from torch import nn

import helpers
import networks
from untorn import SGD, Callback, Trainer
from untorn.engines.default_generators import generators_lock
from untorn.engines.threads import threads_limited
from untorn.torch import TorchModel
from untorn.train import weights_sha256

X = np.random.default_rng(0).normal(size=(96, 8)).astype(np.float32)
Y = (X.sum(1) > 0).astype(np.int64)
RATES = (0.05, 0.1, 0.2, 0.3)


def process_state() -> dict[str, object]:
    return {
        "environment": {key: value for key, value in os.environ.items() if key != "PYTEST_CURRENT_TEST"},
        "torch's threads": torch.get_num_threads(),
        "torch's threads of the next thread": in_a_thread(torch.get_num_threads),
        "libraries": sorted((each["filepath"], each["num_threads"]) for each in threadpool_info()),
        "torch's random state": torch.get_rng_state().tolist(),
        "NumPy's random state": str(np.random.get_state()),
        "warnings": list(warnings.filters),
        "handlers": {number: signal.getsignal(number) for number in signal.valid_signals()},
        "mask": signal.pthread_sigmask(signal.SIG_BLOCK, ()),
        "locale": locale.setlocale(locale.LC_ALL),
        "directory": os.getcwd(),
        "path": list(sys.path),
        "arguments": list(sys.argv),
        "main": dict.fromkeys(vars(sys.modules["__main__"])),
    }


def in_a_thread(function, *arguments):
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(function, *arguments).result()


@pytest.fixture(autouse=True)
def as_before(request):
    """Check after each of these tests that the state of the process has not changed."""
    if "torch.optim" in request.node.name:  # torch itself imports and changes these in the first step of an optimizer
        torch.optim.NAdam([torch.zeros(1, requires_grad=True)]).step()
    before = process_state()
    yield
    assert process_state() == before


def dropout_model() -> TorchModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return TorchModel(nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, 2)), cross_entropy)


def cross_entropy(outputs: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return nn.functional.cross_entropy(outputs, target)


def trial(model: TorchModel, rate: float, **settings) -> tuple:
    optimizer = settings.pop("optimizer", SGD)
    with Trainer(
        model, optimizer=optimizer(rate), workers=1, shards=None if "mode" in settings else 2, **settings
    ) as trainer:
        trainer.fit((X, Y), epochs=2, batch_size=32, validation_data=(X[:32], Y[:32]))
        return weights_sha256(trainer.params), trainer.evaluate((X, Y), batch_size=32), trainer.predict(X).tobytes()


def adam(rate: float):
    return lambda parameters: torch.optim.NAdam(parameters, lr=rate)


@pytest.mark.parametrize(
    "settings",
    [
        {"engine": "serial"},
        {"engine": "serial", "mode": "async", "max_staleness": 0},
        {"engine": "serial", "optimizer": adam},
    ],
    ids=["serial", "async", "torch.optim"],
)
def test_trainers_in_threads_give_what_each_gives_alone(settings):
    models = [dropout_model() for _ in RATES]
    alone = [trial(*each, **settings) for each in zip(models, RATES, strict=True)]
    with ThreadPoolExecutor(len(RATES)) as pool:
        together = list(pool.map(lambda model, rate: trial(model, rate, **settings), models, RATES))
    assert together == alone


def test_trainers_with_processes_in_threads_give_what_each_gives_alone():
    def trial(rate: float, engine: str = "processes") -> tuple:
        settings = {"optimizer": SGD(rate), "workers": 1, "shards": 2, "engine": engine}
        with Trainer(networks.mlp_with_dropout, networks.mlp_params((8, 16, 2)), **settings) as trainer:
            trainer.fit((X, Y), epochs=2, batch_size=32, validation_data=(X[:32], Y[:32]))
            return weights_sha256(trainer.params), trainer.evaluate((X, Y), batch_size=32)

    alone = [trial(rate, "serial") for rate in RATES]
    with ThreadPoolExecutor(len(RATES)) as pool:
        assert list(pool.map(trial, RATES)) == alone


def test_a_thread_that_draws_and_seeds_changes_nothing_and_is_not_changed():
    """The default generator is shared by the whole process."""
    model = dropout_model()
    alone = trial(model, 0.1, engine="serial")
    before = torch.get_rng_state()
    torch.manual_seed(7)
    expected = torch.rand(1000)
    stop, wrong = threading.Event(), []

    def draw() -> None:
        while not stop.is_set():
            torch.manual_seed(7)
            if not torch.equal(torch.cat([torch.rand(100) for _ in range(10)]), expected):
                wrong.append(1)

    drawing = threading.Thread(target=draw)
    drawing.start()
    try:
        together = trial(model, 0.1, engine="serial")
    finally:
        stop.set()
        drawing.join()
        torch.set_rng_state(before)
    assert together == alone
    assert not wrong


class LateNoise(nn.Module):
    """A module that draws random numbers from its fourth call on."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 2)
        self.calls = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return self.linear(x + torch.rand_like(x) if self.calls > 3 else x)


class SeedsItself(nn.Module):
    """A module that uses the default generator directly."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return self.linear(x)
        torch.manual_seed(11)
        return self.linear(x + torch.rand(x.shape))


class DrawnAgain(torch.autograd.Function):
    """Dropout that draws its mask again in backward, as torch.utils.checkpoint does."""

    @staticmethod
    def forward(context, x: torch.Tensor) -> torch.Tensor:
        context.state = torch.get_rng_state()
        return nn.functional.dropout(x)

    @staticmethod
    def backward(context, gradient: torch.Tensor) -> torch.Tensor:
        with torch.random.fork_rng(devices=[]):
            torch.set_rng_state(context.state)
            return nn.functional.dropout(gradient)


class Recomputed(nn.Module):
    """A module that draws the same numbers again in backward."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(8, 8), nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        return self.last(DrawnAgain.apply(x) if self.training else x)


class WithoutModes(nn.Module):
    """Fails when its operations are inspected, as some of torch do."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if torch._C._len_torch_dispatch_stack():
            raise NotImplementedError("there is no rule for this mode")
        return self.linear(nn.functional.dropout(x, training=self.training))


@pytest.mark.parametrize("make", [SeedsItself, Recomputed, WithoutModes])
def test_models_that_handle_the_generator_give_the_same_beside_other_threads(make):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = TorchModel(make(), cross_entropy)
    alone = trial(model, 0.1, engine="serial")
    with threading_idly():
        assert trial(model, 0.1, engine="serial") == alone


class DrawsAlways(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(nn.functional.dropout(x, training=True))


def test_predictions_that_draw_are_the_same_each_time_and_draw_no_number_of_the_program():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = DrawsAlways()
    with Trainer(TorchModel(module, cross_entropy), optimizer=SGD(0.1), engine="serial") as trainer:
        first = trainer.predict(X).tobytes()
        assert trainer.predict(X).tobytes() == first
        with threading_idly():
            assert trainer.predict(X).tobytes() == first


def take_a_turn_at_once() -> bool:
    """Return whether no thread holds it."""
    lock = generators_lock()
    if taken := lock.acquire(blocking=False):
        lock.release()
    return taken


class AsksForATurn(nn.Module):
    """Seeds the default generator, and checks in another thread whether it could be used meanwhile."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(3)
        if self.training:
            others.append(in_a_thread(take_a_turn_at_once))
        return self.linear(nn.functional.dropout(x, training=self.training))


others: list[bool] = []


def test_nobody_else_uses_the_default_generator_while_a_model_handles_it_for_the_first_time():
    others.clear()
    with torch.random.fork_rng(devices=[]):
        module = AsksForATurn()
    with threading_idly():
        trial(TorchModel(module, cross_entropy), 0.1, engine="serial")
    assert others
    assert not any(others)


def test_a_model_that_draws_late_gives_the_same_beside_other_threads():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = LateNoise()
    # the worker process counts its own calls, which are only gradients; so leave out evaluation
    results = []
    for beside in (contextlib.nullcontext(), threading_idly()):
        with (
            beside,
            Trainer(TorchModel(module, cross_entropy), optimizer=SGD(0.1), shards=1, engine="serial") as trainer,
        ):
            trainer.fit((X, Y), epochs=2, batch_size=32)
            results.append(weights_sha256(trainer.params))
    assert results[0] == results[1]


@contextlib.contextmanager
def threading_idly():
    """Run the block while another thread exists."""
    done = threading.Event()
    thread = threading.Thread(target=done.wait)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def test_an_evaluation_in_another_thread_while_fit_runs():
    settings = {"engine": "serial", "optimizer": SGD(0.1), "shards": 2}
    with Trainer(dropout_model(), **settings) as trainer:
        trainer.fit((X, Y), epochs=3, batch_size=32)
        alone = weights_sha256(trainer.params)
    with Trainer(dropout_model(), **settings) as trainer, Trainer(dropout_model(), **settings) as other:
        expected = other.evaluate((X, Y), batch_size=16), other.predict(X).tobytes()
        stop, wrong = threading.Event(), []

        def ask() -> None:
            while not stop.is_set():
                trainer.evaluate((X, Y), batch_size=16)  # of the newest weights
                if (other.evaluate((X, Y), batch_size=16), other.predict(X).tobytes()) != expected:
                    wrong.append(1)

        asking = threading.Thread(target=ask)
        asking.start()
        try:
            trainer.fit((X, Y), epochs=3, batch_size=32, validation_data=(X, Y))
        finally:
            stop.set()
            asking.join()
        assert weights_sha256(trainer.params) == alone
        assert not wrong


class Nested(Callback):
    """Trains another model, and then raises the given error, if any."""

    def __init__(self, error: type[BaseException] | None = None) -> None:
        self.error = error
        self.results: list[tuple] = []

    def on_batch_end(self, batch: int, logs: dict[str, float]) -> None:
        self.results.append(trial(dropout_model(), 0.2, engine="serial"))
        if self.error is not None:
            raise self.error()


def test_a_callback_that_trains_another_trainer():
    alone = trial(dropout_model(), 0.1, engine="serial"), trial(dropout_model(), 0.2, engine="serial")
    with Trainer(dropout_model(), optimizer=SGD(0.1), shards=2, engine="serial") as trainer:
        trainer.fit((X, Y), epochs=2, batch_size=32, callbacks=[nested := Nested()])
        assert weights_sha256(trainer.params) == alone[0][0]
    assert nested.results == [alone[1]] * 6


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
@pytest.mark.parametrize("engine", ["serial", "processes"])
def test_a_fit_that_ends_with_an_error(error, engine):
    model, params = networks.mlp_with_dropout, networks.mlp_params((8, 16, 2))
    with (
        pytest.raises(error),
        Trainer(model, params, optimizer=SGD(0.1), workers=1, shards=2, engine=engine) as trainer,
    ):
        trainer.fit((X, Y), epochs=2, batch_size=32, callbacks=[Nested(error)])


def fails(params, batch):
    raise KeyboardInterrupt


def test_an_interrupt_in_the_middle_of_a_gradient():
    with Trainer(fails, {"w": np.zeros(2)}, optimizer=SGD(0.1), engine="serial") as trainer:  # noqa: SIM117
        with pytest.raises(KeyboardInterrupt):
            trainer.fit(X, epochs=1, batch_size=32)


# -- the number of threads


def blas_threads() -> set[int]:
    return {each["num_threads"] for each in threadpool_info() if each["user_api"] == "blas"}


def test_the_last_one_out_puts_the_number_of_threads_back():
    before, both, first_left = blas_threads(), threading.Barrier(2), threading.Event()
    assert before != {1}, "needs a BLAS with two threads"
    seen = []

    def first() -> None:
        with threads_limited(1):
            both.wait()
        first_left.set()

    def second() -> None:
        with threads_limited(1):
            both.wait()
            first_left.wait()
            seen.append((blas_threads(), torch.get_num_threads()))

    with ThreadPoolExecutor(2) as pool:
        for each in (pool.submit(first), pool.submit(second)):
            each.result()
    assert seen == [({1}, 1)]
    assert blas_threads() == before


def test_those_who_want_another_number_wait_their_turn():
    inside, done = threading.Event(), threading.Event()
    order = []

    def first() -> None:
        with threads_limited(1):
            inside.set()
            done.wait()
            order.append((1, blas_threads()))

    def second() -> None:
        inside.wait()
        with threads_limited(2):
            order.append((2, blas_threads()))

    with ThreadPoolExecutor(2) as pool:
        results = [pool.submit(first), pool.submit(second)]
        inside.wait()
        done.set()
        for each in results:
            each.result()
    assert order == [(1, {1}), (2, {2})]


def test_one_inside_another_has_its_own_number():
    with threads_limited(1):
        with threads_limited(2):
            assert (blas_threads(), torch.get_num_threads()) == ({2}, 2)
            with threads_limited(1):
                assert (blas_threads(), torch.get_num_threads()) == ({1}, 1)
            assert (blas_threads(), torch.get_num_threads()) == ({2}, 2)
        assert (blas_threads(), torch.get_num_threads()) == ({1}, 1)


def test_threads_that_come_later_have_torchs_own_number():
    expected = in_a_thread(torch.get_num_threads)
    with threads_limited(expected + 1):
        assert in_a_thread(torch.get_num_threads) == expected


FORKED_WHILE_COMPUTING = """
import os, threading
from threadpoolctl import threadpool_info
import numpy
from untorn.engines.threads import threads_limited

def numbers():
    found = [info for info in threadpool_info() if info["user_api"] == "blas"]
    return sorted((info["filepath"], info["num_threads"]) for info in found)

before, inside, done = numbers(), threading.Event(), threading.Event()

def compute():
    with threads_limited(1):
        inside.set()
        done.wait()

computing = threading.Thread(target=compute)
computing.start()
inside.wait()
pid = os.fork()
if pid == 0:
    os._exit(0 if before and numbers() == before else 1)
status = os.waitpid(pid, 0)[1]
done.set()
computing.join()
raise SystemExit(status != 0)
"""


def test_a_forked_child_has_the_number_of_before():
    """Runs in its own program, since libraries that other tests import may start threads."""
    ran = subprocess.run([sys.executable, "-c", FORKED_WHILE_COMPUTING], check=False, timeout=helpers.WATCHDOG_S)
    assert ran.returncode == 0
