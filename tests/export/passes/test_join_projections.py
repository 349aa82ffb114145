"""Products that read one tensor share what follows them, and compute what they did."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from accuquant.export.passes.join_projections import JoinProjectionsPass
from accuquant.export.passes.remove_pairs import RemovePairsPass
from accuquant.graph.vocabulary import LAYER_KEY

WIDTHS = {"to_q": 6, "to_k": 6, "to_v": 4}


def write_projections(
    path: Path, *, biases: str = "qkv", factors: tuple[str, ...] = (), added: str = ""
) -> None:
    """Write sample -> MatMul each -> [Mul factor] -> [Add bias] -> Concat along the rows of three heads."""
    rng = np.random.default_rng(0)
    constants: dict[str, Any] = {"shared": np.float32(0.5), "own": np.float32(2.0)}
    constants["vector"] = rng.normal(0, 1, 6).astype(np.float32)
    constants["column"] = rng.normal(0, 1, (2, 3, 1)).astype(np.float32)
    nodes, outputs = [], []
    for number, (name, width) in enumerate(WIDTHS.items()):
        constants[f"{name}.w"] = rng.normal(0, 0.3, (5, width)).astype(np.float32)
        node = helper.make_node("MatMul", ["sample", f"{name}.w"], [f"{name}.product"], name)
        node.metadata_props.add(key=LAYER_KEY, value=name)
        nodes.append(node)
        value = f"{name}.product"
        if factors:
            nodes.append(helper.make_node("Mul", [value, factors[number]], [f"{name}.scaled"], f"{name}/Mul"))
            value = f"{name}.scaled"
        if added:
            nodes.append(helper.make_node("Add", [value, added], [f"{name}.added"], f"{name}/Plus"))
            value = f"{name}.added"
        if name[-1] in biases:
            constants[f"{name}.b"] = rng.normal(0, 1, width).astype(np.float32)
            nodes.append(helper.make_node("Add", [value, f"{name}.b"], [f"{name}.biased"], f"{name}/Add"))
            value = f"{name}.biased"
        outputs.append(value)
    nodes.append(helper.make_node("Concat", [outputs[2], outputs[0], outputs[1]], ["out_sample"], axis=-1))
    graph = helper.make_graph(
        nodes,
        "unet",
        [helper.make_tensor_value_info("sample", TensorProto.FLOAT, [2, 3, 5])],
        [helper.make_tensor_value_info("out_sample", TensorProto.FLOAT, [2, 3, sum(WIDTHS.values())])],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path)


def join(path: Path) -> list[ir.Node]:
    """Apply the pass to the file -> its nodes then."""
    model = ir.load(path)
    JoinProjectionsPass()(model)
    ir.save(model, path)
    onnx.checker.check_model(path, full_check=True)
    return list(model.graph)


@pytest.mark.parametrize("biases", ["qkv", "v", ""])
@pytest.mark.parametrize("factors", [(), ("shared",) * 3])
def test_one_chain_follows_all_of_them_and_nothing_changes(
    tmp_path: Path, run_graph: Any, biases: str, factors: tuple[str, ...]
) -> None:
    path = tmp_path / "attention.onnx"
    write_projections(path, biases=biases, factors=factors)
    sample = np.random.default_rng(1).normal(0, 1, (2, 3, 5)).astype(np.float32)
    expected = run_graph(path, sample, [0])
    nodes = join(path)
    count = [node.op_type for node in nodes].count
    assert (count("Split"), count("Mul"), count("Add")) == (1, int(bool(factors)), int(bool(biases)))
    names = {node.metadata_props.get(LAYER_KEY) for node in nodes if node.op_type == "MatMul"}
    assert names == set(WIDTHS), "the layers keep nodes of their own"
    np.testing.assert_array_equal(run_graph(path, sample, [0]), expected)


def test_products_with_factors_of_their_own_stay_apart(tmp_path: Path) -> None:
    path = tmp_path / "attention.onnx"
    write_projections(path, factors=("shared", "own", "shared"))
    assert "Split" not in [node.op_type for node in join(path)]


@pytest.mark.parametrize(
    ("biases", "factors", "added"),
    [
        ("qkv", (), "shared"),
        ("", (), "column"),
        ("qk", ("vector", "vector", "shared"), ""),
        ("", ("column",) * 3, ""),
        ("qkv", ("column",) * 3, "shared"),
    ],
)
def test_whatever_else_follows_them_stays_behind(
    tmp_path: Path, run_graph: Any, biases: str, factors: tuple[str, ...], added: str
) -> None:
    """AdaLN adds 1 to a product, a gate multiplies by another tensor."""
    path = tmp_path / "attention.onnx"
    write_projections(path, biases=biases, factors=factors, added=added)
    sample = np.random.default_rng(1).normal(0, 1, (2, 3, 5)).astype(np.float32)
    expected = run_graph(path, sample, [0])
    operators = [node.op_type for node in join(path)]
    assert operators.count("Mul") == len(factors), "no factor but a scalar is shared"
    np.testing.assert_array_equal(run_graph(path, sample, [0]), expected)


@pytest.mark.parametrize("biases", ["qkv", "v", ""])
def test_without_pairs_they_stand_apart_again(tmp_path: Path, run_graph: Any, biases: str) -> None:
    path = tmp_path / "attention.onnx"
    write_projections(path, biases=biases)
    sample = np.random.default_rng(1).normal(0, 1, (2, 3, 5)).astype(np.float32)
    expected = run_graph(path, sample, [0])
    assert "Split" in [node.op_type for node in join(path)]
    model = ir.load(path)
    RemovePairsPass()(model)
    ir.save(model, path)
    operators = [node.op_type for node in model.graph]
    assert operators.count("MatMul") == 3
    assert operators.count("Concat") == 1
    assert "Split" not in operators
    np.testing.assert_array_equal(run_graph(path, sample, [0]), expected)
