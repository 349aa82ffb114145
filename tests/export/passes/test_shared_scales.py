"""The lowering "hybrid": which layers lose their step-dependent scale."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from torch import nn

from accuquant.export import write_onnx, write_pipeline
from accuquant.export.passes.shared_scales import share_scales
from accuquant.export.read.onnx_source import read_model
from accuquant.export.read.trace import trace
from accuquant.networks.network import float_weights, layer_kind, quantizable_layers, signature_of
from accuquant.qparams import LayerQParams, fingerprint
from accuquant.recipe import Recipe

CLOSE, FAR = (0.03, 0.025, 0.018), (0.03, 0.025, 0.017)


def grouped(network: nn.Module, scales: tuple[float, ...]) -> list[LayerQParams]:
    """Qparams of every layer but the time embedding, with `scales` for the step groups."""
    weights, layers = float_weights(network), quantizable_layers(network)
    names = [name for name in layers if "time" not in name]
    kinds = {name: layer_kind(layers[name]) for name in names}
    return [
        LayerQParams(
            name,
            str(kinds[name]),
            weights[name].shape,
            fingerprint(weights[name]),
            np.full(weights[name].shape[0], 0.01, np.float32),
            np.array(scales, np.float32),
        )
        for name in names
    ]


@pytest.fixture(scope="module")
def unet(make_unet: Any) -> nn.Module:
    network: nn.Module = make_unet()
    return network


@pytest.fixture(scope="module")
def float_onnx(unet: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("shared") / "float.onnx"
    ir.save(trace(unet, signature_of(unet), dynamic=False), path)
    return path


@pytest.mark.parametrize("exporter", ["torch.export", "torchscript"])
def test_layers_behind_a_norm_and_silu_share_a_scale_and_no_others(
    unet: nn.Module, float_onnx: Path, recipe_of: Any, tmp_path: Path, exporter: str
) -> None:
    recipe = recipe_of(*grouped(unet, CLOSE), signature=signature_of(unet))
    if exporter == "torch.export":
        model = read_model(float_onnx)
    else:
        model = torchscript(unet, tmp_path / "float.onnx")
    shared = share_scales(model, recipe)
    constant = {name for name, layer in shared.layers.items() if not layer.is_grouped}
    assert constant == {name for name in recipe.layers if name.endswith(("conv1", "conv2"))} | {"conv_out"}
    assert all(shared.layers[name].activation_scale == pytest.approx(0.03) for name in constant)
    assert all(layer.is_grouped for layer in recipe.layers.values()), "the given recipe stays as it is"


def torchscript(network: nn.Module, path: Path) -> ir.Model:
    """Export with decomposed normalizations."""

    class Positional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.unet = network

        def forward(self, sample: Any, timestep: Any) -> Any:
            return self.unet(sample, timestep, return_dict=False)[0]

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            Positional().eval(),
            (torch.zeros(1, 1, 8, 8), torch.tensor([3])),
            path,
            dynamo=False,
            opset_version=17,
            input_names=["sample", "timestep"],
            output_names=["out_sample"],
        )
    return read_model(path, min_opset=21)


def test_scales_that_are_far_apart_stay(unet: nn.Module, float_onnx: Path, recipe_of: Any) -> None:
    recipe = recipe_of(*grouped(unet, FAR), signature=signature_of(unet))
    shared = share_scales(read_model(float_onnx), recipe)
    assert all(layer.is_grouped for layer in shared.layers.values())


def test_the_folder_holds_the_recipe_that_its_graph_runs(
    tiny_source: Any, recipe_of: Any, tmp_path: Path
) -> None:
    recipe = recipe_of(*grouped(tiny_source.network, CLOSE), signature=tiny_source.signature)
    manifest = write_pipeline(tiny_source, recipe, tmp_path / "out", lowering="hybrid", dynamic=False)
    assert (manifest.lowering, manifest.graphs) == ("hybrid", ("unet/model.onnx",))
    written = Recipe.load(tmp_path / "out" / "recipe.safetensors")
    assert not written.layers["down_blocks.0.resnets.0.conv1"].is_grouped
    model = onnx.load(tmp_path / "out" / "unet" / "model.onnx")
    assert {e.key: e.value for e in model.metadata_props}["accuquant.recipe_sha256"] == written.sha256()
    factors = {node.name.split("/")[0] for node in model.graph.node if node.name.endswith("/input/Factor")}
    # layers that read one tensor share a pair, so not every grouped layer has a factor of its own
    assert factors
    assert all(written.layers[name].is_grouped for name in factors)


def test_an_onnx_file_can_be_lowered_so_too(
    unet: nn.Module, float_onnx: Path, recipe_of: Any, run_graph: Any, tmp_path: Path
) -> None:
    recipe = recipe_of(*grouped(unet, CLOSE), signature=signature_of(unet))
    shared = share_scales(read_model(float_onnx), recipe)
    (hybrid,) = write_onnx(float_onnx, recipe, tmp_path / "hybrid.onnx", lowering="hybrid")
    (plain,) = write_onnx(float_onnx, shared, tmp_path / "plain.onnx")
    sample = np.random.default_rng(0).normal(size=(1, 1, 8, 8)).astype(np.float32)
    for timestep in (999, 300, 3):
        np.testing.assert_array_equal(
            run_graph(hybrid, sample, [timestep]), run_graph(plain, sample, [timestep])
        )
