"""A tiny pipeline whose int8 layers have kernels, and recipes for it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from accuquant.calibration.placement import place
from accuquant.export.read.trace import trace
from accuquant.groups import StepGroups
from accuquant.networks.network import count_macs, float_weights, layer_kind, model_hash, quantizable_layers
from accuquant.pipelines.source import Source, load_source
from accuquant.qparams import WEIGHT_AXIS, LayerQParams, fingerprint
from accuquant.recipe import Recipe


@pytest.fixture(scope="session")
def pipeline(tmp_path_factory: pytest.TempPathFactory, make_unet: Callable[..., Any]) -> Path:
    """The folder of a DDIM pipeline with 32 channels: with fewer the compiler pads every tensor."""
    from diffusers import DDIMPipeline, DDIMScheduler

    folder = tmp_path_factory.mktemp("choosing") / "ddim"
    network = make_unet(block_out_channels=(32,), norm_num_groups=8, attention_head_dim=16)
    DDIMPipeline(network, DDIMScheduler()).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def source(pipeline: Path) -> Source:
    return load_source(pipeline)


@pytest.fixture(scope="session")
def float_graph(source: Source, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The network as a float .onnx of fixed sizes."""
    path = tmp_path_factory.mktemp("float") / "float.onnx"
    ir.save(trace(source.network, source.signature, dynamic=False), path)
    return path


@pytest.fixture(scope="session")
def make_recipe(source: Source) -> Callable[..., Recipe]:
    """Return a function from the scales of two step groups, the same in every layer, to a recipe."""

    def make(*scales: float) -> Recipe:
        weights, modules = float_weights(source.network), quantizable_layers(source.network)
        layers = {}
        for name in place(source.network, count_macs(source.network, source.signature)).quantized:
            kind, weight = layer_kind(modules[name]), weights[name]
            assert kind is not None
            rest = tuple(axis for axis in range(weight.ndim) if axis != WEIGHT_AXIS[kind])
            weight_scale = (np.abs(weight).max(axis=rest) / 127).astype(np.float32)
            activation_scale = np.array(scales, np.float32)
            layers[name] = LayerQParams(
                name, kind, weight.shape, fingerprint(weight), weight_scale, activation_scale
            )
        groups = StepGroups((1000.0, 500.0, 0.0))
        return Recipe(groups, layers, source.signature, {}, model_hash(source.network))

    return make
