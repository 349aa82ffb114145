"""Calibrate by PCR: each step's ranges from the inputs that the steps before, quantized, really give it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from accuquant.denoising.process import ProcessState
from accuquant.networks.device import device_of
from accuquant.networks.simulate import quantize_network, quantized_layers
from accuquant.scales.observer import observer_named

from . import q_diffusion
from .calibration_set import evenly_spaced
from .method import Found, Method, Run
from .observed import InputObserver, batch_sizes, observe
from .ranges import ranged
from .reconstruction import reconstruct
from .weights_only import with_quantized_weights

#: A trajectory on its way: latents, and what the sampler remembers.
Position = tuple[Tensor, ProcessState]


def find(run: Run) -> Found:
    """Return learned levels, and a scale a step group from the quantized network's own trajectory."""
    picks = evenly_spaced(batch_sizes(run), len(run.process), q_diffusion.STEPS)
    first = ranged(run, observe(run, picks), "norm")
    found = reconstruct(run, first, picks, scales=False)
    errors = {name: list(pair) for name, pair in found.errors.items()}
    network = run.source.network
    watched = with_quantized_weights(network, found.layers, run.groups)
    quantized = quantize_network(network, found.layers.values(), run.groups)
    progress(run, watched, quantized)
    layers = {name: layer.learned_qparams() for name, layer in quantized_layers(quantized).items()}
    return Found(layers, {"calls": len(picks), "block_errors": errors})


@torch.no_grad()
def progress(run: Run, watched: nn.Module, quantized: nn.Module) -> None:
    """Set the scales of `quantized` group by group, each from where its own steps before have led.

    `watched` has the same weights and float activations: the ranges of a group are observed in it.
    """
    layers, search = quantized_layers(quantized), observer_named("norm")
    members = run.groups.steps_of(run.process.timesteps)
    positions = [(batch.latents_before(0), batch.state_before(0)) for batch in run.batches]
    run.shown.stage("progressive ranges", 2 * len(run.process) * len(run.batches))
    for group, steps in enumerate(members):
        calls = len(steps) * len(run.batches)
        observer = InputObserver(tuple(layers), calls, run.settings.seed + group)
        with observer.watch(watched):
            _advanced(run, watched, steps, positions)
        for name, seen in observer.observed().items():
            bits, zero_point = layers[name].qparams.activation_bits, layers[name].qparams.zero_point
            layers[name].set_scale(group, float(np.float32(search(seen.with_extremes, bits, zero_point))))
        positions = _advanced(run, quantized, steps, positions)


def _advanced(
    run: Run, network: nn.Module, steps: Sequence[int], positions: Sequence[Position]
) -> list[Position]:
    """Return where `network` takes every batch from its position by `steps`."""
    moved, process, device = [], run.process, device_of(network)
    for batch, (latents, state) in zip(run.batches, positions, strict=True):
        here = batch.to(device)
        generators, latents = process.restore_state(state), latents.to(device)
        for step in steps:
            if step == 0:
                process.reset()
            latents = process.step(here.bind(network), latents, step, generators)
            run.shown.advance()
        moved.append((latents, process.save_state(generators)))
    return moved


METHOD = Method(
    name="pcr",
    meaning="progressive: the ranges of each step from inputs that the quantized steps before it give",
    source="Tang et al., arXiv 2311.06322, section 3.2 (progressive calibration); weights as in "
    "Q-Diffusion, which it builds on",
    matched="steps calibrated in their order, each on latents of the network that is quantized up to "
    "there; a scale for every step; blocks by AdaRound",
    not_matched="activation relaxing (section 3.3): 10 bits in the steps that matter most, which no int8 "
    "engine has",
    find=find,
    options=("group_size", "iterations"),
    defaults={"group_size": 1},
    one_set=False,
    every_step=True,
    iterations=q_diffusion.METHOD.iterations,
)
