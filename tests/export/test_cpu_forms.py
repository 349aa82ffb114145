"""Every kind of layer computes the same in every form that the OpenVINO runner gives an export."""

from pathlib import Path
from typing import Any

import numpy as np
import openvino
import pytest

from accuquant.runtime.cpu_forms.form import CpuForm
from accuquant.runtime.cpu_forms.pointwise_products import find_paired_products
from accuquant.runtime.cpu_forms.rewrite import rewrite
from accuquant.runtime.cpu_forms.shifted_input import find_shifted_inputs
from accuquant.runtime.openvino_runner import OpenVinoRunner

REWRITTEN = [
    "conv",
    "strided",
    "dilated",
    "pointwise",
    "biasless",
    "gemm",
    "gemm-in-out",
    "matmul",
    "matmul-biasless",
]
LEFT_ALONE = ["same", "grouped", "transposed"]
FORMS = ["inside", "bordered"]
TIMESTEPS = (999, 400, 3)


def run_in(path: Path, form: CpuForm, sample: np.ndarray, timestep: int) -> np.ndarray:
    with OpenVinoRunner(path, form=form, num_threads=1) as runner:
        feeds = {"sample": sample, "timestep": np.array([timestep], np.int64)}
        return runner.infer({s.name: feeds[s.name] for s in runner.input_specs})["out_sample"]


@pytest.mark.parametrize("name", [*REWRITTEN, *LEFT_ALONE])
def test_every_form_follows_the_recipe(one_layer: Any, name: str) -> None:
    network = one_layer(name)
    # 7 bits: without VNNI the sums of 8-bit weights saturate
    layer = network.layer(zero_point=-100, weight_bits=7)
    sample = network.sample()
    for form in FORMS:
        for lowering in ("rescale", "per-group"):
            paths = network.lower(layer, lowering)
            for number, timestep in enumerate(TIMESTEPS[: 3 if form == "inside" else 1]):
                result = run_in(paths[number % len(paths)], CpuForm(form), sample, timestep)  # type: ignore[arg-type]
                expected = network.expected(sample, layer, timestep)
                np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("zero_points", ["written", "inside"])
@pytest.mark.parametrize("name", ["matmul", "matmul-biasless"])
def test_a_product_of_rows_runs_as_a_convolution_of_int8_and_follows_the_recipe(
    one_layer: Any, name: str, zero_points: Any
) -> None:
    network = one_layer(name)
    form = CpuForm(zero_points, products="convolutions")
    for zero_point in (-100, 0):
        layer = network.layer(zero_point=zero_point, weight_bits=7)
        (path,) = network.lower(layer)
        for timestep in TIMESTEPS:
            result = run_in(path, form, network.sample(), timestep)
            expected = network.expected(network.sample(), layer, timestep)
            np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-4)
    with OpenVinoRunner(path, form=form, num_threads=1) as runner:
        runner.infer({"sample": network.sample(), "timestep": np.array([3], np.int64)})
        assert isinstance(runner, OpenVinoRunner)
        assert "MatMul" not in {node.kind for node in runner.executed()}
        assert runner.int8_use is not None
        assert (runner.int8_use.share, runner.int8_use.unknown) == (1, ()), "the layer is found by its name"


@pytest.mark.parametrize("name", ["gemm", "conv", "pointwise"])
def test_only_products_of_rows_become_convolutions(one_layer: Any, name: str) -> None:
    network = one_layer(name)
    model = openvino.Core().read_model(network.lower(network.layer(zero_point=-100))[0])
    model.reshape({0: network.case.input_shape, 1: [1]})
    assert find_paired_products(model) == []


@pytest.mark.parametrize("lowering", ["rescale", "per-group"])
@pytest.mark.parametrize("name", [*REWRITTEN, *LEFT_ALONE])
def test_inside_there_is_neither_shift_nor_padding_before_the_pair(
    one_layer: Any, name: str, lowering: Any
) -> None:
    network = one_layer(name)
    model = openvino.Core().read_model(network.lower(network.layer(zero_point=-100), lowering)[0])
    shapes = {0: network.case.input_shape, 1: [1]}
    model.reshape({index: shapes[index] for index in range(len(model.inputs))})
    moved = rewrite(model, CpuForm("inside"))
    (quantize,) = [node for node in moved.get_ops() if node.get_type_name() == "FakeQuantize"]
    before = quantize.input_value(0).get_node().get_type_name()
    left = name in LEFT_ALONE
    assert (before in ("Add", "Pad")) == left
    assert len(find_shifted_inputs(model)) == (not left), "the model itself is as it was"


def test_a_convolution_that_pads_by_itself_needs_no_padded_image(one_layer: Any) -> None:
    network = one_layer("conv")
    model = openvino.Core().read_model(network.lower(network.layer(zero_point=-100))[0])
    model.reshape({0: network.case.input_shape, 1: [1]})
    assert "Pad" in {node.get_type_name() for node in model.get_ops()}
    moved = rewrite(model, CpuForm("bordered"))
    assert "Pad" not in {node.get_type_name() for node in moved.get_ordered_ops()}
    (convolution,) = [node for node in moved.get_ops() if node.get_type_name() == "Convolution"]
    assert convolution.get_attributes()["pads_begin"] == [1, 1]


def test_symmetric_layers_and_narrow_ones_stay_as_written(one_layer: Any) -> None:
    network = one_layer("conv")
    for layer in (network.layer(), network.layer(activation_bits=6, zero_point=-5)):
        model = openvino.Core().read_model(network.lower(layer)[0])
        model.reshape({0: network.case.input_shape, 1: [1]})
        assert find_shifted_inputs(model) == []
