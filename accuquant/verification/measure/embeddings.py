"""How far embedded prompts of other text encoders are from the pipeline's own."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from accuquant.denoising.start import Start


def embedding_errors(starts: Iterable[Start], others: Iterable[Start]) -> dict[str, float]:
    """Return, by the name of a conditioning tensor, |other - own| / |own| over all images; none that is 0."""
    squares: dict[str, float] = {}
    powers: dict[str, float] = {}
    for start, other in zip(starts, others, strict=True):
        for name, own in start.conditioning.tensors.items():
            own, moved = own.double(), other.conditioning.tensors[name].double()
            squares[name] = squares.get(name, 0.0) + float((moved - own).square().sum())
            powers[name] = powers.get(name, 0.0) + float(own.square().sum())
    tiny = torch.finfo(torch.float64).tiny
    return {name: (square / max(powers[name], tiny)) ** 0.5 for name, square in squares.items() if square}


def embedding_notes(starts: Iterable[Start], others: Iterable[Start], weights: str) -> tuple[str, ...]:
    """Return a note on text encoders whose weights are stored as `weights`, beside the pipeline's own."""
    errors = embedding_errors(starts, others)
    said = ", ".join(f"{name} by {error:.2%}" for name, error in errors.items()) or "not at all"
    return (
        f"The engine's images come from text encoders with {weights} weights; what they make of the prompts "
        f"differs: {said}.",
    )
