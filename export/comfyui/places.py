"""Where a module of a diffusers network lies in the checkpoint that its family was published as."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from accuquant.errors import ExportError
from accuquant.export.comfyui import diffusion_transformers, ldm_unet
from accuquant.export.comfyui.rules import Rule


@dataclass(frozen=True)
class Place:
    """The module `name` of the checkpoint, of whose `of` parts, stacked along the outputs, this is `index`.

    `leaf` is what its only tensor is called there, None where tensors keep their names. `swapped` says that
    the two halves of the outputs change places.
    """

    name: str
    index: int = 0
    of: int = 1
    leaf: str | None = None
    swapped: bool = False


#: The class of a network -> the rules of its names, which follow from its configuration.
_FAMILIES: dict[str, Callable[[Any], Iterable[Rule]]] = {
    "UNet2DConditionModel": ldm_unet.rules,
    "FluxTransformer2DModel": diffusion_transformers.flux,
    "ChromaTransformer2DModel": diffusion_transformers.chroma,
    "SD3Transformer2DModel": diffusion_transformers.sd3,
    "QwenImageTransformer2DModel": diffusion_transformers.qwen_image,
    "ZImageTransformer2DModel": diffusion_transformers.z_image,
}


def check_family(name: str) -> None:
    """Raise ExportError where nobody wrote down the names of the class `name`."""
    if name not in _FAMILIES:
        raise ExportError(
            f"network {name}",
            got="a family whose checkpoint names are not known here",
            expected=" or ".join(_FAMILIES),
            remedy="Export it as ONNX: leave --target comfyui out",
        )


def places_of(class_name: str, config: Any, modules: Iterable[str]) -> dict[str, Place]:
    """Return the place of each of `modules` of a network of the class `class_name`.

    `config` is the network's configuration. Raises ExportError for a family without rules, and for a variant
    of one that has a module which no rule knows.
    """
    check_family(class_name)
    rules = [(re.compile(rule.pattern), rule) for rule in _FAMILIES[class_name](config)]
    return {module: _place(module, rules, class_name) for module in modules}


def _place(module: str, rules: Iterable[tuple[re.Pattern[str], Rule]], class_name: str) -> Place:
    for pattern, rule in rules:
        if found := pattern.fullmatch(module):
            name = rule.name(found) if callable(rule.name) else found.expand(rule.name)
            return Place(name, rule.index, rule.of, rule.leaf, rule.swapped)
    raise ExportError(
        f"module '{module}' of {class_name}",
        got="no name for it in the family's checkpoints",
        expected="a network as the family was published",
        remedy="Export it as ONNX: leave --target comfyui out",
    )
