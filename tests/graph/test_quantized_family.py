import re
from pathlib import Path

import pytest
from foreign_graphs import save, tiny_network
from onnx import helper

from accuquant.errors import SourceError
from accuquant.export import check_model
from accuquant.graph.quantized_family import pairs_in, quantized_family
from accuquant.observation.observe_onnx import observe_onnx


@pytest.mark.parametrize(
    ("operators", "words"),
    [
        (["DynamicQuantizeLinear", "MatMulInteger", "Mul"], "1 DynamicQuantizeLinear, 1 MatMulInteger"),
        (["QLinearConv", "QLinearConv", "QuantizeLinear"], r"QOperator format \(2 QLinearConv\)"),
        (["MatMulNBits"], "in its weights alone"),
    ],
)
def test_operators_tell_how_a_graph_was_quantized(operators: list[str], words: str) -> None:
    found = quantized_family(operators)
    assert found is not None
    assert re.search(words, found)


def test_a_float_graph_and_pairs_are_no_family() -> None:
    assert quantized_family(["Conv", "MatMul"]) is None
    assert quantized_family(["QuantizeLinear", "DequantizeLinear", "Conv"]) is None
    assert pairs_in(["QuantizeLinear", "DequantizeLinear", "Conv"]) == 2


def dynamic(path: Path) -> Path:
    middle = [
        helper.make_node("DynamicQuantizeLinear", ["h"], ["q", "s", "z"], "dynamic"),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["r"], "back"),
    ]
    return save(tiny_network(middle), path)


def test_check_and_export_name_the_same_operators_and_the_same_remedy(tmp_path: Path) -> None:
    path = dynamic(tmp_path / "m.onnx")
    (violation,) = check_model(path)
    assert "1 DynamicQuantizeLinear" in violation.message
    assert violation.remedy == "Give the float file that it was made from to `accuquant export`"
    with pytest.raises(SourceError, match=r"1 DynamicQuantizeLinear.*Give the float file that it"):
        observe_onnx(path)


def test_a_qoperator_file_takes_one_line(tmp_path: Path) -> None:
    model, domain = tiny_network(), "com.microsoft"
    for number in range(40):
        model.graph.node.append(
            helper.make_node(
                "QLinearSigmoid", ["h", "one", "", "one"], [f"o{number}"], domain="com.microsoft"
            )
        )
    model.opset_import.append(helper.make_opsetid(domain, 1))
    (violation,) = check_model(save(model, tmp_path / "m.onnx"))
    assert "40 QLinearSigmoid" in violation.message
