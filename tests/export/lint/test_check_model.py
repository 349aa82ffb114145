from __future__ import annotations

from dataclasses import astuple
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import DTypeLike
from onnx import TensorProto, helper, numpy_helper

from accuquant.errors import SourceError
from accuquant.export import check_model

_IMAGE = [1, 4, 8, 8]


class Graph:
    """A graph under construction: each method adds nodes and returns the name of what they write."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.tensors: list[TensorProto] = []
        self.inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, _IMAGE)]

    def tensor(self, name: str, values: Any, dtype: DTypeLike = np.float32) -> str:
        self.tensors.append(numpy_helper.from_array(np.asarray(values, dtype), name))
        return name

    def op(self, kind: str, inputs: list[str], name: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(kind, inputs, [f"{name}.out"], name, **attributes))
        return f"{name}.out"

    def quantize(self, x: str, name: str, scale: Any = 0.5, zero: Any = 0, level: DTypeLike = np.int8) -> str:
        pair = [self.tensor(f"{name}.scale", scale), self.tensor(f"{name}.zero", zero, level)]
        levels = self.op("QuantizeLinear", [x, *pair], f"{name}.q")
        return self.op("DequantizeLinear", [levels, *pair], f"{name}.dq")

    def weight(self, name: str, shape: list[int], axis: int, level: DTypeLike = np.int8) -> str:
        levels = self.tensor(f"{name}.levels", np.ones(shape), level)
        scale = self.tensor(f"{name}.scale", np.full(shape[axis], 0.25))
        return self.op("DequantizeLinear", [levels, scale], f"{name}.dq", axis=axis)

    def conv(self, x: str, name: str = "conv") -> str:
        bias = self.tensor(f"{name}.bias", np.zeros(4))
        weight = self.weight(f"{name}.weight", [4, 4, 3, 3], 0)
        return self.op("Conv", [x, weight, bias], name, pads=[1, 1, 1, 1])

    def save(self, path: Path, output: str, opset: int = 21, output_type: int = TensorProto.FLOAT) -> Path:
        rank = len(self.inputs[0].type.tensor_type.shape.dim)
        result = helper.make_tensor_value_info(output, output_type, [None] * rank)
        graph = helper.make_graph(self.nodes, "unet", self.inputs, [result], self.tensors)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
        onnx.save(model, path)
        return path


@pytest.fixture
def graph() -> Graph:
    return Graph()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.onnx"


def rules(path: Path) -> set[tuple[str, str]]:
    return {(violation.rule, violation.node) for violation in check_model(path)}


def test_accepts_a_symmetric_graph_with_concat_and_residual(graph: Graph, path: Path) -> None:
    x = graph.quantize("x", "input")
    y = graph.conv(x)
    joined = graph.op("Concat", [graph.op("Add", [y, x], "add"), y], "concat", axis=1)
    assert check_model(graph.save(path, graph.quantize(joined, "joined", 0.125))) == []


def test_reports_a_zero_point_that_is_not_zero_on_both_nodes(graph: Graph, path: Path) -> None:
    graph.save(path, graph.conv(graph.quantize("x", "input", zero=3)))
    assert rules(path) == {("zero-point", "input.q"), ("zero-point", "input.dq")}
    assert check_model(path)[0].message == "zero_point is 3, expected constant zeros"


def test_reports_a_zero_point_that_the_graph_computes(graph: Graph, path: Path) -> None:
    scale = graph.tensor("scale", 0.5)
    zero = graph.op("Cast", [graph.tensor("zero", 0.0)], "cast", to=TensorProto.INT8)
    levels = graph.op("QuantizeLinear", ["x", scale, zero], "q")
    graph.save(path, graph.op("DequantizeLinear", [levels, scale], "dq"))
    assert rules(path) == {("zero-point", "q")}


def test_reports_unsigned_levels(graph: Graph, path: Path) -> None:
    graph.save(path, graph.conv(graph.quantize("x", "input", level=np.uint8)))
    assert rules(path) == {("level-type", "input.q"), ("level-type", "input.dq")}


def test_reports_that_no_zero_point_means_uint8(graph: Graph, path: Path) -> None:
    scale = graph.tensor("scale", 0.5)
    levels = graph.op("QuantizeLinear", ["x", scale], "q")
    graph.save(path, graph.op("DequantizeLinear", [levels, scale], "dq"))
    assert rules(path) == {("level-type", "q"), ("level-type", "dq")}
    assert "uint8, the default where there is no zero_point" in check_model(path)[0].message


def test_accepts_output_dtype_int8_instead_of_a_zero_point(graph: Graph, path: Path) -> None:
    scale = graph.tensor("scale", 0.5)
    levels = graph.op("QuantizeLinear", ["x", scale], "q", output_dtype=TensorProto.INT8)
    graph.save(path, graph.op("DequantizeLinear", [levels, scale], "dq"))
    assert check_model(path) == []


def test_reports_a_quantized_bias(graph: Graph, path: Path) -> None:
    bias = graph.weight("bias", [4], 0, level=np.int32)
    weight = graph.weight("weight", [4, 4, 3, 3], 0)
    graph.save(path, graph.op("Conv", [graph.quantize("x", "input"), weight, bias], "conv"))
    assert rules(path) == {("quantized-bias", "bias.dq")}


@pytest.mark.parametrize(("opset", "expected"), [(19, {("opset", "weight.dq")}), (21, set())])
def test_reports_int4_before_opset_21(
    graph: Graph, path: Path, opset: int, expected: set[tuple[str, str]]
) -> None:
    levels = helper.make_tensor("weight.levels", TensorProto.INT4, [2, 4], [1] * 8)
    graph.tensors.append(levels)
    weight = graph.op("DequantizeLinear", ["weight.levels", graph.tensor("scale", 0.5)], "weight.dq")
    graph.inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 2])]
    graph.save(path, graph.op("MatMul", ["x", weight], "matmul"), opset)
    assert rules(path) == expected


def test_reports_a_scale_that_is_a_graph_input(graph: Graph, path: Path) -> None:
    graph.inputs.append(helper.make_tensor_value_info("scale", TensorProto.FLOAT, []))
    zero = graph.tensor("zero", 0, np.int8)
    levels = graph.op("QuantizeLinear", ["x", "scale", zero], "q")
    graph.save(path, graph.op("DequantizeLinear", [levels, "scale", zero], "dq"))
    assert rules(path) == {("constant-scale", "q"), ("constant-scale", "dq")}
    assert "'scale' is a graph input" in check_model(path)[0].message


def test_reports_a_scale_that_a_gather_chooses(graph: Graph, path: Path) -> None:
    table, index = graph.tensor("table", [0.5, 0.25]), graph.tensor("index", 1, np.int64)
    scale, zero = graph.op("Gather", [table, index], "choose"), graph.tensor("zero", 0, np.int8)
    levels = graph.op("QuantizeLinear", ["x", scale, zero], "q")
    graph.save(path, graph.op("DequantizeLinear", [levels, scale, zero], "dq"))
    assert rules(path) == {("constant-scale", "q"), ("constant-scale", "dq")}
    assert "the output of Gather 'choose'" in check_model(path)[0].message


def test_accepts_a_scale_in_a_constant_node(graph: Graph, path: Path) -> None:
    scale, zero = graph.op("Constant", [], "constant", value_float=0.5), graph.tensor("zero", 0, np.int8)
    levels = graph.op("QuantizeLinear", ["x", scale, zero], "q")
    graph.save(path, graph.op("DequantizeLinear", [levels, scale, zero], "dq"))
    assert check_model(path) == []


@pytest.mark.parametrize("scale", [0.0, -0.5, np.inf, np.nan])
def test_reports_a_scale_that_is_not_positive_and_finite(graph: Graph, path: Path, scale: float) -> None:
    graph.save(path, graph.conv(graph.quantize("x", "input", scale)))
    assert rules(path) == {("positive-scale", "input.q"), ("positive-scale", "input.dq")}


def test_reports_per_channel_scales_of_an_activation(graph: Graph, path: Path) -> None:
    graph.save(path, graph.conv(graph.quantize("x", "input", np.full(4, 0.5), np.zeros(4))))
    assert rules(path) == {("per-channel-activation", "input.q"), ("per-channel-activation", "input.dq")}


def test_reports_the_one_scale_of_an_activation_that_has_an_axis(graph: Graph, path: Path) -> None:
    graph.save(path, graph.conv(graph.quantize("x", "input", scale=[0.5], zero=[0])))
    assert rules(path) == {("scalar-scale", "input.q"), ("scalar-scale", "input.dq")}


def test_accepts_a_float_weight_that_is_quantized_per_channel_in_the_graph(graph: Graph, path: Path) -> None:
    weight = graph.tensor("weight", np.ones((4, 4, 1, 1)))
    pair = [graph.tensor("scale", np.full(4, 0.5)), graph.tensor("zero", np.zeros(4), np.int8)]
    levels = graph.op("QuantizeLinear", [weight, *pair], "q", axis=0)
    weight = graph.op("DequantizeLinear", [levels, *pair], "dq", axis=0)
    graph.save(path, graph.op("Conv", [graph.quantize("x", "input"), weight], "conv"))
    assert check_model(path) == []


@pytest.mark.parametrize(
    ("layer", "attributes", "shape", "right"),
    [
        ("Conv", {}, [4, 4, 3, 3], 0),
        ("ConvTranspose", {}, [4, 4, 3, 3], 1),
        ("Gemm", {}, [8, 8], 1),
        ("Gemm", {"transB": 1}, [8, 8], 0),
        ("MatMul", {}, [8, 8], 1),
        ("MatMul", {}, [4, 8, 8], 2),
    ],
)
def test_reports_weight_scales_that_do_not_follow_the_output_channels(
    path: Path, layer: str, attributes: dict[str, int], shape: list[int], right: int
) -> None:
    for axis in range(len(shape)):
        graph = Graph()
        graph.inputs = [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, [8, 8] if layer == "Gemm" else _IMAGE)
        ]
        operands = [graph.quantize("x", "input"), graph.weight("weight", shape, axis)]
        graph.save(path, graph.op(layer, operands, "layer", **attributes))
        assert rules(path) == (set() if axis == right else {("weight-axis", "weight.dq")})


@pytest.mark.parametrize(("axis", "expected"), [(0, set()), (1, {("weight-axis", "weight.dq")})])
def test_follows_the_weight_axis_through_reshape_cast_and_transpose(
    graph: Graph, path: Path, axis: int, expected: set[tuple[str, str]]
) -> None:
    graph.inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 8])]
    weight = graph.weight("weight", [6, 8, 1], axis)
    weight = graph.op("Reshape", [weight, graph.tensor("shape", [6, -1], np.int64)], "reshape")
    weight = graph.op("Transpose", [weight], "transpose", perm=[1, 0])
    weight = graph.op("Cast", [weight], "cast", to=TensorProto.FLOAT)
    graph.save(path, graph.op("MatMul", [graph.quantize("x", "input"), weight], "matmul"))
    assert rules(path) == expected


def test_reports_levels_that_nothing_dequantizes(graph: Graph, path: Path) -> None:
    pair = [graph.tensor("scale", 0.5), graph.tensor("zero", 0, np.int8)]
    levels = graph.op("QuantizeLinear", ["x", *pair], "q")
    moved = graph.op("Transpose", [levels], "transpose")
    graph.save(path, graph.op("DequantizeLinear", [moved, *pair], "dq"))
    assert rules(path) == {("unpaired-quantize", "q"), ("unpaired-dequantize", "dq")}
    assert "Transpose 'transpose'" in check_model(path)[0].message


def test_reports_levels_that_are_a_graph_output(graph: Graph, path: Path) -> None:
    pair = [graph.tensor("scale", 0.5), graph.tensor("zero", 0, np.int8)]
    graph.save(path, graph.op("QuantizeLinear", ["x", *pair], "q"), output_type=TensorProto.INT8)
    assert rules(path) == {("unpaired-quantize", "q")}


def test_reports_levels_that_are_a_graph_input(graph: Graph, path: Path) -> None:
    graph.inputs = [helper.make_tensor_value_info("x", TensorProto.INT8, _IMAGE)]
    graph.save(path, graph.op("DequantizeLinear", ["x", graph.tensor("scale", 0.5)], "dq"))
    assert rules(path) == {("unpaired-dequantize", "dq")}


@pytest.mark.parametrize(("second", "expected"), [(0.5, set()), (0.25, {("untied-concat", "concat")})])
def test_reports_concat_inputs_with_different_scales(
    graph: Graph, path: Path, second: float, expected: set[tuple[str, str]]
) -> None:
    inputs = [graph.quantize("x", "a", 0.5), graph.quantize("x", "b", second)]
    graph.save(path, graph.op("Concat", inputs, "concat", axis=1))
    assert rules(path) == expected


@pytest.mark.parametrize(("after", "expected"), [(0.5, set()), (0.25, {("untied-concat", "concat")})])
def test_reports_a_concat_that_is_quantized_again_with_another_scale(
    graph: Graph, path: Path, after: float, expected: set[tuple[str, str]]
) -> None:
    joined = graph.op("Concat", [graph.quantize("x", "a", 0.5), "x"], "concat", axis=1)
    graph.save(path, graph.quantize(joined, "joined", after))
    assert rules(path) == expected


def test_reports_a_residual_that_is_quantized_on_both_branches(graph: Graph, path: Path) -> None:
    branch = graph.quantize(graph.conv(graph.quantize("x", "input")), "branch")
    graph.save(path, graph.op("Add", [branch, graph.quantize("x", "shortcut")], "add"))
    assert rules(path) == {("double-residual", "add")}


def test_accepts_a_dequantized_constant_that_is_added(graph: Graph, path: Path) -> None:
    graph.save(path, graph.op("Add", [graph.quantize("x", "input"), graph.weight("b", [8], 0)], "add"))
    assert check_model(path) == []


@pytest.mark.parametrize("dtype", [TensorProto.FLOAT16, TensorProto.BFLOAT16])
@pytest.mark.parametrize(("opset", "expected"), [(17, {"q", "dq"}), (19, set())])
def test_reports_half_scales_before_opset_19(
    graph: Graph, path: Path, dtype: int, opset: int, expected: set[str]
) -> None:
    graph.inputs = [helper.make_tensor_value_info("x", dtype, _IMAGE)]
    graph.tensors.append(helper.make_tensor("scale", dtype, [], [0.5]))
    zero = graph.tensor("zero", 0, np.int8)
    levels = graph.op("QuantizeLinear", ["x", "scale", zero], "q")
    graph.save(path, graph.op("DequantizeLinear", [levels, "scale", zero], "dq"), opset, dtype)
    assert rules(path) == {("scale-type", node) for node in expected}


@pytest.mark.parametrize("dtype", [TensorProto.FLOAT16, TensorProto.BFLOAT16])
def test_reports_a_scale_of_another_type_than_the_tensor(graph: Graph, path: Path, dtype: int) -> None:
    graph.tensors.append(helper.make_tensor("scale", dtype, [], [0.5]))
    zero = graph.tensor("zero", 0, np.int8)
    doubled = graph.op("Add", ["x", "x"], "add")
    levels = graph.op("QuantizeLinear", [doubled, "scale", zero], "q")
    graph.save(path, graph.op("DequantizeLinear", [levels, "scale", zero], "dq"), output_type=dtype)
    assert rules(path) == {("scale-type", "q")}


def test_reports_a_weight_of_another_type_than_the_activation(graph: Graph, path: Path) -> None:
    levels = graph.tensor("levels", np.ones((4, 4, 1, 1)), np.int8)
    weight = graph.op("DequantizeLinear", [levels, graph.tensor("scale", 0.5, np.float16)], "weight.dq")
    graph.save(path, graph.op("Conv", [graph.quantize("x", "input"), weight], "conv"))
    assert rules(path) == {("scale-type", "weight.dq")}


@pytest.mark.parametrize(("groups", "expected"), [(1, {("one-group-norm", "norm")}), (2, set())])
def test_reports_a_norm_of_one_group(
    graph: Graph, path: Path, groups: int, expected: set[tuple[str, str]]
) -> None:
    vectors = [graph.tensor(name, np.ones(4)) for name in ("norm.scale", "norm.bias")]
    x = graph.op("GroupNormalization", ["x", *vectors], "norm", num_groups=groups)
    graph.save(path, graph.conv(graph.quantize(x, "input")))
    assert rules(path) == expected


def test_reports_a_float_graph_once(graph: Graph, path: Path) -> None:
    graph.save(path, graph.op("Relu", ["x"], "relu"))
    assert rules(path) == {("not-quantized", "unet")}


def test_names_a_nameless_node_by_its_output(graph: Graph, path: Path) -> None:
    graph.save(path, graph.conv(graph.quantize("x", "input", 0.0)))
    model = onnx.load(path)
    model.graph.node[0].name = ""
    onnx.save(model, path)
    assert ("positive-scale", "QuantizeLinear of 'input.q.out'") in rules(path)


def test_looks_into_branches_and_finds_the_scales_around_them(graph: Graph, path: Path) -> None:
    inner = Graph()
    inner.quantize("x", "inner")
    graph.tensor("inner.scale", -1.0)
    graph.tensor("inner.zero", 0, np.int8)
    outputs = [helper.make_tensor_value_info("inner.dq.out", TensorProto.FLOAT, _IMAGE)]
    then = helper.make_graph(inner.nodes, "then", [], outputs)
    copy = helper.make_node("Identity", ["x"], ["copy.out"], "copy")
    other = helper.make_graph([copy], "else", [], [helper.make_tensor_value_info("copy.out", 1, _IMAGE)])
    graph.inputs.append(helper.make_tensor_value_info("flag", TensorProto.BOOL, []))
    graph.save(path, graph.op("If", ["flag"], "if", then_branch=then, else_branch=other))
    assert rules(path) == {("positive-scale", "inner.q"), ("positive-scale", "inner.dq")}


def test_looks_into_local_functions(path: Path) -> None:
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("local", 1)]
    body = [
        helper.make_node("Constant", [], ["s"], value_float=-1.0),
        helper.make_node("Constant", [], ["z"], value=helper.make_tensor("z", TensorProto.INT8, [], [0])),
        helper.make_node("QuantizeLinear", ["a", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["b"]),
    ]
    function = helper.make_function("local", "FakeQuantize", ["a"], ["b"], body, opsets[:1])
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, _IMAGE) for name in "xy")
    graph = helper.make_graph([helper.make_node("FakeQuantize", ["x"], ["y"], domain="local")], "g", [x], [y])
    onnx.save(helper.make_model(graph, opset_imports=opsets, functions=[function], ir_version=10), path)
    assert [violation.rule for violation in check_model(path)] == ["positive-scale", "positive-scale"]


def test_reads_scales_from_external_data_and_leaves_the_weights(graph: Graph, path: Path) -> None:
    graph.save(path, graph.conv(graph.quantize("x", "input", 0.0)))
    model = onnx.load(path)
    onnx.save(model, path, save_as_external_data=True, location="model.data", size_threshold=0)
    stub = onnx.load(path, load_external_data=False)
    levels = next(tensor for tensor in stub.graph.initializer if tensor.name == "conv.weight.levels")
    hole = 3_000_000_000
    levels.dims[:] = [hole // 36, 4, 3, 3]
    sparse = {"location": "weights.data", "offset": "0", "length": str(hole // 36 * 36)}
    levels.ClearField("external_data")
    for key, value in sparse.items():
        levels.external_data.add(key=key, value=value)
    onnx.save(stub, path)
    with path.with_name("weights.data").open("wb") as file:
        file.truncate(hole)
    assert rules(path) == {("positive-scale", "input.q"), ("positive-scale", "input.dq")}


def test_refuses_external_data_outside_the_folder(graph: Graph, path: Path) -> None:
    graph.save(path, graph.conv(graph.quantize("x", "input")))
    model = onnx.load(path)
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../secret.bin")
    path.write_bytes(model.SerializeToString())
    with pytest.raises(SourceError, match="outside the folder"):
        check_model(path)


@pytest.mark.parametrize("kept", [0, 100, -1])
def test_refuses_a_truncated_file(graph: Graph, path: Path, kept: int) -> None:
    graph.save(path, graph.conv(graph.quantize("x", "input")))
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(SourceError, match=r"model\.onnx"):
        check_model(path)


def test_refuses_a_file_of_another_kind(path: Path) -> None:
    path.write_bytes(b"\x80\x04not a graph" * 20)
    with pytest.raises(SourceError, match="expected a complete ONNX file"):
        check_model(path)


def test_refuses_a_missing_file(path: Path) -> None:
    with pytest.raises(SourceError, match="no such file"):
        check_model(path)


def test_refuses_a_graph_that_is_not_valid(graph: Graph, path: Path) -> None:
    graph.save(path, graph.op("DequantizeLinear", ["x"], "dq"))
    with pytest.raises(SourceError, match="an invalid graph"):
        check_model(path)


def test_refuses_a_scale_whose_bytes_do_not_fit_its_shape(graph: Graph, path: Path) -> None:
    graph.save(path, graph.conv(graph.quantize("x", "input")))
    model = onnx.load(path)
    model.graph.initializer[0].raw_data = b"\x00\x00"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(SourceError, match=r"model\.onnx"):
        check_model(path)


def quantize_static(graph: Graph, path: Path, **options: Any) -> None:
    """Quantize x + conv(x) with ONNX Runtime, which has never heard of TensorRT's rules."""
    from onnxruntime import quantization

    class Images(quantization.CalibrationDataReader):
        batches = iter([{"x": np.random.default_rng(1).uniform(-1, 3, _IMAGE).astype(np.float32)}])

        def get_next(self) -> dict[str, Any] | None:
            return next(self.batches, None)

    weight = graph.tensor("weight", np.random.default_rng(0).normal(size=(4, 4, 3, 3)))
    y = graph.op("Conv", ["x", weight, graph.tensor("bias", np.ones(4))], "conv", pads=[1, 1, 1, 1])
    float_path = graph.save(path.with_name("float.onnx"), graph.op("Add", [y, "x"], "add"))
    quantization.quantize_static(float_path, path, Images(), **options)


def test_finds_what_onnxruntime_does_by_default_and_tensorrt_refuses(graph: Graph, path: Path) -> None:
    from onnxruntime.quantization import QuantType

    quantize_static(graph, path, activation_type=QuantType.QUInt8)
    assert {rule for rule, _ in rules(path)} == {
        "zero-point",
        "level-type",
        "quantized-bias",
        "double-residual",
    }
    assert ("double-residual", "add") in rules(path)
    assert all(all(astuple(violation)) for violation in check_model(path))


def test_accepts_what_onnxruntime_quantizes_with_the_remedies_applied(graph: Graph, path: Path) -> None:
    symmetric = {"ActivationSymmetric": True, "QuantizeBias": False}
    options = {**symmetric, "OpTypesToExcludeOutputQuantization": ["Conv"]}
    quantize_static(graph, path, op_types_to_quantize=["Conv"], per_channel=True, extra_options=options)
    assert check_model(path) == []
