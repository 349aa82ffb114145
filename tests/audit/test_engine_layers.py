from __future__ import annotations

import pytest

from accuquant.audit.engine_layers import EngineTensor, read_engine_layers

#: Lines of TensorRT for RTX 1.7.1, without strides.
CONVOLUTION = (
    "Name: node_conv2d_4_myl0_20, LayerType: correlation, "
    "Inputs: [ { Name: __mye103166conv2d_4.1_26_myl0, Dimensions: [1,128,32,32], Strides: [131072,1,4096], "
    "Datatype: Int8, Format: (NHWC) Channel major format }], "
    "Constants: [ { Name: __mye111533dconst_myl0, Dimensions: [128,128,3,3], Strides: [1152,1,384,128], "
    "Datatype: Int8, Format: (NHWC) Channel major format }], "
    "Outputs: [ { Name: __myln_k_arg__bb1_27_myl0, Dimensions: [1,128,32,32], Strides: [131072,1,4096,128], "
    "Datatype: Float, Format: (NHWC) Channel major format }], TacticName: __myelin_CASK_STUB, StreamId: 0, "
    "Metadata: [ONNX Layer: node_conv2d_4]\x1e[ONNX Layer: a/weight/Dequantize][ONNX Layer: b]"
)
FILL = (
    "Name: __myl_Move_myl0_6, LayerType: kgen, Inputs: [], Constants: [], Outputs: [ { Name: k, Dimensions: "
    "[64], Strides: [1], StrideOrder: [0], Datatype: Int32, Format: (Linear) Row major linear format }], "
    "TacticName: __myl_Move_0xeb8, StreamId: 0, Metadata: []"
)
MERGED = (
    "Name: node_linear_2+node_linear_1_myl0_3, LayerType: gemm, "
    "Inputs: [ { Name: x, Dimensions: [], Strides: [], Datatype: Half, Format: (Linear) Row major }], "
    "Constants: [], Outputs: [], TacticName: , StreamId: 0, Metadata: [ONNX Layer: node_linear_2]"
)


def test_a_layer_is_read_with_its_tensors_and_nodes() -> None:
    description = read_engine_layers(
        ["INFO: Total Weights Memory: 40007940 bytes", "VERBOSE: Layers:", CONVOLUTION, FILL, "I/O Tensors:"]
    )
    convolution, fill = description.layers
    assert convolution.kind == "correlation"
    assert convolution.inputs == (EngineTensor("__mye103166conv2d_4.1_26_myl0", (1, 128, 32, 32), "Int8"),)
    assert convolution.constants[0].num_bytes == 128 * 128 * 9
    assert convolution.outputs[0].num_bytes == 128 * 32 * 32 * 4
    assert convolution.onnx_nodes == ("node_conv2d_4", "a/weight/Dequantize", "b")
    assert convolution.reads_levels
    assert (fill.inputs, fill.onnx_nodes, fill.operations) == ((), (), ("Move",))
    assert description.weight_bytes == 40007940
    assert description.layers_of("b") == (convolution,)
    assert description.layers_of("nowhere") == ()


def test_a_merged_layer_computes_every_node_in_its_name() -> None:
    (layer,) = read_engine_layers([f"VERBOSE: {MERGED}"]).layers
    assert layer.onnx_nodes == ("node_linear_2", "node_linear_1")


@pytest.mark.parametrize(
    "line",
    [
        FILL.replace("Int32", "Int3"),
        FILL.replace("Outputs: [ {", "Writes: [ {"),
        FILL.replace("[64]", "64"),
    ],
)
def test_a_layer_in_another_form_is_named_and_not_dropped(line: str) -> None:
    description = read_engine_layers([CONVOLUTION, line])
    assert len(description.layers) == 1
    assert description.not_understood == (line,)


def test_other_lines_are_no_layers() -> None:
    lines = [
        " Name: sample, IOMode: Input, DataType: Float, Dimensions: [1,3,32,32]",
        "VERBOSE: Registering layer: Name: x",
    ]
    assert read_engine_layers(lines).layers == ()
    assert read_engine_layers(lines).not_understood == ()
