"""Simulate a recipe in PyTorch: a copy of the network whose layers compute what the engine computes."""

from __future__ import annotations

import copy
import inspect
import math
import warnings
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from accuquant.errors import RecipeError
from accuquant.groups import StepGroups
from accuquant.networks.call_form import Place, value_at
from accuquant.networks.call_tensors import undressed
from accuquant.networks.device import CPU, device_of
from accuquant.networks.fake_quantize import quantize_input
from accuquant.networks.fold import fold_network
from accuquant.networks.frozen_product import FrozenProduct
from accuquant.networks.network import (
    TIMESTEP,
    bias_of,
    divisor_of,
    float_weight,
    float_weights,
    form_of,
    quantizable_layers,
)
from accuquant.networks.stored_weights import is_offloaded
from accuquant.prediction_correction import PredictionCorrection
from accuquant.qparams import LayerQParams, along_axis
from accuquant.recipe import Recipe


class ActiveGroup:
    """The step group that every quantizer of one network uses now."""

    def __init__(self, groups: StepGroups) -> None:
        self.groups = groups
        self.index = 0

    def select(self, timestep: Tensor | float) -> None:
        """Choose the group of `timestep`: a number, or a tensor whose elements are all equal."""
        if isinstance(timestep, Tensor):
            values = timestep.detach().reshape(-1)
            if values.numel() > 1 and not bool((values == values[0]).all()):
                raise RecipeError(
                    "timestep",
                    got=f"different values in one batch: {values.tolist()[:4]}",
                    expected="one timestep for the whole batch",
                    remedy="Call the network once for each timestep",
                )
            timestep = values[0].item()
        self.index = self.groups.find(timestep)


class QuantizedLayer(nn.Module):
    """A Conv2d, Linear or ConvTranspose2d with a fake-quantized input and weight.

    `log_scale` [G] is the learnable logarithm of the activation scale, so that a scale stays above
    zero. The weight is held as int8 `levels` (bytes of E4M3 with the format "fp8"), in the memory of the
    qparams where they have them, and is their numbers * weight_scale in float32 while the layer runs.
    """

    scale: Tensor
    levels: Tensor
    weight_scale: Tensor
    bias: nn.Parameter | None

    def __init__(
        self,
        layer: nn.Module,
        qparams: LayerQParams,
        active: ActiveGroup,
        device: torch.device | None = None,
    ) -> None:
        """Make what stands for `layer`, which stays as it is, on `device`, by default the layer's.

        The levels of a layer whose weight is offloaded stay on the CPU too.
        """
        super().__init__()
        self.qparams = qparams
        self.active = active
        device = device or device_of(layer)
        self.log_scale = nn.Parameter(torch.from_numpy(np.log(qparams.activation_scale)).to(device))
        # exp(log(s)) is not s in float32: the engine must see the very scale that was evaluated
        self.register_buffer("scale", torch.tensor(qparams.activation_scale).to(device))
        self.learning = False
        self.product = FrozenProduct.of(layer)
        levels = qparams.weight_levels
        if levels is None:
            levels = qparams.quantized_weight(float_weight(layer))
        self.register_buffer("levels", _in_place(levels).to(CPU if is_offloaded(layer) else device))
        scale = along_axis(qparams.weight_scale, levels.ndim, qparams.axis)
        self.register_buffer("weight_scale", torch.tensor(scale).to(device))
        self.bias = _corrected_bias(layer, qparams, device)

    @property
    def weight(self) -> Tensor:
        """The dequantized weight, made anew where the scales are; diffusers reads its dtype."""
        levels = self.levels.to(self.weight_scale.device)
        if self.qparams.format == "fp8":
            levels = levels.view(torch.float8_e4m3fn)
        return levels.float().mul_(self.weight_scale)

    def current_scale(self) -> Tensor:
        """Return the activation scale (0-d) of the active group, differentiable while learning."""
        if self.learning:
            return self.log_scale[self.active.index].exp()
        return self.scale[self.active.index]

    def forward(self, x: Tensor) -> Tensor:
        """Run the layer on x [B, C, H, W] or [..., C]."""
        x = quantize_input(x, self.current_scale(), self.qparams)
        return self.product(x, lambda: self.weight, self.bias)

    def scale_of(self, group: int) -> float:
        """Return the activation scale of `group`."""
        return float(self.scale[group])

    def set_scale(self, group: int, value: float) -> None:
        """Set the activation scale of `group`, and the point that learning starts from."""
        with torch.no_grad():
            self.scale[group] = value
            self.log_scale[group] = math.log(value)

    def commit(self, group: int) -> None:
        """Make the learned log-scale of `group` the scale that is used and exported."""
        self.set_scale(group, float(self.log_scale.detach()[group].exp()))

    def revert(self, group: int) -> None:
        """Forget what was learned for `group` since the last commit."""
        self.set_scale(group, self.scale_of(group))

    def learned_qparams(self) -> LayerQParams:
        """Return the qparams with the committed scales."""
        return self.qparams.with_activation_scale(self.scale.detach().cpu().numpy().copy())


def simulate(network: nn.Module, recipe: Recipe) -> nn.Module:
    """Return a copy of `network` that computes what an engine built from `recipe` computes.

    The copy is called as the network is; the step group follows from the timestep of each call.
    Raises RecipeError where the recipe belongs to another checkpoint.
    """
    network = fold_network(network, recipe.folds)
    recipe.check_weights(float_weights(network))
    simulated = quantize_network(network, recipe.layers.values(), recipe.groups)
    if recipe.correction is not None:
        correct_predictions(simulated, recipe.correction)
    return simulated


def correct_predictions(network: nn.Module, correction: PredictionCorrection) -> None:
    """Let `network` return its prediction [B, C, H, W] or [B, N, C] as `correction` says, from now on."""

    def correct(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        form = form_of(module)
        place = Place((0,)) if form is None else form.output
        prediction = undressed(value_at(output, place.path), place)
        step = correction.steps.find(_scheduler_timestep(module, args, kwargs))
        factor, bias = (
            torch.from_numpy(values[step]).to(prediction) for values in correction.along(prediction.ndim)
        )
        corrected = place.dressed((prediction - bias) * factor)
        if not place.path:
            return corrected
        # a tuple, or diffusers' class with the one field `sample`
        return (corrected, *output[1:]) if isinstance(output, tuple) else type(output)(sample=corrected)

    network.register_forward_hook(correct, with_kwargs=True)


def quantize_network(network: nn.Module, layers: Iterable[LayerQParams], groups: StepGroups) -> nn.Module:
    """Return a network like `network` with the named layers replaced by QuantizedLayer.

    Layers that stay in float share the tensors of `network`: nothing of them is copied.
    """
    active, device = ActiveGroup(groups), device_of(network)
    modules = quantizable_layers(network)
    # what deepcopy takes for already copied
    memo: dict[int, Any] = {
        id(modules[q.name]): QuantizedLayer(modules[q.name], q, active, device) for q in layers
    }
    memo |= {id(p): nn.Parameter(p.detach(), requires_grad=False) for p in network.parameters()}
    memo |= {id(buffer): buffer for buffer in network.buffers()}
    quantized = copy.deepcopy(network, memo)
    _tie_scales(quantized_layers(quantized).values())
    parts: dict[str, nn.Module] = getattr(quantized, "parts", {})  # a pipeline calls these by themselves
    for called in (quantized, *parts.values()):
        called.register_forward_pre_hook(_select_group, with_kwargs=True)
    return quantized.eval()


def _tie_scales(layers: Iterable[QuantizedLayer]) -> None:
    """Let layers with one set of scales (to_q, to_k, to_v read one tensor) learn and share one."""
    first: dict[tuple[object, ...], QuantizedLayer] = {}
    for layer in layers:
        owner = first.setdefault(layer.qparams.activation_key, layer)
        layer.log_scale, layer.scale = owner.log_scale, owner.scale


def quantized_layers(network: nn.Module) -> dict[str, QuantizedLayer]:
    """Return the QuantizedLayer modules of a simulated network by module name."""
    return {name: m for name, m in network.named_modules() if isinstance(m, QuantizedLayer)}


def _select_group(network: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Choose the step group of a call; looked up in the network, so that a deep copy uses its own."""
    first = next((module for module in network.modules() if isinstance(module, QuantizedLayer)), None)
    if first is not None:
        first.active.select(_timestep_of(network, args, kwargs))


def _timestep_of(network: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Return the scheduler's timestep of a call: a number, or a tensor."""
    form = form_of(network)
    path = (TIMESTEP,) if form is None else form.tensors[TIMESTEP].path
    arguments: dict[str, Any] = kwargs
    if path[0] not in kwargs:
        arguments = inspect.signature(network.forward).bind_partial(*args).arguments
    timestep = value_at(arguments, path)
    if form is not None:
        timestep = form.graph_timestep(timestep)
    divisor = divisor_of(network)
    return timestep * divisor if divisor != 1 else timestep


def _scheduler_timestep(network: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> float:
    timestep = _timestep_of(network, args, kwargs)
    return float(timestep.reshape(-1)[0]) if isinstance(timestep, Tensor) else float(timestep)


def _corrected_bias(layer: nn.Module, qparams: LayerQParams, device: torch.device) -> nn.Parameter | None:
    """Return the layer's bias, the very tensor where nothing is added to it."""
    bias = bias_of(layer)
    if qparams.bias_correction is not None:
        added = torch.tensor(qparams.bias_correction).to(device)
        bias = added if bias is None else bias + added
    return None if bias is None else nn.Parameter(bias, requires_grad=False)


def _in_place(levels: np.ndarray) -> Tensor:
    """Return a tensor in the memory of `levels`; nobody writes to it."""
    with warnings.catch_warnings():
        # levels that were read from a file may be read-only, which torch cannot express
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(levels)
