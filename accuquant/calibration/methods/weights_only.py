"""A network whose weights are quantized and whose activations are not: what ranges are observed in."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from accuquant.groups import StepGroups
from accuquant.networks.simulate import quantize_network
from accuquant.qparams import LayerQParams

from .learnable_layer import make_learnable


def with_quantized_weights(
    network: nn.Module, layers: Mapping[str, LayerQParams], groups: StepGroups
) -> nn.Module:
    """Return a network like `network` whose `layers` have their levels for weights, and float inputs."""
    simulated = quantize_network(network, layers.values(), groups)
    for layer in make_learnable(simulated, network).values():
        layer.weights = "levels"
    return simulated
