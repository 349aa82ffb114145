"""The roles of nodes reach whoever reads an exported file."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from accuquant.errors import SourceError
from accuquant.export import write_onnx
from accuquant.graph.infer_types import untyped_nodes
from accuquant.graph.neighbours import producer
from accuquant.graph.roles import check_roles, role_of
from accuquant.graph.vocabulary import LAYER_KEY, ROLE_KEY, VERSION_KEY, Role
from accuquant.groups import StepGroups
from accuquant.networks.signature import Signature, TensorSpec
from accuquant.qparams import LayerQParams, fingerprint
from accuquant.recipe import Recipe

WEIGHT = np.random.default_rng(1).normal(0, 0.3, (64, 4, 3, 3)).astype(np.float32)
PRODUCTS = np.random.default_rng(2).normal(0, 0.3, (2, 6, 64)).astype(np.float32)


def write_network(path: Path) -> None:
    """Write sample -> Conv -> [batch, 64 tokens, 64] -> two products of the same tokens -> their sum."""
    constants = {
        "conv.weight": WEIGHT,
        "shape": np.array([0, 64, -1]),
        "to_q.weight": PRODUCTS[0].T,
        "to_k.weight": PRODUCTS[1].T,
    }
    nodes = [
        helper.make_node("Conv", ["sample", "conv.weight"], ["y"], "conv", pads=[1] * 4),
        helper.make_node("Reshape", ["y", "shape"], ["tokens"], "tokens"),
        helper.make_node("MatMul", ["tokens", "to_q.weight"], ["q"], "to_q"),
        helper.make_node("MatMul", ["tokens", "to_k.weight"], ["k"], "to_k"),
        helper.make_node("Sub", ["q", "k"], ["out_sample"], "sum"),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [
            helper.make_tensor_value_info("sample", TensorProto.FLOAT, [2, 4, 8, 8]),
            helper.make_tensor_value_info("timestep", TensorProto.INT64, [1]),
        ],
        [helper.make_tensor_value_info("out_sample", TensorProto.FLOAT, [2, 64, 6])],
        [numpy_helper.from_array(np.ascontiguousarray(array), name) for name, array in constants.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path)


def layer(name: str, kind: str, weight: Any) -> LayerQParams:
    axes = tuple(range(1, weight.ndim))
    scale = (np.abs(weight).max(axis=axes) / 31).astype(np.float32)
    steps = np.array([0.05, 0.03], np.float32)
    return LayerQParams(
        name, kind, weight.shape, fingerprint(weight), scale, steps, activation_bits=6, zero_point=-9
    )


@pytest.fixture
def exported(tmp_path: Path) -> Any:
    """Return a function that exports the network and reads it again."""
    image = TensorSpec("sample", ("batch", 4, 8, 8))
    signature = Signature(
        architecture="UNet2DModel",
        sample=image,
        timestep=TensorSpec("timestep", (1,), "int64"),
        conditioning=(),
        output=TensorSpec("out_sample", ("batch", 64, 6)),
        sizes={"batch": 2},
    )
    named = {"conv": WEIGHT, "to_q": PRODUCTS[0], "to_k": PRODUCTS[1]}
    layers = {n: layer(n, "conv2d" if n == "conv" else "linear", w) for n, w in named.items()}
    recipe = Recipe(StepGroups((1000.0, 500.0, 0.0)), layers, signature, {}, "0" * 64)

    def export(**options: Any) -> ir.Model:
        write_network(tmp_path / "float.onnx")
        return ir.load(write_onnx(tmp_path / "float.onnx", recipe, tmp_path / "int8.onnx", **options)[0])

    return export


@pytest.mark.parametrize("external_data", [False, True])
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("lowering", ["rescale", "per-group"])
def test_every_node_of_a_lowering_says_what_it_is_for(
    exported: Any, lowering: str, precision: str, external_data: bool
) -> None:
    model = exported(lowering=lowering, precision=precision, external_data=external_data)
    check_roles(model, Path("int8.onnx"))
    assert untyped_nodes(model.graph) == []
    roles = Counter(role_of(node) for node in model.graph)
    assert roles[Role.WEIGHT] == 3
    assert roles[Role.QUANTIZE] == roles[Role.DEQUANTIZE] == roles[Role.CLIP] == roles[Role.SHIFT] == 2
    grouped = lowering == "rescale"
    assert roles[Role.GROUP_INDEX] == grouped
    assert roles[Role.DIVIDE] == 2 * grouped
    assert roles[Role.PAD] == grouped
    assert bool(roles[Role.RESTORE]) == (grouped or precision != "fp32")  # of a Conv's channels
    assert roles[Role.SHIFTED_BIAS]  # of the graph's groups, or of the borders
    assert bool(roles[Role.JOIN]) == (precision != "fp32")
    for node in model.graph:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear", "Clip", "Pad", "Div"):
            assert role_of(node) is not None, node.name


def test_roles_and_layers_stand_where_the_names_say_so(exported: Any) -> None:
    model = exported(precision="fp16")
    nodes = {node.name: node for node in model.graph}
    found = {name: role_of(node) for name, node in nodes.items()}
    assert found["conv/input/QuantizeLinear"] is Role.QUANTIZE
    assert found["conv/input/Div"] is Role.DIVIDE
    assert found["conv/output/Mul"] is Role.RESTORE
    layers = {node.metadata_props.get(LAYER_KEY): node for node in model.graph}
    assert role_of(producer(layers["conv"])) is Role.DEQUANTIZE
    assert role_of(producer(layers["conv"], 1)) is Role.WEIGHT
    assert role_of(layers["conv"]) is None


def test_an_unknown_role_is_refused() -> None:
    node = ir.node("Identity", [ir.Value(name="x")], name="n")
    node.metadata_props[ROLE_KEY] = "teleport"
    with pytest.raises(SourceError, match=r"node 'n': got the role 'teleport'.*later version"):
        role_of(node)


def test_graphs_of_other_tools_need_no_roles(exported: Any) -> None:
    model = exported()
    for node in model.graph:
        node.metadata_props.clear()
    with pytest.raises(SourceError, match=r"nodes that say what they are for.*Export the model again"):
        check_roles(model, Path("int8.onnx"))
    del model.metadata_props[VERSION_KEY]
    check_roles(model, Path("int8.onnx"))
