"""The graph corrects its own prediction, step by step, whatever its lowering and precision."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from accuquant.errors import ExportError
from accuquant.export import write_onnx
from accuquant.export.passes.correct_prediction import CorrectPredictionPass
from accuquant.groups import StepGroups
from accuquant.prediction_correction import PredictionCorrection

#: Four steps whose edges are none of the step groups' (500.5 and 100).
EDGES = (1000.0, 700.0, 400.0, 200.0, 0.0)


def correction_of(channels: int) -> PredictionCorrection:
    rng = np.random.default_rng(2)
    factor = rng.uniform(0.5, 1.0, (4, channels)).astype(np.float32)
    return PredictionCorrection(StepGroups(EDGES), factor, rng.normal(size=(4, channels)).astype(np.float32))


def written(network: Any, recipe: Any, lowering: Any, **options: Any) -> list[Path]:
    output = network.path.with_name("corrected.onnx")
    paths = write_onnx(network.path, recipe, output, lowering=lowering, **options)
    return [path for path in paths if path.suffix == ".onnx"]


@pytest.mark.parametrize("lowering", ["rescale", "per-group"])
@pytest.mark.parametrize("name", ["conv", "matmul"])
def test_the_graph_takes_off_the_bias_of_the_step_and_divides_by_its_share(
    one_layer: Any, recipe_of: Any, run_graph: Any, name: str, lowering: str
) -> None:
    network = one_layer(name)
    layer, correction = network.layer(), correction_of(6)
    paths = written(network, replace(recipe_of(layer), correction=correction), lowering)
    for timestep, group, step in ((999, 0, 0), (650, 0, 1), (300, 1, 2), (150, 1, 3), (3, 2, 3)):
        path = paths[group if lowering == "per-group" else 0]
        plain = network.expected(network.sample(), layer, timestep)
        shape = (1, 6, 1, 1) if name == "conv" else (1, 1, 6)
        wanted = (plain - correction.bias[step].reshape(shape)) * correction.factor[step].reshape(shape)
        found = run_graph(path, network.sample(), [timestep])
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=3e-5)


def test_half_precision_keeps_the_step_exact(one_layer: Any, recipe_of: Any, run_graph: Any) -> None:
    network = one_layer("conv")
    layer, correction = network.layer(), correction_of(6)
    recipe = replace(recipe_of(layer), correction=correction)
    (path,) = written(network, recipe, "rescale", precision="fp16")
    for timestep, step in ((700, 0), (699, 1)):
        plain = network.expected(network.sample(), layer, timestep)
        wanted = (plain - correction.bias[step][:, None, None]) * correction.factor[step][:, None, None]
        np.testing.assert_allclose(run_graph(path, network.sample(), [timestep]), wanted, atol=0.03)


def test_another_number_of_channels_is_refused() -> None:
    sample = ir.Value(name="sample", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([1, 4, 8, 8]))
    timestep = ir.Value(name="timestep", type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape([1]))
    node = ir.node("Tanh", [sample], name="tanh")
    node.outputs[0].name, node.outputs[0].shape = "out_sample", ir.Shape([1, 4, 8, 8])
    graph = ir.Graph([sample, timestep], [node.outputs[0]], nodes=[node], opset_imports={"": 20})
    with pytest.raises(ExportError, match=r"output 'out_sample': got 4 channels, expected 3, for which"):
        CorrectPredictionPass(correction_of(3))(ir.Model(graph, ir_version=10))
