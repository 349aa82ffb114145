from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from accuquant.errors import VerificationError
from accuquant.groups import StepGroups
from accuquant.networks.signature import Signature, TensorSpec
from accuquant.qparams import LayerQParams, fingerprint
from accuquant.recipe import Recipe
from accuquant.verification.measure.parity import LayerParity, layer_parity

SCALES = np.array([0.05, 0.1], np.float32)
SIGNATURE = Signature(
    "Toy",
    TensorSpec("sample", ("batch", 2, "height", "width")),
    TensorSpec("timestep", (1,), "int64"),
    (),
    TensorSpec("out_sample", ("batch", 3, "height", "width")),
    {"batch": 1, "height": 4, "width": 4},
)


class Toy(nn.Module):
    """One 1x1 convolution that ignores the timestep; what is compared is its input."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 1, bias=False)
        with torch.no_grad():
            self.conv.weight.copy_(torch.arange(6).view(3, 2, 1, 1))

    def forward(self, sample: Tensor, timestep: Tensor, return_dict: bool = True) -> tuple[Tensor]:
        return (self.conv(sample),)


def recipe_of(network: Toy) -> Recipe:
    weight = network.conv.weight.detach().numpy()
    layer = LayerQParams(
        "conv", "conv2d", weight.shape, fingerprint(weight), np.ones(3, np.float32), SCALES, zero_point=3
    )
    return Recipe(StepGroups((1000, 500, 0)), {"conv": layer}, SIGNATURE, {}, "")


def write_graph(path: Path, *, scale: float, named: bool = True, padded: bool = False) -> Path:
    """Write [Pad ->] Q (zero-point 3) -> DQ -> Conv, as an exporter would for one step group."""
    pad = helper.make_node("Pad", ["sample", "amounts"], ["padded"])
    nodes = [
        *([pad] if padded else []),
        helper.make_node(
            "QuantizeLinear", ["padded" if padded else "sample", "scale", "zero_point"], ["levels"]
        ),
        helper.make_node("DequantizeLinear", ["levels", "scale", "zero_point"], ["x"]),
        helper.make_node("Conv", ["x", "weight"], ["out_sample"], name="any name"),
    ]
    if named:
        nodes[-1].metadata_props.add(key="accuquant.layer", value="conv")
    initializers = [
        numpy_helper.from_array(np.float32(scale), "scale"),
        numpy_helper.from_array(np.int8(3), "zero_point"),
        numpy_helper.from_array(np.array([0, 0, 1, 0, 0, 0, 2, 1]), "amounts"),
        numpy_helper.from_array(np.arange(6, dtype=np.float32).reshape(3, 2, 1, 1), "weight"),
    ]
    graph = helper.make_graph(
        nodes,
        "toy",
        [
            helper.make_tensor_value_info("sample", TensorProto.FLOAT, ["batch", 2, "height", "width"]),
            helper.make_tensor_value_info("timestep", TensorProto.INT64, [1]),
        ],
        [helper.make_tensor_value_info("out_sample", TensorProto.FLOAT, None)],
        initializers,
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path)
    return path


def sample() -> Tensor:
    return torch.randn(2, 2, 4, 4, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_an_equal_graph_has_equal_levels(tmp_path: Path, engine: str) -> None:
    network = Toy()
    path = write_graph(tmp_path / "model.onnx", scale=0.1)
    result = layer_parity(path, network, recipe_of(network), sample(), 100.0, engine=engine)
    assert result == (LayerParity("conv", 64, 0, 0),)


def test_a_border_in_the_graph_is_left_out(tmp_path: Path) -> None:
    network = Toy()
    path = write_graph(tmp_path / "model.onnx", scale=0.1, padded=True)
    result = layer_parity(path, network, recipe_of(network), sample(), 100.0)
    assert result == (LayerParity("conv", 64, 0, 0),)


def test_another_scale_is_found_and_counted(tmp_path: Path) -> None:
    network, x = Toy(), sample()
    path = write_graph(tmp_path / "model.onnx", scale=0.1)
    (result,) = layer_parity(path, network, recipe_of(network), x, 900.0)  # this group's scale is 0.05
    levels = [np.clip(np.rint(x.numpy() / np.float32(s)) + 3, -128, 127) for s in (0.1, 0.05)]
    difference = np.abs(levels[0] - levels[1])
    assert result.differing == (difference > 0).sum() > 0
    assert result.max_difference == difference.max()
    assert result.share == pytest.approx((difference > 0).mean())


def test_a_difference_is_not_counted_in_later_layers_again(tmp_path: Path) -> None:
    network, x = Toy(), sample()
    inputs: list[Tensor] = []
    network.conv.register_forward_hook(lambda _module, args, _output: inputs.append(args[0]))
    path = write_graph(tmp_path / "model.onnx", scale=0.1)
    layer_parity(path, network, recipe_of(network), x, 900.0)
    graph_levels = np.clip(np.rint(x.numpy() / np.float32(0.1)) + 3, -128, 127)
    np.testing.assert_allclose(inputs[0].numpy(), (graph_levels - 3) * np.float32(0.05), rtol=1e-6)


def test_the_graph_on_disk_is_left_as_it_was(tmp_path: Path) -> None:
    network = Toy()
    path = write_graph(tmp_path / "model.onnx", scale=0.1)
    before = path.read_bytes()
    assert layer_parity(path, network, recipe_of(network), sample(), 100.0), "it was run"
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["model.onnx"]


def test_a_graph_without_the_layer_is_refused(tmp_path: Path) -> None:
    network = Toy()
    path = write_graph(tmp_path / "model.onnx", scale=0.1, named=False)
    with pytest.raises(VerificationError, match=r"layer 'conv'.*\(1 of 1 missing\)"):
        layer_parity(path, network, recipe_of(network), sample(), 100.0)


def test_measurements_of_one_layer_add_up() -> None:
    merged = LayerParity("a", 100, 1, 1).merge(LayerParity("a", 300, 3, 2))
    assert merged == LayerParity("a", 400, 4, 2)
    assert merged.to_dict()["share"] == 0.01
