"""Half precision + int8 of the bundled network is close to float, and keeps float32 where it must."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnx import TensorProto
from onnx.reference import ReferenceEvaluator

from accuquant.bundled import FASHION_DDPM
from accuquant.calibration.placement import place
from accuquant.export import check_model, write_onnx
from accuquant.export.read.trace import trace
from accuquant.groups import StepGroups
from accuquant.networks.network import float_weights, layer_kind, quantizable_layers
from accuquant.pipelines.source import Source, load_source
from accuquant.qparams import LayerQParams, fingerprint
from accuquant.recipe import Recipe
from accuquant.runtime.open_runner import open_runner
from accuquant.scales.observer import choose_zero_point, mse_scale

pytestmark = pytest.mark.slow
TIMESTEPS = (980, 500, 20)


def noisy(seed: int) -> torch.Tensor:
    return torch.randn((2, 1, 32, 32), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def observed(source: Source) -> Recipe:
    """A recipe of the default layers with MSE scales and zero-points, one scale for all steps."""
    layers = quantizable_layers(source.network)
    names = place(source.network, dict.fromkeys(layers, 1)).quantized
    seen: dict[str, list[Any]] = {name: [] for name in names}
    hooks = [
        layers[name].register_forward_pre_hook(
            lambda _, x, name=name: seen[name].append(x[0].flatten()[::7].numpy())
        )
        for name in names
    ]
    for timestep in TIMESTEPS:
        source.network(noisy(0), timestep)
    for hook in hooks:
        hook.remove()
    qparams = {}
    for name, values in seen.items():
        weight = float_weights(source.network)[name]
        z = choose_zero_point(values, 8)
        scale = np.abs(weight).max(axis=tuple(range(1, weight.ndim))) / 127
        activation = np.array([mse_scale(np.concatenate(values), 8, z)], np.float32)
        qparams[name] = LayerQParams(
            name,
            str(layer_kind(layers[name])),
            weight.shape,
            fingerprint(weight),
            scale,
            activation,
            zero_point=z,
        )
    return Recipe(StepGroups((1000.0, 0.0)), qparams, source.signature, {}, "")


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The bundled network in float, and in int8 with fp32, fp16 and bf16."""
    source = load_source(FASHION_DDPM)
    folder = tmp_path_factory.mktemp("half")
    paths = {name: folder / f"{name}.onnx" for name in ("float", "fp32", "fp16", "bf16")}
    ir.save(trace(source.network, source.signature, opset=22), paths["float"])
    recipe = observed(source)
    for precision in ("fp32", "fp16", "bf16"):
        write_onnx(paths["float"], recipe, paths[precision], precision=precision)
    return paths


def test_half_precision_adds_little_to_the_error_of_int8(graphs: dict[str, Path], run_graph: Any) -> None:
    evaluator = ReferenceEvaluator(onnx.load(graphs["bf16"]))
    for timestep in TIMESTEPS:
        sample = noisy(1).numpy()
        out = {
            name: run_graph(graphs[name], sample, [timestep], optimized=True)
            for name in ("float", "fp32", "fp16")
        }
        feeds = {"sample": sample, "timestep": np.array([timestep], np.float32)}
        evaluated: Any = evaluator.run(None, feeds)
        out["bf16"] = evaluated[0]
        with open_runner(graphs["bf16"], "openvino", num_threads=1) as runner:
            out["openvino"] = runner.infer(feeds)["out_sample"]
        error = {
            name: np.linalg.norm(result - out["float"]) / np.linalg.norm(out["float"])
            for name, result in out.items()
        }
        assert error["fp32"] < 0.05
        assert error["fp16"] < 1.1 * error["fp32"]
        assert error["bf16"] < 1.7 * error["fp32"], "8 bits of precision where float16 has 11"
        assert error["openvino"] < 1.7 * error["fp32"]


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_the_half_graph_breaks_no_rule_and_keeps_float32_where_it_must(
    graphs: dict[str, Path], precision: str
) -> None:
    assert check_model(graphs[precision]) == []
    half = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}[precision]
    model = onnx.shape_inference.infer_shapes(onnx.load(graphs[precision]))
    kinds = {value.name: value.type.tensor_type.elem_type for value in model.graph.value_info}
    for node in model.graph.node:
        if node.op_type in ("Sin", "Cos", "Softmax"):
            assert kinds[node.output[0]] == TensorProto.FLOAT, node.name
        if node.op_type == "GroupNormalization":
            stash = [a.i for a in node.attribute if a.name == "stash_type"]
            assert stash in ([], [TensorProto.FLOAT]), "statistics are float32, which is the default"
        wide = precision == "bf16" and node.name in ("node_conv2d", "node_conv2d_35")  # the first, the last
        if node.op_type in ("Conv", "DequantizeLinear") and not wide:
            assert kinds[node.output[0]] == half, node.name
