"""How a name in diffusers becomes one in a family's checkpoints."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Rule:
    r"""Modules whose name matches `pattern` as a whole are called `name` in the checkpoint.

    `name` is a template of `re.Match.expand` ("blocks.\1.qkv"), or a function of the match. The rest is as in
    Place.
    """

    pattern: str
    name: str | Callable[[re.Match[str]], str]
    index: int = 0
    of: int = 1
    leaf: str | None = None
    swapped: bool = False


def stacked(pattern: str, name: str, parts: tuple[str, ...]) -> list[Rule]:
    r"""Return the rules of modules that the checkpoint stacks into one: `parts` fill the {} of `pattern`."""
    return [Rule(pattern.format(part), name, k, len(parts)) for k, part in enumerate(parts)]


def embedder(pattern: str, name: str) -> Rule:
    """Return the rule of an MLP of two layers, linear_1 and linear_2 here, 0 and 2 in the checkpoint."""
    return Rule(rf"{pattern}\.linear_([12])", lambda found: f"{name}.{2 * (int(found[1]) - 1)}")
