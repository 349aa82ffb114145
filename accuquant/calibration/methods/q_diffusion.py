"""Calibrate by Q-Diffusion: blocks reconstructed on latents of evenly spaced steps."""

from __future__ import annotations

from .calibration_set import evenly_spaced
from .method import Found, Method, Run
from .observed import batch_sizes, observe
from .ranges import ranged
from .reconstruction import few_of, reconstruct

#: Steps of the trajectories that the calibration set is drawn from: of 100 in section 4.1, every fifth.
STEPS = 20


def find(run: Run) -> Found:
    """Return learned levels and one learned scale a layer for all steps."""
    picks = evenly_spaced(batch_sizes(run), len(run.process), STEPS)
    first = ranged(run, observe(run, picks), "norm")
    found = reconstruct(run, first, picks, scales=True)
    facts = {
        "calls": len(picks),
        "reconstructed_on": sum(len(pick.rows) for pick in few_of(picks)),
        "block_errors": {name: list(pair) for name, pair in found.errors.items()},
    }
    return Found(found.layers, facts)


METHOD = Method(
    name="q-diffusion",
    meaning="AdaRound and LSQ block by block, one set for all steps, latents of 20 evenly spaced steps",
    source="Li et al., arXiv 2302.04304, sections 4.1 and 4.2; order, norms and rates as in the authors'"
    " repository",
    matched="the calibration set; AdaRound of each block with the errors of the blocks before it; then "
    "the activation scales of each block by |error|^2.4; one activation set",
    not_matched="20,000 and 5,000 iterations on 5,120 latents: --iterations and a quarter of them on 256, at "
    "a higher rate. Split quantization of skip concatenations: a QDQ pair has one scale, and a "
    "layer sums its inputs in one int32, so that no engine could run two. Attention products and "
    "the first and last layer stay in float here, for all methods",
    find=find,
    options=("iterations",),
    every_step=True,
    iterations=500,
)
