"""Train the bundled fashion-ddpm: a small epsilon-prediction UNet2DModel on Fashion-MNIST padded to 32x32.

    python benchmarks/train_reference.py train-images-idx3-ubyte.gz t10k-images-idx3-ubyte.gz

The arguments are Fashion-MNIST's own image files. 90 minutes on 2 cores made the bundled weights.
"""

from __future__ import annotations

import argparse
import gzip
import math
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from diffusers import DDIMPipeline, DDIMScheduler, DDPMScheduler, UNet2DModel
from torch import Tensor, nn

MAX_EMA_DECAY = 0.9995
WARMUP_STEPS = 300
MIN_SNR_GAMMA = 5.0  # "Efficient Diffusion Training via Min-SNR Weighting Strategy", arXiv 2303.09556


def read_images(path: Path) -> Tensor:
    """Read an IDX file of images (MNIST's format, gzipped) -> uint8 [N, 1, 32, 32], padded by 2."""
    data = gzip.decompress(path.read_bytes())
    magic, count, height, width = np.frombuffer(data, ">u4", 4)
    if magic != 0x803 or (height, width) != (28, 28):
        raise SystemExit(f"{path}: expected an IDX file of 28x28 images, such as train-images-idx3-ubyte.gz")
    pixels = np.frombuffer(data, np.uint8, offset=16).reshape(count, 1, 28, 28)
    return nn.functional.pad(torch.from_numpy(pixels.copy()), (2, 2, 2, 2))


def build_network() -> UNet2DModel:
    """Return the untrained network, 2.73 M parameters."""
    return UNet2DModel(
        sample_size=32,
        in_channels=1,
        out_channels=1,
        layers_per_block=1,
        block_out_channels=(32, 64, 128),
        down_block_types=("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
        attention_head_dim=32,
        norm_num_groups=32,
    )


def min_snr_weights(scheduler: DDPMScheduler) -> Tensor:
    """Return the loss weight of each training timestep [T] for epsilon prediction."""
    snr = scheduler.alphas_cumprod / (1 - scheduler.alphas_cumprod)
    return snr.clamp(max=MIN_SNR_GAMMA) / snr


def learning_rate(base: float, step: int, progress: float, warmup_steps: int = WARMUP_STEPS) -> float:
    """Return a linear warm-up times a cosine that ends at 2 % of `base`; progress runs from 0 to 1."""
    cosine = 0.5 * (1 + math.cos(math.pi * progress))
    return base * min(1.0, (step + 1) / warmup_steps) * (0.98 * cosine + 0.02)


def loss_of_batch(network: nn.Module, images: Tensor, scheduler: DDPMScheduler, weights: Tensor) -> Tensor:
    """Return the weighted epsilon-prediction loss of images [B, 1, 32, 32] in [-1, 1]."""
    timesteps = torch.randint(0, len(weights), (len(images),))
    noise = torch.randn_like(images)
    noisy = scheduler.add_noise(images, noise, timesteps)
    with torch.autocast("cpu", torch.bfloat16):
        predicted = network(noisy, timesteps).sample
    return ((predicted.float() - noise).square().mean((1, 2, 3)) * weights[timesteps]).mean()


@torch.no_grad()
def update_average(average: nn.Module, network: nn.Module, step: int) -> None:
    """Move the exponential moving average towards the network, faster in the first steps."""
    decay = min(MAX_EMA_DECAY, (1 + step) / (10 + step))
    for mean, live in zip(average.parameters(), network.parameters(), strict=True):
        mean.lerp_(live, 1 - decay)


def train_for(
    minutes: float,
    live: nn.Module,
    average: nn.Module,
    loss_of_step: Callable[[int], Tensor],
    *,
    base_rate: float,
    weight_decay: float = 1e-4,
    warmup_steps: int = WARMUP_STEPS,
    name: str = "network",
) -> None:
    """Train `live` by the losses of steps 0, 1, ..., for `minutes`; `average` gets its moving average."""
    average.load_state_dict(live.state_dict())
    optimizer = torch.optim.AdamW(live.parameters(), base_rate, weight_decay=weight_decay, betas=(0.9, 0.99))
    start, step, losses = time.monotonic(), 0, []
    while (progress := (time.monotonic() - start) / (60 * minutes)) < 1:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(base_rate, step, progress, warmup_steps)
        loss = loss_of_step(step)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(live.parameters(), 1.0)
        optimizer.step()
        update_average(average, live, step)
        losses.append(loss.item())
        step += 1
        if step % 50 == 0:
            print(f"{name}, step {step}  {progress:4.0%}  loss {np.mean(losses[-500:]):.5f}", flush=True)
    average.eval()


def train(images: Tensor, *, minutes: float, batch_size: int, base_rate: float) -> UNet2DModel:
    """Train for `minutes` and return the averaged network."""
    network, average = build_network(), build_network()
    scheduler = DDPMScheduler(num_train_timesteps=1000, beta_schedule="linear")
    weights = min_snr_weights(scheduler)

    def loss_of_step(step: int) -> Tensor:
        batch = images[torch.randint(len(images), (batch_size,))].float() / 127.5 - 1
        return loss_of_batch(network, batch.flip(-1) if step % 2 else batch, scheduler, weights)

    train_for(minutes, network, average, loss_of_step, base_rate=base_rate)
    return average


def main() -> None:
    """Parse the command line, train, and save the pipeline."""
    parser = argparse.ArgumentParser(description="Train the bundled fashion-ddpm.")
    parser.add_argument("images", type=Path, nargs="+", help="Fashion-MNIST's *-images-idx3-ubyte.gz files")
    parser.add_argument("--output", type=Path, default=Path("fashion-ddpm"))
    parser.add_argument("--minutes", type=float, default=90)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--learning-rate", type=float, default=1.5e-3)
    arguments = parser.parse_args()

    torch.manual_seed(0)
    torch.set_flush_denormal(True)
    images = torch.cat([read_images(path) for path in arguments.images])
    network = train(
        images,
        minutes=arguments.minutes,
        batch_size=arguments.batch_size,
        base_rate=arguments.learning_rate,
    )
    scheduler = DDIMScheduler(num_train_timesteps=1000, beta_schedule="linear", clip_sample=True)
    DDIMPipeline(unet=network.half(), scheduler=scheduler).save_pretrained(arguments.output)


if __name__ == "__main__":
    main()
