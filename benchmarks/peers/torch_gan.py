"""A DCGAN (Radford, Metz and Chintala, 2016) and its training in one process: both networks take turns on each batch.

The loop is the usual one: the discriminator learns from real images and from made ones, and the generator from what the
discriminator then says of the same made images.
"""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.peers.torch_crew import Seat

if TYPE_CHECKING:
    from torch import Tensor, nn

NOISE, RATE, BETAS = 100, 2e-4, (0.5, 0.999)


@dataclass(frozen=True)
class GanCase:
    """A training: the width of both networks, the edge of the images in pixels (32 or 64), the size of a batch, and the
    number of batches of a turn, each of which trains both networks."""

    width: int
    edge: int
    batch: int
    steps: int

    def images(self) -> np.ndarray:
        """Return the images of a turn."""
        shape = (self.batch * self.steps, 3, self.edge, self.edge)
        return np.random.default_rng(0).uniform(-1, 1, shape).astype(np.float32)

    def module(self) -> nn.Module:
        """Return a module with the generator netG and the discriminator netD, and their usual first weights."""
        import torch
        from torch import nn

        torch.manual_seed(0)
        doublings = self.edge.bit_length() - 4  # from 4 pixels to half the edge
        up, down, wide = [], [], self.width << doublings
        up += [nn.ConvTranspose2d(NOISE, wide, 4, bias=False), nn.BatchNorm2d(wide), nn.ReLU(True)]
        down += [nn.Conv2d(3, self.width, 4, 2, 1, bias=False), nn.LeakyReLU(0.2, True)]
        for level in range(doublings):
            wide, narrow = self.width << doublings - level, self.width << doublings - level - 1
            up += [nn.ConvTranspose2d(wide, narrow, 4, 2, 1, bias=False), nn.BatchNorm2d(narrow), nn.ReLU(True)]
            wide, narrow = self.width << level + 1, self.width << level
            down += [nn.Conv2d(narrow, wide, 4, 2, 1, bias=False), nn.BatchNorm2d(wide), nn.LeakyReLU(0.2, True)]
        up += [nn.ConvTranspose2d(self.width, 3, 4, 2, 1, bias=False), nn.Tanh()]
        down += [nn.Conv2d(self.width << doublings, 1, 4, bias=False), nn.Flatten()]
        gan = nn.Module()
        gan.netG, gan.netD = nn.Sequential(*up), nn.Sequential(*down)
        for each in gan.modules():
            if isinstance(each, nn.Conv2d | nn.ConvTranspose2d):
                nn.init.normal_(each.weight, 0.0, 0.02)
        return gan


def made(gan: Any, images: Tensor) -> Any:
    """Return an image of noise for each of these."""
    import torch

    return gan.netG(torch.randn(len(images), NOISE, 1, 1))


def cost(answers: Tensor, *, real: bool) -> Tensor:
    """Return the binary cross-entropy of the discriminator's answers for images that are real, or that are to pass."""
    import torch
    from torch.nn.functional import binary_cross_entropy_with_logits

    return binary_cross_entropy_with_logits(answers, torch.full_like(answers, float(real)))


def discriminate(gan: Any, images: Tensor) -> Tensor:
    """Return the loss of the discriminator."""
    return cost(gan.netD(images), real=True) + cost(gan.netD(made(gan, images)), real=False)


def generate(gan: Any, images: Tensor) -> Tensor:
    """Return the loss of the generator."""
    return cost(gan.netD(made(gan, images)), real=True)


def take_part(seat: Seat, connection: Connection) -> None:
    """Train with PyTorch: see torch_crew.Member."""
    import torch

    torch.set_num_threads(seat.threads)
    with contextlib.suppress(EOFError, ConnectionError):  # the benchmark is over, or interrupted
        while True:
            case, _ = connection.recv()
            gan, images = case.module(), torch.from_numpy(case.images())
            adams = [torch.optim.Adam(part.parameters(), RATE, BETAS) for part in (gan.netD, gan.netG)]
            connection.send(0.0)
            while connection.recv():
                start = time.perf_counter()
                for batch in images.split(case.batch):
                    _step(gan, batch, *adams)
                connection.send(time.perf_counter() - start)
            connection.send(0.0)


def _step(gan: Any, real: Tensor, of_discriminator: Any, of_generator: Any) -> None:
    gan.netD.zero_grad()
    cost(gan.netD(real), real=True).backward()
    fake = made(gan, real)
    cost(gan.netD(fake.detach()), real=False).backward()
    of_discriminator.step()
    gan.netG.zero_grad()
    cost(gan.netD(fake), real=True).backward()
    of_generator.step()
