from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import pytest
from onnx import helper

from accuquant.runtime.cpu_forms.form import CpuForm
from accuquant.runtime.cpu_forms.rewrite import rewrite
from accuquant.runtime.openvino_runner import OpenVinoRunner

X = np.random.default_rng(0).normal(1, 2, (2, 4, 3, 5)).astype(np.float32)
FACTORS = np.array([0.5, 3.0], np.float32)
BIAS = np.arange(4, dtype=np.float32).reshape(4, 1, 1)


@pytest.fixture
def path(tmp_path: Path, save_graph: Callable[..., Path]) -> Path:
    """x [N, 4, 3, 5] -> (x / f + bias) * f - 1 + x [0, 0, 0, 0], f [1] as it is gathered for a step group."""
    nodes = [
        helper.make_node("Gather", ["factors", "group"], ["f"], "f"),
        helper.make_node("Div", ["x", "f"], ["divided"], "divide"),
        helper.make_node("Add", ["divided", "bias"], ["shifted"], "add"),
        helper.make_node("Mul", ["f", "shifted"], ["scaled"], "multiply"),
        helper.make_node("Sub", ["scaled", "one"], ["y"], "subtract"),
    ]
    constants = {"factors": FACTORS, "group": np.array([1], np.int64), "bias": BIAS, "one": np.float32(1)}
    return save_graph(tmp_path / "m.onnx", nodes, constants, [2, 4, 3, 5])


def expected() -> np.ndarray:
    return np.asarray((X / FACTORS[1] + BIAS) * FACTORS[1] - 1)


def operand_ranks(model: Any) -> set[int]:
    """The ranks of what arithmetic on images reads."""
    return {
        len(source.get_partial_shape())
        for node in model.get_ordered_ops()
        if node.get_type_name() in ("Add", "Divide", "Multiply", "Subtract")
        for source in node.input_values()
    }


def test_every_operand_of_arithmetic_on_images_gets_their_rank(path: Path) -> None:
    model = openvino.Core().read_model(path)
    assert operand_ranks(model) == {0, 1, 3, 4}
    assert operand_ranks(rewrite(model, CpuForm(ranks="equal"))) == {4}
    assert operand_ranks(model) == {0, 1, 3, 4}, "the model itself is as it was"


def test_the_result_is_the_same_to_the_last_bit(path: Path) -> None:
    results = []
    for form in (CpuForm(), CpuForm(ranks="equal")):
        with OpenVinoRunner(path, form=form, num_threads=1) as runner:
            results.append(runner.infer({"x": X})["y"])
    np.testing.assert_array_equal(results[0], results[1])
    np.testing.assert_allclose(results[0], expected(), rtol=1e-6, atol=1e-6)


def test_nodes_keep_the_names_by_which_layers_are_found(path: Path) -> None:
    names = {
        node.get_friendly_name()
        for node in rewrite(openvino.Core().read_model(path), CpuForm(ranks="equal")).get_ops()
    }
    assert {"divide", "add", "multiply"} <= names
