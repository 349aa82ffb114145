"""Denoising networks: what they take, how to call them, and which of their layers can be quantized."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from accuquant.networks.architectures import SUPPORTED, read_signature, timestep_divisor
from accuquant.networks.call_form import CallForm, value_at
from accuquant.networks.call_tensors import undressed
from accuquant.networks.equivalents import fixed_shapes, idle_layers
from accuquant.networks.signature import Signature, Uncaptured
from accuquant.networks.stored_weights import StoredLayer, named_weights
from accuquant.qparams import FloatArray

#: torch layer class -> the kind that a recipe stores.
LAYER_KINDS: dict[type[nn.Module], str] = {
    nn.Conv2d: "conv2d",
    nn.Linear: "linear",
    nn.ConvTranspose2d: "conv_transpose2d",
}
#: Conditioning that diffusers passes inside `added_cond_kwargs` (SDXL; PixArt).
ADDED = ("text_embeds", "time_ids", "resolution", "aspect_ratio")
#: Networks of this kind want one timestep a sample; UNets take one for the batch.
_TRANSFORMER = "Transformer2DModel"
#: What a captured signature calls the timestep, whatever the network's argument is called.
TIMESTEP = "timestep"
#: The attribute of a network that holds a captured signature; not a module's own, so copies have it too.
_REMEMBERED = "accuquant_signature"
#: Name in the network's Signature -> tensor, for one call of the network.
ConditioningTensors = Mapping[str, Tensor]


def call(
    network: nn.Module,
    sample: Tensor,
    timestep: Tensor | float,
    conditioning: ConditioningTensors | None = None,
) -> Tensor:
    """Run `network` on a batch of samples at one of the scheduler's timesteps -> its prediction.

    Shapes and names are those of the network's Signature: sample [B, C, H, W], or [B, N, C] for packed
    patches; `conditioning` maps names to tensors. The timestep is divided by what the network's
    pipeline divides it by.
    """
    divisor = divisor_of(network)
    return call_directly(network, sample, timestep / divisor if divisor != 1 else timestep, conditioning)


def call_directly(
    network: nn.Module,
    sample: Tensor,
    timestep: Tensor | float,
    conditioning: ConditioningTensors | None = None,
    *,
    shared: bool = False,
) -> Tensor:
    """Run `network` as `call` does, at a timestep in the network's own unit.

    `shared` gives a network that was captured one row of the timestep for all rows of the batch.
    """
    form = form_of(network)
    if form is not None:
        return _call_as_seen(network, form, sample, timestep, conditioning or {}, shared)
    arguments: dict[str, Any] = dict(conditioning or {})
    added = {name: arguments.pop(name) for name in ADDED if name in arguments}
    if added:
        arguments["added_cond_kwargs"] = added
    if type(network).__name__.endswith(_TRANSFORMER):
        timestep = torch.as_tensor(timestep, device=sample.device).reshape(-1)[:1].expand(sample.shape[0])
    output: Tensor = network(sample, timestep=timestep, return_dict=False, **arguments)[0]
    return output


def _call_as_seen(
    network: nn.Module,
    form: CallForm,
    sample: Tensor,
    timestep: Tensor | float,
    conditioning: ConditioningTensors,
    shared: bool,
) -> Tensor:
    at = torch.as_tensor(timestep, device=sample.device)
    # a graph's timestep is no integer, and HunyuanDiT computes in the type that it is given
    at = at if at.is_floating_point() else at.float()
    value = form.network_timestep(at).reshape(-1)[:1]
    if not form.per_row:
        value = value.reshape(())
    elif not shared:
        value = value.expand(sample.shape[0])
    (name,) = form.tensors.keys() - conditioning.keys() - {TIMESTEP}
    arguments = form.assemble({name: sample, TIMESTEP: value, **conditioning})
    with fixed_shapes(network):
        output = network(**arguments)
    return undressed(value_at(output, form.output.path), form.output)


def remember_call(network: nn.Module, signature: Signature) -> None:
    """Let `network`, and copies of it, be called as `signature` says from now on."""
    if signature.call is not None:
        vars(network)[_REMEMBERED] = signature


def form_of(network: nn.Module) -> CallForm | None:
    """Return how the network's pipeline calls it, None where its class has an entry."""
    signature: Signature | None = vars(network).get(_REMEMBERED)
    return None if signature is None else signature.call


def divisor_of(network: nn.Module) -> float:
    """Return what the network's pipeline divides the scheduler's timestep by."""
    signature: Signature | None = vars(network).get(_REMEMBERED)
    return timestep_divisor(type(network).__name__) if signature is None else signature.timestep_divisor


def layer_kind(module: nn.Module) -> str | None:
    """Return "conv2d", "linear" or "conv_transpose2d", or None where a layer cannot be quantized."""
    return next((kind for cls, kind in LAYER_KINDS.items() if isinstance(module, cls)), None)


def quantizable_layers(network: nn.Module) -> dict[str, nn.Module]:
    """Return every Conv2d, Linear and ConvTranspose2d of `network` by module name, in order.

    Layers whose outputs nothing reads (networks/equivalents.py) are none: no graph has them.
    """
    idle = idle_layers(network)
    return {n: m for n, m in network.named_modules() if layer_kind(m) is not None and n not in idle}


@contextmanager
def watching_inputs(layers: Mapping[str, nn.Module], see: Callable[[str, Tensor], object]) -> Iterator[None]:
    """Tell `see` the name and the first input of each of `layers`, in every call inside the block."""
    hooks = [
        layer.register_forward_pre_hook(lambda _m, args, name=name: see(name, args[0]))
        for name, layer in layers.items()
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


class FloatWeights(Mapping[str, FloatArray]):
    """The weights of the quantizable layers in float32, by module name, each when it is asked for."""

    def __init__(self, network: nn.Module) -> None:
        self._layers = quantizable_layers(network)

    def __getitem__(self, name: str) -> FloatArray:
        return float_weight(self._layers[name])

    def __contains__(self, name: object) -> bool:
        return name in self._layers

    def __iter__(self) -> Iterator[str]:
        return iter(self._layers)

    def __len__(self) -> int:
        return len(self._layers)


def float_weights(network: nn.Module) -> FloatWeights:
    """Return the weights of the quantizable layers as numpy arrays, by module name."""
    return FloatWeights(network)


def float_weight(layer: nn.Module) -> FloatArray:
    """Return a layer's weight in float32: its own memory where it is float32 on the CPU."""
    array: FloatArray = weight_of(layer).float().cpu().numpy()
    return array


def weight_of(layer: nn.Module) -> Tensor:
    """Return the weight tensor of a layer."""
    weight = layer.weight
    assert isinstance(weight, Tensor)
    return weight.detach()


def held_weight(layer: nn.Module) -> Tensor:
    """Return a layer's weight as it is held: in the type of its file, where it is stored."""
    return layer.stored if isinstance(layer, StoredLayer) else weight_of(layer)


def weight_shape(layer: nn.Module) -> torch.Size:
    """Return the shape of a layer's weight, which is not made for it."""
    return held_weight(layer).shape


def bias_of(layer: nn.Module) -> Tensor | None:
    """Return the bias of a layer, None where it has none."""
    bias = layer.bias
    assert bias is None or isinstance(bias, Tensor)
    return None if bias is None else bias.detach()


def signature_of(network: nn.Module) -> Signature:
    """Read the call signature of a diffusers network from its configuration.

    Of a class without an entry it is what a pipeline's calls have told, or else Uncaptured. Raises
    SourceError for a variant of a class that is not supported.
    """
    own: object = getattr(network, "signature", None)  # a ControlledNetwork makes its own
    if isinstance(own, Signature):
        return own
    remembered: Signature | None = vars(network).get(_REMEMBERED)
    name = type(network).__name__
    if remembered is not None or name not in SUPPORTED:
        return remembered or Uncaptured(name)
    config: Any = network.config
    return read_signature(name, config)


def model_hash(network: nn.Module) -> str:
    """Return a SHA-256 over every parameter and buffer (name and float16 value) of `network`.

    The same for a network in float32 and for one whose weights are held in half precision. Tensors are
    converted one at a time.
    """
    import hashlib

    from accuquant.qparams import fingerprint

    digest = hashlib.sha256()
    for name, tensor in sorted(named_weights(network).items()):
        digest.update(name.encode())
        digest.update(fingerprint(tensor.detach().float().half().cpu().numpy()).encode())
    return digest.hexdigest()


@torch.no_grad()
def count_macs(network: nn.Module, signature: Signature) -> dict[str, int]:
    """Return the multiply-accumulates of each quantizable layer for one sample at its default size.

    Attention score products are not layers and are not counted.
    """
    macs: dict[str, int] = {}

    def count(name: str, layer: nn.Module, output: Tensor, inputs: Tensor) -> None:
        shape = weight_shape(layer)
        counted = inputs if isinstance(layer, nn.ConvTranspose2d) else output
        macs[name] = macs.get(name, 0) + counted.numel() * shape.numel() // shape[0]

    hooks = [
        layer.register_forward_hook(lambda m, args, out, name=name: count(name, m, out, args[0]))
        for name, layer in quantizable_layers(network).items()
    ]
    try:
        call_directly(network, *_example_inputs(signature, next(network.parameters()).device))
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
