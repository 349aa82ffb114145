"""The networks that the speed and memory benchmarks run, and recipes for them without learning."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import DDIMScheduler, UNet2DModel
from torch import Tensor, nn

from accuquant.bundled import FASHION_DDPM, FASHION_TEXT
from accuquant.calibration.activations import ActivationSampler, initial_qparams
from accuquant.calibration.gradient import Segment, gradient_arm
from accuquant.calibration.learning import end_point_loss
from accuquant.calibration.placement import place
from accuquant.calibration.trajectory import TrajectoryBatch, record_trajectories
from accuquant.denoising.conditioning import Conditioning
from accuquant.denoising.process import DenoisingProcess, seeded_generators
from accuquant.groups import StepGroups
from accuquant.networks.network import count_macs, model_hash, signature_of
from accuquant.networks.simulate import quantize_network, quantized_layers
from accuquant.pipelines.source import Source, load_source
from accuquant.recipe import Recipe

MODELS = ("bundled", "cifar", "text")
_TOKENS = 77


def load_model(name: str) -> Source:
    """Return a bundled pipeline, or "cifar": the 35.7 M-parameter UNet of DDPM on CIFAR-10, untrained."""
    if name in ("bundled", "text"):
        return load_source(FASHION_DDPM if name == "bundled" else FASHION_TEXT)
    torch.manual_seed(0)
    network = UNet2DModel(
        sample_size=32,
        in_channels=3,
        out_channels=3,
        layers_per_block=2,
        block_out_channels=(128, 256, 256, 256),
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    )
    return Source(
        name="ddpm-cifar10-sized UNet, random weights",
        folder=Path(),
        pipeline_class="DDIMPipeline",
        component="unet",
        network=network.eval().requires_grad_(False),
        scheduler=DDIMScheduler(num_train_timesteps=1000, beta_schedule="linear"),
        signature=signature_of(network),
    )


def latent_shape(source: Source) -> tuple[int, ...]:
    """Return [C, H, W] of one latent at the network's default size."""
    return source.signature.sample.resolve(source.signature.sizes | {"batch": 1})[1:]


def noise_conditioning(source: Source, *, rows: int) -> dict[str, Tensor]:
    """Return noise [rows, ...] for each further input of the network: no time depends on its values."""
    rng = torch.Generator().manual_seed(1)
    sizes = source.signature.sizes | {"batch": rows, "tokens": _TOKENS}
    return {s.name: torch.randn(s.resolve(sizes), generator=rng) for s in source.signature.conditioning}


def observed_recipe(
    source: Source, *, num_groups: int, affine: bool, observer: str = "mse", weight_bits: int = 8
) -> Recipe:
    """Return a recipe of the default layers, A8: one short trajectory, one step a group, no learning."""
    process = DenoisingProcess(source.scheduler, num_groups)
    groups = StepGroups.from_timesteps(
        process.timesteps, group_size=1, num_train_timesteps=process.num_train_timesteps
    )
    names = place(source.network, count_macs(source.network, source.signature)).quantized
    sampler = ActivationSampler(names, [1] * num_groups, 0)

    def before_step(step: int) -> None:
        sampler.group = step

    with sampler.watch(source.network):
        record_trajectories(
            source.network, process, latent_shape(source), num_trajectories=1, batch_size=1, seed=0,
            conditioning=noise_conditioning(source, rows=1), before_step=before_step,
        )  # fmt: skip
    qparams = initial_qparams(
        source.network,
        sampler.samples(),
        weight_bits=weight_bits,
        activation_bits=8,
        observer=observer,
        affine=affine,
    )
    return Recipe(
        groups=groups,
        layers=qparams,
        signature=source.signature,
        scheduler={k: v for k, v in dict(source.scheduler.config).items() if not k.startswith("_")},
        model_hash=model_hash(source.network),
        calibration={"settings": {"steps": num_groups}, "source": source.name},
    )


def noise_segment(source: Source, process: DenoisingProcess, num_steps: int, batch_size: int) -> Segment:
    """Return `num_steps` steps of a batch whose latents are noise: time and memory are those of real ones."""
    generators = seeded_generators(range(batch_size))
    shape = (len(process) + 1, batch_size, *latent_shape(source))
    latents = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    states = (process.save_state(generators),) * len(process)
    return Segment(TrajectoryBatch(latents, states, Conditioning()), range(num_steps))


def learnable_network(source: Source, recipe: Recipe) -> nn.Module:
    """Return the simulated network, ready to learn its scales."""
    network = quantize_network(source.network, recipe.layers.values(), recipe.groups)
    for layer in quantized_layers(network).values():
        layer.learning = True
    return network


def iteration(
    network: nn.Module, process: DenoisingProcess, segment: Segment, gradient: str
) -> Callable[[], None]:
    """Return one calibration iteration: the arm's forwards and backwards, then Adam."""
    arm = gradient_arm(gradient)
    optimizer = torch.optim.Adam([p for p in network.parameters() if p.requires_grad], lr=1e-6)

    def loss(end: Tensor, target: Tensor) -> Tensor:
        return end_point_loss(end, target, 1e-3)

    def run() -> None:
        optimizer.zero_grad(set_to_none=True)
        arm(process, segment.batch.bind(network), segment, loss)
        optimizer.step()

    return run
