"""Train the bundled emoji-dit and emoji-unet: two latent diffusion pipelines that paint emoji at 32x32.

    npm pack emoji-datasource-google@16.0.0
    python benchmarks/train_emoji.py autoencoder emoji-datasource-google-16.0.0.tgz --minutes 6
    python benchmarks/train_emoji.py dit emoji-datasource-google-16.0.0.tgz --minutes 30
    python benchmarks/train_emoji.py unet emoji-datasource-google-16.0.0.tgz --minutes 30

The autoencoder comes first and both pipelines hold it. emoji-dit is a DiTPipeline: a class-conditional
transformer that predicts v, guided. emoji-unet is an LDMPipeline without classes: a UNet with attention at
8x8 and 4x4.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DDPMScheduler,
    DiTPipeline,
    DiTTransformer2DModel,
    LDMPipeline,
    UNet2DModel,
)
from emoji_images import Emoji, draw, moved, read_emoji
from torch import Tensor, nn
from train_reference import min_snr_weights, train_for

#: DiTPipeline takes 1000 for "no class", whatever the network's own number is; label k shows class k % 4.
NUM_LABELS = 1000
UNGUIDED = 0.1  # share of images without their class, for classifier-free guidance, arXiv 2207.12598
NOISE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}  # Stable Diffusion's
#: What emoji-dit is trained on, its labels 0 to 3; emoji-unet, which takes no class, on the first two.
DIT_CLASSES = ("face", "heart", "clock", "flag")
UNET_CLASSES = DIT_CLASSES[:2]
COPIES = 4  # of each image, moved differently, as latents
BATCH_SIZE = 24
WARMUP_STEPS = 50  # of the few hundred steps that a slow core has time for


def build_autoencoder() -> AutoencoderKL:
    """Return the untrained autoencoder: 32x32 RGB images to 4 x 16 x 16 latents; 0.16 M parameters."""
    return AutoencoderKL(
        block_out_channels=(16, 32),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=16,
        sample_size=32,
        mid_block_add_attention=False,
    )


def build_transformer(num_labels: int) -> DiTTransformer2DModel:
    """Return the untrained transformer: 64 tokens of width 96, 4 blocks, adaLN-Zero as DiT starts it."""
    network = DiTTransformer2DModel(
        sample_size=16,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=4,
        num_attention_heads=3,
        attention_head_dim=32,
        num_embeds_ada_norm=num_labels,
    )
    for block in network.transformer_blocks:
        nn.init.zeros_(block.norm1.linear.weight)
        nn.init.normal_(block.norm1.emb.class_embedder.embedding_table.weight, std=0.02)
        block.norm1.emb.class_embedder.dropout_prob = 0.0  # else every block drops the class by itself
    for layer in (network.proj_out_1, network.proj_out_2):
        nn.init.zeros_(layer.weight)
    return network


def build_unet() -> UNet2DModel:
    """Return the untrained UNet, 1.69 M parameters."""
    return UNet2DModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        layers_per_block=1,
        block_out_channels=(48, 64, 80),
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=16,
        norm_num_groups=16,
    )


def train_autoencoder(emoji: Emoji, *, minutes: float, base_rate: float) -> AutoencoderKL:
    """Train the autoencoder for `minutes` and return its average, with its scaling factor."""
    vae, average = build_autoencoder(), build_autoencoder()

    def loss_of_step(_step: int) -> Tensor:
        images = moved(emoji.images[draw(emoji.labels, BATCH_SIZE // 3)])
        posterior = vae.encode(images).latent_dist
        error = (vae.decode(posterior.sample()).sample - images).square().mean()
        return error + 1e-4 * posterior.kl().mean() / images[0].numel()

    train_for(
        minutes,
        vae,
        average,
        loss_of_step,
        base_rate=base_rate,
        warmup_steps=WARMUP_STEPS,
        name="autoencoder",
    )
    scale = 1 / encode(average, Emoji(emoji.images[draw(emoji.labels, 500)], torch.zeros(500))).std().item()
    average.register_to_config(scaling_factor=average.config.scaling_factor * scale)
    return average


@torch.no_grad()
def encode(vae: AutoencoderKL, emoji: Emoji) -> Tensor:
    """Return the latents [N, 4, 16, 16] of emoji, moved, times the autoencoder's scaling factor."""
    parts = [vae.encode(moved(part)).latent_dist.mean for part in emoji.images.split(100)]
    return torch.cat(parts) * vae.config.scaling_factor


def train_transformer(
    latents: Tensor, labels: Tensor, *, minutes: float, base_rate: float
) -> DiTTransformer2DModel:
    """Train the transformer for `minutes` and return its average, with 1000 labels."""
    classes = len(DIT_CLASSES)
    network, average = build_transformer(classes), build_transformer(classes)
    scheduler = DDPMScheduler(**NOISE)

    def loss_of_step(_step: int) -> Tensor:
        chosen = draw(labels, BATCH_SIZE)
        names = torch.where(torch.rand(BATCH_SIZE) < UNGUIDED, classes, labels[chosen])
        noisy, noise, timesteps = noised(latents[chosen], scheduler)
        target = scheduler.get_velocity(latents[chosen], noise, timesteps)
        return (network(noisy, timestep=timesteps, class_labels=names).sample - target).square().mean()

    train_for(
        minutes,
        network,
        average,
        loss_of_step,
        base_rate=base_rate,
        warmup_steps=WARMUP_STEPS,
        name="transformer",
    )
    return with_all_labels(average)


def with_all_labels(network: DiTTransformer2DModel) -> DiTTransformer2DModel:
    """Return the transformer with a row for every label that DiTPipeline may pass."""
    classes = len(DIT_CLASSES)
    rows = torch.cat([torch.arange(NUM_LABELS) % classes, torch.tensor([classes])])
    state = {
        name: value[rows] if name.endswith("embedding_table.weight") else value
        for name, value in network.state_dict().items()
    }
    whole = build_transformer(NUM_LABELS)
    whole.load_state_dict(state)
    return whole.eval()


def train_unet(latents: Tensor, labels: Tensor, *, minutes: float, base_rate: float) -> UNet2DModel:
    """Train the UNet for `minutes` and return its average."""
    network, average = build_unet(), build_unet()
    scheduler = DDPMScheduler(**NOISE)
    weights = min_snr_weights(scheduler)

    def loss_of_step(_step: int) -> Tensor:
        noisy, noise, timesteps = noised(latents[draw(labels, BATCH_SIZE)], scheduler)
        errors = (network(noisy, timesteps).sample - noise).square().mean((1, 2, 3))
        return (errors * weights[timesteps]).mean()

    train_for(
        minutes, network, average, loss_of_step, base_rate=base_rate, warmup_steps=WARMUP_STEPS, name="UNet"
    )
    return average


def noised(latents: Tensor, scheduler: DDPMScheduler) -> tuple[Tensor, Tensor, Tensor]:
    """Return noisy latents [B, 4, 16, 16], their noise, and their random timesteps [B]."""
    timesteps = torch.randint(0, len(scheduler.alphas_cumprod), (len(latents),))
    noise = torch.randn_like(latents)
    return scheduler.add_noise(latents, noise, timesteps), noise, timesteps


def sampler(prediction_type: str) -> DDIMScheduler:
    """Return the DDIM sampler of a pipeline, with Stable Diffusion's noise."""
    return DDIMScheduler(
        **NOISE, prediction_type=prediction_type, steps_offset=1, clip_sample=False, set_alpha_to_one=False
    )


def make_dit(emoji: Emoji, vae: AutoencoderKL, minutes: float, base_rate: float) -> DiTPipeline:
    """Train emoji-dit."""
    network = train_transformer(*_copies(emoji.of(*DIT_CLASSES), vae), minutes=minutes, base_rate=base_rate)
    pipeline = DiTPipeline(network.half(), vae.half(), sampler("v_prediction"))
    pipeline.register_to_config(id2label={str(label): name for label, name in enumerate(DIT_CLASSES)})
    return pipeline


def make_unet(emoji: Emoji, vae: AutoencoderKL, minutes: float, base_rate: float) -> LDMPipeline:
    """Train emoji-unet."""
    latents, labels = _copies(emoji.of(*UNET_CLASSES), vae)
    network = train_unet(latents, labels, minutes=minutes, base_rate=base_rate)
    return LDMPipeline(vqvae=vae.half(), unet=network.half(), scheduler=sampler("epsilon"))


def _copies(emoji: Emoji, vae: AutoencoderKL) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    return torch.cat([encode(vae, emoji) for _ in range(COPIES)]), emoji.labels.repeat(COPIES)


PIPELINES: dict[str, Callable[[Emoji, AutoencoderKL, float, float], DiTPipeline | LDMPipeline]] = {
    "dit": make_dit,
    "unet": make_unet,
}


def main() -> None:
    """Parse the command line, train, and save the pipeline."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("autoencoder", *PIPELINES))
    parser.add_argument("archive", type=Path, help="emoji-datasource-google-16.0.0.tgz")
    parser.add_argument("--output", type=Path, default=Path("emoji"), help="holds the three folders")
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()

    torch.manual_seed(0)
    torch.set_num_threads(arguments.threads)
    torch.set_flush_denormal(True)
    emoji = read_emoji(arguments.archive)
    minutes, base_rate = arguments.minutes, arguments.learning_rate
    folder = arguments.output / "autoencoder"
    if arguments.what == "autoencoder":
        train_autoencoder(emoji, minutes=minutes, base_rate=base_rate).save_pretrained(folder)
        return
    vae = AutoencoderKL.from_pretrained(folder)
    pipeline = PIPELINES[arguments.what](emoji, vae, minutes, base_rate)
    pipeline.save_pretrained(arguments.output / f"emoji-{arguments.what}")


if __name__ == "__main__":
    main()
