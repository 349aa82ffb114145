"""One-layer networks with an independent fake-quantized reference, and recipes for them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from accuquant.export import write_onnx
from accuquant.export.export_options import Lowering
from accuquant.groups import StepGroups
from accuquant.networks.signature import Signature, TensorSpec
from accuquant.qparams import WEIGHT_AXIS, LayerQParams, fingerprint
from accuquant.recipe import Recipe

Array = npt.NDArray[Any]
GROUPS = StepGroups((1000.0, 500.5, 100.0, 0.0))
SCALES = (0.031, 0.017, 0.011)
TIMESTEPS = (999, 400, 3)


@dataclass(frozen=True)
class LayerCase:
    """One layer as an ONNX node: weight in torch's layout, how the node reads it, its attributes."""

    operator: str
    weight_shape: tuple[int, ...]
    input_shape: tuple[int, ...]
    attributes: dict[str, Any] = field(default_factory=dict)
    bias: bool = True

    @property
    def kind(self) -> str:
        return {"Conv": "conv2d", "ConvTranspose": "conv_transpose2d"}.get(self.operator, "linear")

    @property
    def reads_transposed(self) -> bool:
        return self.operator == "MatMul" or (self.operator == "Gemm" and not self.attributes.get("transB"))

    @property
    def outputs(self) -> int:
        if self.operator == "ConvTranspose":
            return self.weight_shape[1] * int(self.attributes.get("group", 1))
        return self.weight_shape[0]


LAYERS = {
    "conv": LayerCase("Conv", (6, 4, 3, 3), (2, 4, 7, 9), {"pads": [1, 1, 1, 1]}),
    "strided": LayerCase("Conv", (6, 4, 3, 3), (2, 4, 8, 8), {"pads": [0, 1, 1, 2], "strides": [2, 2]}),
    "dilated": LayerCase("Conv", (6, 4, 3, 3), (1, 4, 9, 9), {"pads": [2] * 4, "dilations": [2, 2]}),
    "same": LayerCase("Conv", (6, 4, 3, 3), (2, 4, 7, 9), {"auto_pad": "SAME_UPPER", "strides": [2, 2]}),
    "grouped": LayerCase("Conv", (6, 2, 3, 3), (2, 4, 6, 5), {"pads": [1, 1, 1, 1], "group": 2}),
    "pointwise": LayerCase("Conv", (6, 4, 1, 1), (2, 4, 5, 5), {}),
    "biasless": LayerCase("Conv", (6, 4, 3, 3), (2, 4, 5, 5), {"pads": [1, 1, 1, 1]}, bias=False),
    "transposed": LayerCase(
        "ConvTranspose", (4, 6, 4, 4), (2, 4, 5, 6), {"pads": [1] * 4, "strides": [2, 2]}
    ),
    "transposed-groups": LayerCase(
        "ConvTranspose", (4, 3, 3, 3), (2, 4, 5, 6), {"group": 2, "strides": [2, 2], "output_padding": [1, 1]}
    ),
    "gemm": LayerCase("Gemm", (6, 5), (4, 5), {"transB": 1}),
    "gemm-in-out": LayerCase("Gemm", (6, 5), (4, 5), {}),
    "matmul": LayerCase("MatMul", (6, 5), (2, 3, 5), {}),
    "matmul-biasless": LayerCase("MatMul", (6, 5), (2, 3, 5), {}, bias=False),
}


@dataclass
class OneLayer:
    """A float graph sample -> layer -> out_sample with its weights, and what it should compute."""

    case: LayerCase
    weight: Array
    bias: Array | None
    path: Path

    def sample(self, seed: int = 5) -> Array:
        """One-sided data, like what SiLU returns, so that zero-points have something to win."""
        normal = np.random.default_rng(seed).normal(0.5, 1.0, self.case.input_shape)
        return np.maximum(normal, -0.28).astype(np.float32)

    def lower(self, layer: LayerQParams, lowering: Lowering = "rescale", **options: Any) -> list[Path]:
        """Export the graph with one recipe layer -> the .onnx files written."""
        output = self.path.with_name(f"{self.path.stem}-int8.onnx")
        written = write_onnx(self.path, make_recipe(layer), output, lowering=lowering, **options)
        return [path for path in written if path.suffix == ".onnx"]

    def layer(self, **changes: Any) -> LayerQParams:
        """Qparams of the layer named "block.layer"; scales differ in every step group by default."""
        axes = tuple(i for i in range(self.weight.ndim) if i != WEIGHT_AXIS[self.case.kind])
        qmax = 2 ** (changes.get("weight_bits", 8) - 1) - 1
        settings: dict[str, Any] = {
            "name": "block.layer",
            "kind": self.case.kind,
            "weight_shape": self.weight.shape,
            "fingerprint": fingerprint(self.weight),
            "weight_scale": (np.abs(self.weight).max(axis=axes) / qmax).astype(np.float32),
            "activation_scale": np.array(SCALES, np.float32),
        }
        return LayerQParams(**(settings | changes))

    def expected(self, sample: Array, layer: LayerQParams, timestep: float) -> Array:
        """The layer of the method's definition, in float64 torch; nothing of accuquant but the numbers."""
        group = sum(timestep < edge for edge in (500.5, 100.0))
        x = torch.from_numpy(_fake_quantize(sample, layer.activation_scale[group], layer))
        shape = [1] * self.weight.ndim
        shape[WEIGHT_AXIS[layer.kind]] = -1
        scale = layer.weight_scale.reshape(shape)
        limit = 2 ** (layer.weight_bits - 1)
        levels = layer.weight_levels
        if levels is None:
            levels = np.clip(np.rint(self.weight / scale), -limit, limit - 1)
        weight = torch.from_numpy(levels.astype(np.float64) * scale)
        bias = np.zeros(self.case.outputs) if self.bias is None else self.bias.astype(np.float64)
        if layer.bias_correction is not None:
            bias = bias + layer.bias_correction
        return self._apply(x, weight, torch.from_numpy(bias)).numpy()

    def _apply(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        at = self.case.attributes
        if self.case.kind == "linear":
            return torch.nn.functional.linear(x, weight, bias)
        options = {"stride": tuple(at.get("strides", [1, 1])), "groups": at.get("group", 1)}
        options["dilation"] = tuple(at.get("dilations", [1, 1]))
        if self.case.kind == "conv_transpose2d":
            options["padding"] = tuple(at.get("pads", [0] * 4)[:2])
            options["output_padding"] = tuple(at.get("output_padding", [0, 0]))
            return torch.nn.functional.conv_transpose2d(x, weight, bias, **options)
        top, left, bottom, right = self._pads(x)
        x = torch.nn.functional.pad(x, (left, right, top, bottom))
        return torch.nn.functional.conv2d(x, weight, bias, **options)

    def _pads(self, x: torch.Tensor) -> Iterable[int]:
        if self.case.attributes.get("auto_pad") != "SAME_UPPER":
            return self.case.attributes.get("pads", [0] * 4)
        total = [max((-(-size // 2) - 1) * 2 + 3 - size, 0) for size in x.shape[2:]]
        return [total[0] // 2, total[1] // 2, total[0] - total[0] // 2, total[1] - total[1] // 2]


def _fake_quantize(x: Array, scale: float, layer: LayerQParams) -> Array:
    limit, z = 2 ** (layer.activation_bits - 1), layer.zero_point
    levels = np.clip(np.rint(x / np.float32(scale)) + z, -limit, limit - 1)
    return (levels - z).astype(np.float64) * float(np.float32(scale))


@pytest.fixture
def recipe_of() -> Callable[..., Recipe]:
    """Return make_recipe."""
    return make_recipe


@pytest.fixture
def run_graph() -> Callable[..., Array]:
    """Return run."""
    return run


@pytest.fixture
def one_layer(tmp_path: Path) -> Callable[..., OneLayer]:
    """Return a function that writes the float graph of a LayerCase, by its key in LAYERS."""

    def make(
        name: str,
        *,
        gain: Any = 1,
        opset: int = 21,
        timestep: tuple[int, list[Any]] | None = None,
    ) -> OneLayer:
        """`gain`, one number or one for each output channel, makes the weights larger or smaller."""
        case = LAYERS[name]
        rng = np.random.default_rng(3)
        weight = rng.normal(0, 0.3, case.weight_shape).astype(np.float32)
        channels = [1] * weight.ndim
        channels[WEIGHT_AXIS[case.kind]] = -1
        weight = weight * np.asarray(gain, np.float32).reshape(channels)
        bias = rng.normal(0, 1, case.outputs).astype(np.float32) if case.bias else None
        path = tmp_path / f"{name}.onnx"
        onnx.save(float_graph(case, weight, bias, opset=opset, timestep=timestep), path)
        return OneLayer(case, weight, bias, path)

    return make


def float_graph(
    case: LayerCase,
    weight: Array,
    bias: Array | None,
    *,
    opset: int = 21,
    timestep: tuple[int, list[Any]] | None = None,
) -> onnx.ModelProto:
    """Build sample, timestep -> layer -> out_sample."""
    kind, shape = timestep or (TensorProto.INT64, ["steps"])
    stored = weight.T if case.reads_transposed else weight
    tensors = [numpy_helper.from_array(np.ascontiguousarray(stored), "w")]
    inputs = ["sample", "w"]
    nodes = []
    if bias is not None:
        tensors.append(numpy_helper.from_array(bias, "b"))
    if case.operator == "MatMul" and bias is not None:
        nodes.append(helper.make_node("MatMul", inputs, ["product"], "layer"))
        nodes.append(helper.make_node("Add", ["product", "b"], ["out_sample"], "bias"))
    else:
        inputs += ["b"] if bias is not None else []
        nodes.append(helper.make_node(case.operator, inputs, ["out_sample"], "layer", **case.attributes))
    rank = len(case.input_shape)
    # only the channel extents are fixed, as they are in a UNet
    extents = (
        [None, case.input_shape[1], None, None] if rank == 4 else [None] * (rank - 1) + [case.input_shape[-1]]
    )
    graph = helper.make_graph(
        nodes,
        "unet",
        [
            helper.make_tensor_value_info("sample", TensorProto.FLOAT, extents),
            helper.make_tensor_value_info("timestep", kind, shape),
        ],
        [helper.make_tensor_value_info("out_sample", TensorProto.FLOAT, [None] * rank)],
        tensors,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def make_recipe(*layers: LayerQParams, signature: Signature | None = None) -> Recipe:
    """A recipe of three step groups with these layers."""
    image = TensorSpec("sample", ("batch", 4, "height", "width"))
    signature = signature or Signature(
        architecture="UNet2DModel",
        sample=image,
        timestep=TensorSpec("timestep", ("steps",), "int64"),
        conditioning=(),
        output=TensorSpec("out_sample", image.shape),
        sizes={"batch": 1, "steps": 1, "height": 8, "width": 8},
    )
    return Recipe(GROUPS, {layer.name: layer for layer in layers}, signature, {}, model_hash="0" * 64)


def run(path: Path, sample: Array, timestep: Any, *, optimized: bool = False) -> Array:
    """Run a graph in ONNX Runtime; without its optimizer the arithmetic is what the file says."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    if not optimized:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    feed = {}
    for value in session.get_inputs():
        dtype = np.int64 if value.type == "tensor(int64)" else np.float32
        feed[value.name] = sample if value.name == "sample" else np.asarray(timestep, dtype)
    result: Array = session.run(None, feed)[0]
    return result
