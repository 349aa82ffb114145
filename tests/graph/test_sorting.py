import onnx
import pytest
from onnx import TensorProto, helper

from accuquant.graph.sorting import sort_nodes


def model_of(*nodes: onnx.NodeProto) -> onnx.ModelProto:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])
    return helper.make_model(
        helper.make_graph(list(nodes), "g", [x], [y]), opset_imports=[helper.make_opsetid("", 21)]
    )


def names(model: onnx.ModelProto) -> list[str]:
    return [node.name for node in model.graph.node]


FIRST = helper.make_node("Abs", ["x"], ["a"], "first")
SECOND = helper.make_node("Neg", ["a"], ["b"], "second")
THIRD = helper.make_node("Add", ["a", "b"], ["y"], "third")


@pytest.mark.parametrize("order", [(THIRD, SECOND, FIRST), (SECOND, FIRST, THIRD), (THIRD, FIRST, SECOND)])
def test_nodes_come_after_what_they_read(order: tuple[onnx.NodeProto, ...]) -> None:
    model = model_of(*order)
    sort_nodes(model)
    assert names(model) == ["first", "second", "third"]
    onnx.checker.check_model(model)
    assert {node.name: node for node in model.graph.node} == {node.name: node for node in order}


def test_nodes_that_are_in_order_keep_it() -> None:
    other = helper.make_node("Exp", ["x"], ["c"], "other")
    model = model_of(FIRST, other, SECOND, THIRD)
    sort_nodes(model)
    assert names(model) == ["first", "other", "second", "third"]


def test_what_a_body_reads_from_around_it_counts() -> None:
    scalar = helper.make_tensor_value_info("z", TensorProto.FLOAT, [1])
    body = helper.make_graph([helper.make_node("Exp", ["a"], ["z"])], "body", [], [scalar])
    condition = helper.make_node("Cast", ["x"], ["k"], "cast", to=TensorProto.BOOL)
    branch = helper.make_node("If", ["k"], ["y"], "branch", then_branch=body, else_branch=body)
    model = model_of(condition, branch, FIRST)
    sort_nodes(model)
    assert names(model).index("first") < names(model).index("branch")
    onnx.checker.check_model(model)


def test_nodes_that_wait_for_each_other_are_refused() -> None:
    model = model_of(helper.make_node("Add", ["x", "b"], ["a"]), helper.make_node("Neg", ["a"], ["b"]), THIRD)
    with pytest.raises(ValueError, match="cycle"):
        sort_nodes(model)


def test_a_tensor_that_two_nodes_write_is_refused() -> None:
    again = helper.make_node("Exp", ["x"], ["a"], "again")
    with pytest.raises(ValueError, match="nodes that cannot be sorted"):
        sort_nodes(model_of(SECOND, FIRST, again, THIRD))
