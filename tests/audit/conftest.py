"""A tiny quantized UNet in every lowering, and its engine."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from accuquant.calibration.placement import place
from accuquant.export import write_onnx
from accuquant.export.read.trace import trace
from accuquant.groups import StepGroups
from accuquant.networks.network import count_macs, float_weights, layer_kind, model_hash, quantizable_layers
from accuquant.qparams import LayerQParams, fingerprint
from accuquant.recipe import Recipe

#: Constant scales, and scales that differ between the two step groups.
SCALES = {"constant": (0.05, 0.05), "grouped": (0.05, 0.03)}


def observed(source: Any, scales: str, zero_point: int, include: tuple[str, ...]) -> Recipe:
    """Return a recipe of the default layers; convolutions behind a SiLU get the zero-point."""
    weights = float_weights(source.network)
    modules = quantizable_layers(source.network)
    names = place(source.network, count_macs(source.network, source.signature), include=include).quantized
    layers = {}
    for name in names:
        weight = weights[name]
        scale = np.abs(weight).max(axis=tuple(range(1, weight.ndim))) / 127
        kind = layer_kind(modules[name])
        assert kind is not None
        z = zero_point if name.endswith(("conv1", "conv2")) else 0
        activation = np.array(SCALES[scales], np.float32)
        layers[name] = LayerQParams(
            name, kind, weight.shape, fingerprint(weight), scale, activation, zero_point=z
        )
    return Recipe(StepGroups((1000.0, 500.0, 0.0)), layers, source.signature, {}, model_hash(source.network))


@pytest.fixture(scope="session")
def audit_source(make_unet: Callable[..., Any], tiny_source: Any) -> Any:
    """A pipeline whose channels fill int8 kernels: with fewer the compiler pads every tensor."""
    network = make_unet(block_out_channels=(32,), norm_num_groups=8, attention_head_dim=16)
    return dataclasses.replace(tiny_source, network=network)


@pytest.fixture(scope="session")
def float_graph(audit_source: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The network as a float .onnx of fixed sizes."""
    path = tmp_path_factory.mktemp("float") / "float.onnx"
    ir.save(trace(audit_source.network, audit_source.signature, dynamic=False), path)
    return path


@pytest.fixture(scope="session")
def export_tiny(
    audit_source: Any, float_graph: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Path]:
    """Return a function that quantizes the network -> its .onnx file (that of the first step group)."""

    def export(
        *,
        scales: str = "constant",
        zero_point: int = 0,
        include: tuple[str, ...] = (),
        change: Callable[[LayerQParams], LayerQParams] = lambda layer: layer,
        **options: Any,
    ) -> Path:
        recipe = observed(audit_source, scales, zero_point, include)
        recipe = dataclasses.replace(recipe, layers={k: change(v) for k, v in recipe.layers.items()})
        path = tmp_path_factory.mktemp("audited") / "model.onnx"
        return write_onnx(float_graph, recipe, path, **{"precision": "fp16"} | options)[0]

    return export
