"""Denoising networks: what they take, how to call them, and which of their layers can be quantized."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from accuquant.errors import SourceError
from accuquant.qparams import FloatArray
from accuquant.signature import Signature, TensorSpec

#: torch layer class -> the kind that a recipe stores.
LAYER_KINDS: dict[type[nn.Module], str] = {
    nn.Conv2d: "conv2d",
    nn.Linear: "linear",
    nn.ConvTranspose2d: "conv_transpose2d",
}
#: Conditioning that diffusers passes inside `added_cond_kwargs`.
_ADDED = ("text_embeds", "time_ids")
Conditioning = Mapping[str, Tensor]


def call(
    network: nn.Module, sample: Tensor, timestep: Tensor | float, conditioning: Conditioning | None = None
) -> Tensor:
    """Run `network` on sample [B, C, H, W] at one timestep shared by the batch -> [B, C', H, W].

    `conditioning` maps the names in the network's Signature to tensors [B, ...].
    """
    arguments: dict[str, Any] = dict(conditioning or {})
    added = {name: arguments.pop(name) for name in _ADDED if name in arguments}
    if added:
        arguments["added_cond_kwargs"] = added
    output: Tensor = network(sample, timestep, return_dict=False, **arguments)[0]
    return output


def layer_kind(module: nn.Module) -> str | None:
    """Return "conv2d", "linear" or "conv_transpose2d", or None where a layer cannot be quantized."""
    return next((kind for cls, kind in LAYER_KINDS.items() if isinstance(module, cls)), None)


def quantizable_layers(network: nn.Module) -> dict[str, nn.Module]:
    """Return every Conv2d, Linear and ConvTranspose2d of `network` by module name, in order."""
    return {name: m for name, m in network.named_modules() if layer_kind(m) is not None}


def float_weights(network: nn.Module) -> dict[str, FloatArray]:
    """Return the weight of every quantizable layer as a numpy array, by module name."""
    layers = quantizable_layers(network)
    return {name: weight_of(layer).numpy(force=True) for name, layer in layers.items()}


def weight_of(layer: nn.Module) -> Tensor:
    """Return the weight tensor of a layer."""
    weight = layer.weight
    assert isinstance(weight, Tensor)
    return weight.detach()


def signature_of(network: nn.Module) -> Signature:
    """Read the call signature of a diffusers network from its configuration.

    Raises SourceError for an architecture that is not supported.
    """
    config: Any = network.config
    name = type(network).__name__
    if name == "UNet2DModel":
        conditioning, sizes = _class_conditioning(config)
    elif name == "UNet2DConditionModel":
        conditioning, sizes = _text_conditioning(config)
    else:
        raise SourceError(
            f"network {name}",
            got="an architecture that AccuQuant does not know",
            expected="UNet2DModel or UNet2DConditionModel",
            remedy="Use a pipeline with one of these networks",
        )
    size = config["sample_size"] or 32
    height, width = (size, size) if isinstance(size, int) else size
    return Signature(
        architecture=name,
        sample=TensorSpec("sample", ("batch", int(config["in_channels"]), "height", "width")),
        timestep=TensorSpec("timestep", ("steps",), "int64"),
        conditioning=conditioning,
        output=TensorSpec("out_sample", ("batch", int(config["out_channels"]), "height", "width")),
        sizes={"batch": 1, "steps": 1, "height": int(height), "width": int(width), **sizes},
    )


def _class_conditioning(config: Mapping[str, Any]) -> tuple[tuple[TensorSpec, ...], dict[str, int]]:
    if config.get("class_embed_type") is None and config.get("num_class_embeds") is None:
        return (), {}
    return (TensorSpec("class_labels", ("batch",), "int64"),), {}


def _text_conditioning(config: Mapping[str, Any]) -> tuple[tuple[TensorSpec, ...], dict[str, int]]:
    width = config["cross_attention_dim"]
    specs = [TensorSpec("encoder_hidden_states", ("batch", "tokens", _first(width)))]
    if config.get("addition_embed_type") == "text_time":
        time_ids = 6
        text = config["projection_class_embeddings_input_dim"] - config["addition_time_embed_dim"] * time_ids
        specs += [
            TensorSpec("text_embeds", ("batch", int(text))),
            TensorSpec("time_ids", ("batch", time_ids)),
        ]
    labels, sizes = _class_conditioning(config)
    return (*specs, *labels), {"tokens": 77, **sizes}


def _first(value: Any) -> int:
    return int(np.atleast_1d(value)[0])


def model_hash(network: nn.Module) -> str:
    """Return a SHA-256 over every parameter and buffer (name and float16 value) of `network`."""
    import hashlib

    from accuquant.qparams import fingerprint

    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(name.encode())
        digest.update(fingerprint(tensor.float().numpy(force=True)).encode())
    return digest.hexdigest()


@torch.no_grad()
def count_macs(network: nn.Module, signature: Signature) -> dict[str, int]:
    """Return the multiply-accumulates of each quantizable layer for one sample at its default size.

    Attention score products are not layers and are not counted.
    """
    macs: dict[str, int] = {}

    def count(name: str, layer: nn.Module, output: Tensor, inputs: Tensor) -> None:
        weight = weight_of(layer)
        if isinstance(layer, nn.ConvTranspose2d):
            macs[name] = macs.get(name, 0) + inputs.numel() * weight.numel() // weight.shape[0]
        else:
            macs[name] = macs.get(name, 0) + output.numel() * weight.numel() // weight.shape[0]

    hooks = [
        layer.register_forward_hook(lambda m, args, out, name=name: count(name, m, out, args[0]))
        for name, layer in quantizable_layers(network).items()
    ]
    try:
        call(network, *_example_inputs(signature, next(network.parameters()).device))
    finally:
        for hook in hooks:
            hook.remove()
    return macs


def _example_inputs(signature: Signature, device: torch.device) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    sizes = signature.sizes | {"batch": 1}
    tensors = [
        torch.zeros(spec.resolve(sizes), dtype=getattr(torch, spec.dtype), device=device)
        for spec in signature.inputs
    ]
    names = [spec.name for spec in signature.conditioning]
    return tensors[0], tensors[1], dict(zip(names, tensors[2:], strict=True))
