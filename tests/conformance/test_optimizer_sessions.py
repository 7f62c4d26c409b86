"""An optimizer of another library lives as long as its trainer: calls of fit, streams and steps are one training.

JAX starts threads with its first array, and warns at every fork after that. So the functions named ``jax_...`` run in
their own process.
"""

from __future__ import annotations

import functools
import os
import signal
import subprocess
import sys
from typing import Any

import pytest

pytest.importorskip("torch")

import torch

import networks
import unusual_optimizers as unusual
from untorn.train import SGD, Adam, Callback, Trainer, weights_sha256

DATA = networks.classes_of(100, 8, 3)
TAKEN = {
    name: functools.partial(cls, lr=0.01)
    for name, cls in sorted(vars(torch.optim).items())
    if isinstance(cls, type) and issubclass(cls, torch.optim.Optimizer)
    if name not in ("Optimizer", "LBFGS", "SparseAdam", "Muon")  # these need a closure, sparse gradients, matrices only
} | {
    "fused": Adam(0.01),
    "state_dict": unusual.TwoAdamsWithStateDict,
    "moving": functools.partial(unusual.Moving, lr=0.1),
}
ALL = TAKEN | {name: make for name, (make, _) in unusual.OUTSIDE.items()}


def trainer(optimizer: Any, **arguments: Any) -> Any:
    return Trainer(networks.mlp, networks.mlp_params((8, 16, 3)), optimizer=optimizer, **{"shards": 2} | arguments)


def batches(epochs: int = 1) -> Any:
    """The last of 7 batches is smaller."""
    for _ in range(epochs):
        for first in range(0, 100, 16):
            yield tuple(part[first : first + 16] for part in DATA)


@pytest.mark.parametrize("name", ALL)
def test_four_fits_are_one(name):
    digests = {}
    for calls in (1, 4):
        with trainer(ALL[name], engine="serial") as made:
            for _ in range(calls):
                made.fit(DATA, epochs=4 // calls, batch_size=16, shuffle=False)
            digests[f"{calls} calls of fit"] = weights_sha256(made.params)
            before = networks.mlp_params((8, 16, 3))[0].w
            assert (made.params[0].w != before).any()
    with trainer(ALL[name], engine="serial") as made:
        made.fit(batches(2), epochs=1)
        made.fit(batches(), epochs=1)
        for batch in batches():
            made.step(batch)
        digests["a stream, another one, and steps"] = weights_sha256(made.params)
    assert len(set(digests.values())) == 1, digests


@pytest.mark.parametrize("name", ["NAdam", "state_dict", "moving", "Adafactor"])
def test_a_checkpoint_continues(name, tmp_path):
    pytest.importorskip("safetensors")
    digests = []
    for resume in (False, True):
        with trainer(TAKEN[name], engine="serial") as made:
            if resume:
                made.load(tmp_path / "saved")
            else:
                made.fit(DATA, epochs=2, batch_size=16)
                made.save(tmp_path / "saved")
            made.fit(DATA, epochs=2, batch_size=16)
            digests.append(weights_sha256(made.params))
    assert digests[0] == digests[1]


@pytest.mark.parametrize("name", unusual.OUTSIDE)
def test_what_no_checkpoint_can_have_is_refused_before_training(name, tmp_path):
    pytest.importorskip("safetensors")
    make, text = unusual.OUTSIDE[name]
    with trainer(make, engine="serial") as made:
        made.params = networks.mlp_params((8, 16, 3), seed=2)  # before the first step it may begin with any
        for call in (
            lambda: made.fit(DATA, epochs=1, batch_size=16, checkpoint_dir=tmp_path),
            lambda: made.save(tmp_path / "x"),
            lambda: made.load(tmp_path / "x"),
        ):
            with pytest.raises(ValueError, match="cannot begin from a version of the weights") as caught:
                call()
            assert text in str(caught.value)
        assert made.step == 0
        made.step(next(batches()))
        with pytest.raises(ValueError, match="params: this optimizer cannot begin"):
            made.params = networks.mlp_params((8, 16, 3))
    with pytest.raises(ValueError, match="engine: this optimizer cannot begin from a version"):
        trainer(make, engine="loopback", nodes=1)


def test_a_global_variable_is_found_by_the_bits():
    text = "Global keeps something that no attribute has, such as global variables"
    made = trainer(functools.partial(unusual.Global, lr=0.1), engine="serial")
    with pytest.raises(ValueError, match=text):
        made.save("x")


def test_a_step_that_was_interrupted(monkeypatch):
    """What has the state of a step that is not published begins anew from the version, or says that it cannot."""
    from untorn.train.run import server_steps

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    digests = []
    for interrupt in (False, True):
        with trainer(TAKEN["NAdam"], engine="serial") as made:
            for number, batch in enumerate(batches()):
                if interrupt and number == 3:
                    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
                        patch.setattr(server_steps.lowlevel, "update_leaves", interrupted)
                        made.step(batch)
                made.step(batch)
            digests.append(weights_sha256(made.params))
    assert digests[0] == digests[1]
    with trainer(unusual.TwoAdams, engine="serial") as made:
        made.step(next(batches()))
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(server_steps.lowlevel, "update_leaves", interrupted)
            made.step(next(batches()))
        with pytest.raises(RuntimeError, match="it cannot go on: TwoAdams keeps its attributes number"):
            made.step(next(batches()))


def test_workers_may_die_meanwhile():
    class Kill(Callback):
        def on_batch_end(self, batch, logs):
            if batch == 2:
                os.kill(self.trainer.pids[0], signal.SIGKILL)

    digests = []
    for engine in ({"engine": "serial"}, {"workers": 2}):
        with trainer(unusual.lookahead, **engine) as made:
            for _ in range(3):
                made.fit(DATA, epochs=1, batch_size=16, callbacks=[Kill()] if "workers" in engine else [])
            digests.append(weights_sha256(made.params))
    assert digests[0] == digests[1]


def test_on_nodes():
    digests = []
    for engine in ({"engine": "serial"}, {"engine": "loopback", "nodes": 1, "workers": 1}):
        with trainer(unusual.TwoAdamsWithStateDict, **engine) as made:
            for _ in range(2):
                made.fit(DATA, epochs=1, batch_size=16)
            made.step(next(batches()))
            digests.append(weights_sha256(made.params))
    assert digests[0] == digests[1]


def test_a_rate_that_is_set_and_set_back():
    """The same for an optimizer that lives on and for one that begins anew, with rates of two groups."""

    def grouped(parameters: list[Any]) -> Any:
        return torch.optim.SGD([{"params": parameters[:2]}, {"params": parameters[2:], "lr": 0.7}], lr=0.3)

    digests = []
    for anew in (False, True):
        with trainer(grouped, engine="serial") as made:
            for rate in (0.3, 0.1, 0.3):
                made.learning_rate = rate
                if anew:
                    made.params = made.params
                made.step(next(batches()))
            digests.append(weights_sha256(made.params))
    assert digests[0] == digests[1]


traced: list[int] = []


def jax_chains() -> None:
    import optax

    def counted(optimizer: Any) -> Any:
        def update(*arguments: Any) -> Any:
            traced.append(1)
            return optimizer.update(*arguments)

        return optax.GradientTransformation(optimizer.init, update)

    rate = optax.warmup_cosine_decay_schedule(0.0, 0.05, 5, 40)
    chain = optax.chain(optax.clip_by_global_norm(1.0), optax.ema(0.9), optax.MultiSteps(optax.adam(rate), 2))
    for optimizer in (optax.adam(0.01), chain):
        digests = []
        for calls in (1, 4):
            with trainer(counted(optimizer), engine="serial") as made:
                traced.clear()
                for _ in range(calls):
                    made.fit(DATA, epochs=4 // calls, batch_size=16, shuffle=False)
                digests.append(weights_sha256(made.params))
            assert len(traced) == 1, traced
        with trainer(counted(optimizer), engine="serial") as made:
            traced.clear()
            made.fit(batches(2), epochs=1)
            made.params = made.params  # begins anew, with what is compiled
            for batch in batches(2):
                made.step(batch)
            digests.append(weights_sha256(made.params))
        assert len(traced) == 1, traced
        assert len(set(digests)) == 1, digests


def jax_impure() -> None:
    import optax

    seen = {"steps": 0}

    def update(gradients: Any, state: Any, params: Any = None) -> Any:
        seen["steps"] += 1
        return gradients, state

    with pytest.raises(TypeError, match=r"its update changes seen\['steps'\], beside the state"):
        trainer(optax.GradientTransformation(lambda params: (), update), engine="serial")


def test_optax_compiles_its_step_once_for_all_calls():
    pytest.importorskip("optax")
    code = "import test_optimizer_sessions as t; t.jax_chains(); t.jax_impure()"
    path = os.pathsep.join(sys.path)
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_the_fused_ones_need_no_session():
    with trainer(SGD(0.1), engine="serial") as made:
        made.fit(DATA, epochs=1, batch_size=16)
        assert made._pool.steppers._kept is None
