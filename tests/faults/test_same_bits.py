"""The same SHA-256 for every number of workers, after kills of workers and of servers, and after resizing: for models
of NumPy, PyTorch (with batch normalisation and dropout) and JAX, with SGD, AdamW and an optimizer of torch.optim.

The whole table takes half an hour, so by default only one cell of it runs, with few kills.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).with_name("same_bits.py")


def run(model: str, optimizer: str, *arguments: object) -> None:
    command = [sys.executable, PROGRAM, model, optimizer, *map(str, arguments)]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PJRT_NPROC": "2"}  # as the workers have it
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    print(ended.stdout)
    assert ended.returncode == 0, ended.stdout + ended.stderr


def test_the_same_bits_in_every_way(seed):
    pytest.importorskip("safetensors")
    run("numpy", "adamw", "--seed", seed, "--kills", 4, "--server-kills", 1)


@pytest.mark.soak
@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "torch.optim"])
@pytest.mark.parametrize("model", ["numpy", "torch", "jax"])
def test_every_model_with_every_optimizer(seed, model, optimizer):
    run(model, optimizer, "--seed", seed)
