"""Train a small DCGAN on drawn images of bright squares: discriminator and generator take turns, on two workers."""

import argparse

import numpy as np
import torch
from torch import nn

from untorn import Adam, Trainer, Turns
from untorn.torch import TorchModel
from untorn.train import weights_sha256

NOISE = 8
bce = nn.BCEWithLogitsLoss()


class GAN(nn.Module):
    """Both networks: netG makes images of 16 x 16 pixels out of noise, netD tells drawn images from made ones."""

    def __init__(self):
        super().__init__()
        self.netG = nn.Sequential(
            nn.ConvTranspose2d(NOISE, 32, 4, bias=False), nn.BatchNorm2d(32), nn.ReLU(),
            nn.ConvTranspose2d(32, 16, 4, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
            nn.ConvTranspose2d(16, 1, 4, 2, 1), nn.Tanh(),
        )  # fmt: skip
        self.netD = nn.Sequential(
            nn.Conv2d(1, 16, 4, 2, 1), nn.LeakyReLU(0.2),
            nn.Conv2d(16, 32, 4, 2, 1, bias=False), nn.BatchNorm2d(32), nn.LeakyReLU(0.2),
            nn.Conv2d(32, 1, 4), nn.Flatten(),
        )  # fmt: skip

    def forward(self, count):
        """Make images."""
        return self.netG(torch.randn(count, NOISE, 1, 1))


def discriminate(gan, images):
    real, fake = gan.netD(images), gan.netD(gan(len(images)))
    return bce(real, torch.ones_like(real)) + bce(fake, torch.zeros_like(fake))


def generate(gan, images):
    fake = gan.netD(gan(len(images)))
    return bce(fake, torch.ones_like(fake))


def squares(count):
    """Return dark images, each with one bright square of 6 x 6 pixels."""
    images = np.full((count, 1, 16, 16), -1, np.float32)
    for image, (row, column) in zip(images, np.random.default_rng(0).integers(0, 10, (count, 2)), strict=True):
        image[0, row : row + 6, column : column + 6] = 1
    return images


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()

    torch.manual_seed(0)
    model = TorchModel(GAN(), None, forward={"netD": discriminate, "netG": generate})
    optimizer = Turns(netD=Adam(1e-3, betas=(0.5, 0.999)), netG=Adam(1e-3, betas=(0.5, 0.999)))
    with Trainer(model, optimizer=optimizer, workers=options.workers, shards=2) as trainer:
        history = trainer.fit(squares(1024), epochs=options.epochs, batch_size=64).history
        gan = trainer.module().eval()
        with torch.no_grad():
            share = (gan(64) > 0).float().mean()
        print(f"loss of netD {history['netD_loss'][-1]:.3f}, of netG {history['netG_loss'][-1]:.3f}")
        print(f"share of bright pixels: drawn {36 / 256:.3f}, made {share:.3f}")
        print(f"weights {weights_sha256(trainer.params)[:16]}")
