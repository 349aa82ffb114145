"""Fuse LoRAs into the weights of a pipeline's parts: W <- W + scale * B A (arXiv 2106.09685, section 4.1)."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from accuquant.errors import MissingDependencyError, SourceError
from accuquant.pipelines.diffusers_internals import lora_parts, lora_tools
from accuquant.pipelines.lora import Lora
from accuquant.pipelines.quiet import quiet_libraries

_ADAPTER = "accuquant"


@dataclass(frozen=True)
class _Additions:
    """The tensors of one LoRA file under diffusers' names, what scales them, and which parts take them."""

    lora: Lora
    tensors: dict[str, Tensor]
    alphas: dict[str, float] | None
    metadata: dict[str, Any] | None

    def count_of(self, part: str) -> int:
        """Return for how many layers of a part there are two matrices."""
        under = [tensor for name, tensor in self.tensors.items() if name.startswith(f"{part}.")]
        return sum(tensor.ndim > 1 for tensor in under) // 2


def fuse_into_network(network: nn.Module, component: str, pipeline_class: str, loras: Sequence[Lora]) -> None:
    """Change the weights of a denoising network by `loras`, one after another.

    Raises SourceError for a pipeline without LoRAs, and for a file that does not fit it.
    """
    for additions in _read(pipeline_class, component, network, loras):
        if additions.count_of(component):
            with _one_line(additions.lora):
                network.load_lora_adapter(  # type: ignore[operator]
                    additions.tensors,
                    prefix=component,
                    network_alphas=additions.alphas,
                    metadata=additions.metadata,
                    adapter_name=_ADAPTER,
                )
            _merge(network, component, additions)


def fuse_into_text_encoders(
    pipe: Any, network: nn.Module, component: str, pipeline_class: str, loras: Sequence[Lora]
) -> None:
    """Change the weights of a pipeline's text encoders by `loras`; its network is left alone."""
    for additions in _read(pipeline_class, component, network, loras):
        for part in lora_parts(pipeline_class):
            if part == component or not additions.count_of(part):
                continue
            encoder = getattr(pipe, part)
            with _one_line(additions.lora):
                _attach(encoder, part, additions)
            _merge(encoder, part, additions)


def _attach(encoder: nn.Module, part: str, additions: _Additions) -> None:
    """Load an adapter into a text encoder, as diffusers' load_lora_into_text_encoder does.

    Through peft itself: the method of transformers in between refuses every peft older than its newest.
    """
    from peft import LoraConfig, inject_adapter_in_model, set_peft_model_state_dict

    utils = lora_tools()

    def names_of_encoder(values: dict[str, Any]) -> dict[str, Any]:
        own = {k.removeprefix(f"{part}."): v for k, v in values.items() if k.startswith(f"{part}.")}
        if hasattr(encoder, "text_model"):
            return own
        return {name.removeprefix("text_model."): value for name, value in own.items()}

    tensors = names_of_encoder(additions.tensors)
    tensors = utils.convert_state_dict_to_peft(utils.convert_state_dict_to_diffusers(tensors))
    chosen = names_of_encoder(additions.metadata or {})
    if not chosen:
        ranks = {name: tensor.shape[1] for name, tensor in tensors.items() if "lora_B.weight" in name}
        alphas = names_of_encoder(additions.alphas or {})
        chosen = utils.get_peft_kwargs(
            ranks, network_alpha_dict=alphas, peft_state_dict=tensors, is_unet=False
        )
    inject_adapter_in_model(LoraConfig(**chosen), encoder, _ADAPTER, state_dict=tensors)
    set_peft_model_state_dict(encoder, tensors, _ADAPTER)


def _read(
    pipeline_class: str, component: str, network: nn.Module, loras: Sequence[Lora]
) -> Iterator[_Additions]:
    import diffusers

    if not loras:
        return
    cls = getattr(diffusers, pipeline_class)
    parts = lora_parts(pipeline_class)
    if component not in parts:
        raise SourceError(
            f"pipeline {pipeline_class}",
            got="--lora",
            expected="a pipeline that diffusers can load a LoRA into",
            remedy="Leave --lora out, or fuse it into the weights yourself and save the pipeline",
        )
    _check_packages()
    for lora in loras:
        with _one_line(lora):
            # mixins differ in what they return beside the tensors
            tensors, *alphas, metadata = cls.lora_state_dict(
                str(lora.file),
                use_safetensors=True,
                return_lora_metadata=True,
                return_alphas=True,
                **({"unet_config": network.config} if "XL" in pipeline_class else {}),
            )
        additions = _Additions(lora, tensors, (alphas or [None])[0], metadata)
        _check_tensors(additions, parts)
        yield additions


def _check_packages() -> None:
    if importlib.util.find_spec("peft") is None:
        raise MissingDependencyError(
            "--lora",
            got="no package peft",
            expected="peft, which diffusers loads a LoRA with",
            remedy="pip install 'accuquant[text]'",
        )


def _check_tensors(additions: _Additions, parts: Sequence[str]) -> None:
    """Refuse what diffusers would leave out without a word."""
    from safetensors import safe_open

    with safe_open(additions.lora.file, framework="pt") as file:
        left_out = [name for name in file.keys() if "dora_scale" in name]  # noqa: SIM118, no mapping
    foreign = [n for n in additions.tensors if "lora" not in n or n.split(".")[0] not in parts]
    if left_out or foreign or not additions.tensors:
        raise SourceError(
            f"LoRA '{additions.lora.name}'",
            got=f"the tensor '{[*left_out, *foreign][0]}'" if left_out or foreign else "no tensor",
            expected=f"additions of low rank to {' or '.join(parts)}, and nothing else",
            remedy="Use a LoRA that was trained for this kind of pipeline",
        )


def _merge(model: Any, part: str, additions: _Additions) -> None:
    """Add the loaded adapter to the weights and take it off.

    In float64, so that the float32 weights are the same on every machine: recipes know them by their values.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers: list[Any] = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    for layer in layers:
        layer.double()
        layer.scale_layer(additions.lora.scale)
        layer.merge(adapter_names=[_ADAPTER])
        layer.float()
    lora_tools().recurse_remove_peft_layers(model)
    del model.peft_config
    model.requires_grad_(False)
    if len(layers) != additions.count_of(part):
        raise SourceError(
            f"LoRA '{additions.lora.name}'",
            got=f"additions to {additions.count_of(part)} layers of the {part}",
            expected=f"layers that it has ({len(layers)} of them were found)",
            remedy="Use a LoRA that was trained for this network",
        )


@contextmanager
def _one_line(lora: Lora) -> Iterator[None]:
    """Turn what the libraries raise about a LoRA that does not fit into one clear line."""
    try:
        with torch.no_grad(), quiet_libraries():
            yield
    except Exception as fault:  # peft, diffusers and torch raise many unrelated kinds
        lines = [line.strip() for line in str(fault).splitlines() if line.strip()]
        raise SourceError(
            f"LoRA '{lora.name}'",
            got=f"{type(fault).__name__}: {' '.join(lines[:2])[:200]}",
            expected="a file in a format that diffusers reads, for this network",
            remedy="Use a LoRA that was trained for this kind of pipeline",
        ) from fault
