"""Calibrate by TFMQ-DM: temporal features are kept, ranges are running means for every step."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

import numpy as np
import numpy.typing as npt

from accuquant.qparams import LayerQParams
from accuquant.scales.observer import min_max_scale

from . import q_diffusion
from .calibration_set import Pick, evenly_spaced, every_step
from .method import Found, Method, Run
from .observed import Observed, batch_sizes, observe
from .ranges import ranged
from .reconstruction import reconstruct
from .weights_only import with_quantized_weights

#: Layers that see the timestep and nothing of the image. They are in float here unless --include names them.
TEMPORAL = ("time_embedding.*", "*time_emb_proj", "*.emb.timestep_embedder.*", "adaln_single.*")
#: Share of the old range that a running mean keeps, in the authors' repository.
KEPT = 0.95


def find(run: Run) -> Found:
    """Return learned levels, and a scale a step group by running means of the extremes."""
    sizes, steps = batch_sizes(run), len(run.process)
    picks = evenly_spaced(sizes, steps, q_diffusion.STEPS)
    first = ranged(run, observe(run, picks), "norm")
    # the finite set: one latent at every step is all that a temporal layer can ever see
    finite = [Pick(0, step, (0,)) for step in range(steps)]
    temporal = {name: finite for name in run.placement.quantized if is_temporal(name)}
    found = reconstruct(run, first, picks, scales=False, alone=temporal)
    network = with_quantized_weights(run.source.network, found.layers, run.groups)
    members = run.groups.steps_of(run.process.timesteps)
    whole = every_step(sizes, steps)
    seen = [observe(run, [pick for pick in whole if pick.step in group], network) for group in members]
    layers = {
        name: _with_running_ranges(layer, [s[name] for s in seen]) for name, layer in found.layers.items()
    }
    errors = {name: list(pair) for name, pair in found.errors.items()}
    return Found(layers, {"calls": len(picks), "temporal_layers": len(temporal), "block_errors": errors})


def is_temporal(name: str) -> bool:
    """Say whether a layer's input follows from the timestep alone."""
    return any(fnmatchcase(name, pattern) for pattern in TEMPORAL)


def running_mean(values: npt.NDArray[np.float32], kept: float = KEPT) -> float:
    """Return m after m <- kept m + (1 - kept) v over `values` [calls], begun with the first."""
    mean = float(values[0])
    for value in values[1:]:
        mean = kept * mean + (1 - kept) * float(value)
    return mean


def _with_running_ranges(layer: LayerQParams, seen: Sequence[Observed]) -> LayerQParams:
    scales = [
        min_max_scale(
            np.array([running_mean(one.lows), running_mean(one.highs)], np.float32),
            layer.activation_bits,
            layer.zero_point,
        )
        for one in seen
    ]
    return layer.with_activation_scale(np.array(scales, np.float32))


METHOD = Method(
    name="tfmq",
    meaning="block-wise AdaRound with temporal layers on their own, running-mean ranges for every step",
    source="Huang et al., arXiv 2311.16503, sections 3.3 and 3.4; running means and ranges for every "
    "sampled step as in the authors' repository",
    matched="temporal layers reconstructed alone, on the finite set of all timesteps, where --include "
    "quantizes them (by default they stay in float here, for all methods: the features are kept "
    "exactly); blocks by AdaRound; ranges of each step by running means in the network with "
    "quantized weights",
    not_matched="its exemptions of down- and upsampling convolutions: all methods quantize the same layers "
    "(--exclude '*samplers*' is theirs). Iterations and latents as with q-diffusion. One "
    "zero-point for all steps",
    find=find,
    options=("group_size", "iterations"),
    defaults={"group_size": 1},
    one_set=False,
    every_step=True,
    iterations=q_diffusion.METHOD.iterations,
)
