"""FP8 graphs: what they hold, and what ONNX Runtime and onnx's checker make of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx
import pytest
import torch
from onnx import TensorProto, numpy_helper

from accuquant.errors import ExportError, FloatLayersWarning
from accuquant.export import check_model
from accuquant.qparams import LayerQParams
from accuquant.runtime.open_runner import open_runner

LAYERS = ["conv", "strided", "same", "grouped", "biasless", "transposed-groups", "gemm-in-out", "matmul"]
TIMESTEPS = (999, 400, 3)
Array = npt.NDArray[Any]


def e4m3(x: Array) -> Array:
    """Return the nearest numbers of E4M3, as ml_dtypes rounds and with saturation."""
    clipped = np.clip(np.asarray(x, np.float32), -448, 448)
    return clipped.astype(ml_dtypes.float8_e4m3fn).astype(np.float64)


def fp8_layer(network: Any, **changes: Any) -> LayerQParams:
    """Qparams whose scales differ in every step group; the smallest saturates some values."""
    wanted = network.layer(weight_bits=8)
    layer: LayerQParams = network.layer(
        format="fp8",
        weight_scale=wanted.weight_scale * np.float32(127 / 448),
        activation_scale=np.array([0.0093, 0.0071, 0.004], np.float32),
        **changes,
    )
    return layer


def expected(network: Any, sample: Array, layer: LayerQParams, timestep: float) -> Array:
    """The layer by its definition, in float64, with the numbers of ml_dtypes."""
    group = sum(timestep < edge for edge in (500.5, 100.0))
    scale = layer.activation_scale[group]
    shape = [1] * network.weight.ndim
    shape[layer.axis] = -1
    steps = layer.weight_scale.reshape(shape)
    bias = np.zeros(network.case.outputs) if network.bias is None else network.bias.astype(np.float64)
    x, weight = e4m3(sample / scale) * scale, e4m3(network.weight / steps) * steps
    result: Array = network._apply(*map(torch.from_numpy, (x, weight, bias))).numpy()
    return result


@pytest.mark.parametrize("lowering", ["rescale", "per-group"])
@pytest.mark.parametrize("name", LAYERS)
def test_onnxruntime_computes_the_definition_in_every_step_group(
    one_layer: Any, run_graph: Any, name: str, lowering: str
) -> None:
    network = one_layer(name)
    layer, sample = fp8_layer(network), network.sample()
    assert np.abs(sample).max() / layer.activation_scale[2] > 448, "something saturates"
    paths = network.lower(layer, lowering)
    for path, timestep in zip(paths * 3, TIMESTEPS, strict=False):
        result = run_graph(path, sample, [timestep])
        np.testing.assert_allclose(result, expected(network, sample, layer, timestep), rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("name", ["conv", "matmul"])
def test_graphs_are_typed_throughout_and_pass_the_linter(one_layer: Any, name: str, precision: str) -> None:
    network = one_layer(name)
    (path,) = network.lower(fp8_layer(network), precision=precision)
    onnx.checker.check_model(str(path), full_check=True)
    assert check_model(path) == []
    held = {tensor.name: tensor for tensor in onnx.load(path).graph.initializer}
    kinds = {name: tensor.data_type for name, tensor in held.items()}
    fp8 = {name for name, kind in kinds.items() if kind == TensorProto.FLOAT8E4M3FN}
    assert fp8 == {
        "accuquant/zero_float8e4m3fn",
        next(name for name in kinds if name.endswith("/levels")),
    }
    assert TensorProto.INT8 not in kinds.values()


def test_half_precision_computes_the_same_up_to_its_own_rounding(one_layer: Any, run_graph: Any) -> None:
    network = one_layer("conv")
    layer, sample = fp8_layer(network), network.sample()
    (path,) = network.lower(layer, precision="fp16")
    wanted = expected(network, sample, layer, 999)
    error = np.linalg.norm(run_graph(path, sample, [999]) - wanted) / np.linalg.norm(wanted)
    assert error < 0.03  # 2^-11 around it; the one weight scale of a Conv rounds to E4M3 once more


def test_rounded_weights_are_written_byte_for_byte(one_layer: Any) -> None:
    network = one_layer("gemm-in-out")
    codes = np.random.default_rng(3).integers(0, 127, network.weight.shape).astype(np.int8)
    (path,) = network.lower(fp8_layer(network, weight_levels=codes))
    (levels,) = [t for t in onnx.load(path).graph.initializer if t.name.endswith("/levels")]
    np.testing.assert_array_equal(numpy_helper.to_array(levels).view(np.uint8), codes.T.view(np.uint8))


def test_openvino_runs_it_in_float_and_says_so(one_layer: Any) -> None:
    network = one_layer("conv")
    layer, sample = fp8_layer(network), network.sample()
    (path,) = network.lower(layer)
    feeds = {"sample": sample, "timestep": np.array([999], np.int64)}
    with open_runner(path, "openvino", precision="fp32") as runner:
        typed = {spec.name: feeds[spec.name].astype(spec.dtype) for spec in runner.input_specs}
        with pytest.warns(FloatLayersWarning, match="1 layers have FP8 pairs, which OpenVINO computes in"):
            results = runner.infer(typed)
    (result,) = results.values()
    wanted = expected(network, sample, layer, 999)
    # it rounds as if by way of float16: what lies next to a tie may become the other neighbour
    assert np.linalg.norm(result - wanted) < 0.01 * np.linalg.norm(wanted)


@pytest.mark.parametrize("choice", [{"weight_storage": "int4"}, {"affine": "zero_point"}])
def test_what_only_integers_have_is_refused(one_layer: Any, choice: dict[str, str], tmp_path: Path) -> None:
    network = one_layer("conv")
    with pytest.raises(ExportError, match=r"FP8, which has neither.*[Ll]eave it out"):
        network.lower(fp8_layer(network), **choice)


@pytest.mark.parametrize("target", ["sm75", "sm86"])
def test_gpus_without_fp8_are_refused_before_the_export(one_layer: Any, target: str) -> None:
    network = one_layer("conv")
    with pytest.raises(ExportError, match=rf"--target {target}: got a recipe in FP8.*expected sm89 or later"):
        network.lower(fp8_layer(network), target=target)
    for other in ("sm89", "sm120", "cpu"):
        assert network.lower(fp8_layer(network), target=other)
