"""How far embedded prompts of other text encoders are from the pipeline's own."""

from __future__ import annotations

import torch

from accuquant.denoising.start import Start


def embedding_errors(start: Start, other: Start) -> dict[str, float]:
    """Return, by the name of a conditioning tensor, |other - own| / |own| over a batch; none that is 0."""
    tiny = torch.finfo(torch.float64).tiny
    errors = {}
    for name, tensor in start.conditioning.tensors.items():
        own, moved = tensor.double(), other.conditioning.tensors[name].double()
        errors[name] = float((moved - own).norm() / own.norm().clamp(min=tiny))
    return {name: error for name, error in errors.items() if error}


def embedding_notes(start: Start, other: Start, weights: str) -> tuple[str, ...]:
    """Return a note on text encoders whose weights are stored as `weights`, beside the pipeline's own."""
    errors = embedding_errors(start, other)
    said = ", ".join(f"{name} by {error:.2%}" for name, error in errors.items()) or "not at all"
    return (
        f"The engine's images come from text encoders with {weights} weights; what they make of the first "
        f"{len(start)} prompts differs: {said}.",
    )
