"""Every supported network: traced, quantized, checked, and run in ONNX Runtime against the simulation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from onnx.reference import ReferenceEvaluator
from tiny_networks import NETWORKS, make_inputs, make_network
from torch import Tensor, nn

from accuquant.calibration.activations import ActivationSampler, initial_qparams
from accuquant.calibration.placement import place
from accuquant.export import check_model, write_onnx
from accuquant.export.read.trace import trace
from accuquant.groups import StepGroups
from accuquant.networks.architectures import SUPPORTED
from accuquant.networks.network import call, count_macs, model_hash, signature_of
from accuquant.networks.simulate import simulate
from accuquant.recipe import Recipe
from accuquant.runtime.open_runner import open_runner

#: Traced in every run of the tests; UNets are in test_unet.py and others.
FAST = ("dit",)
CASES = [pytest.param(name, marks=[] if name in FAST else [pytest.mark.slow]) for name in NETWORKS]
GROUPS = StepGroups((1000.0, 500.0, 0.0))
TIMESTEPS = (712.5, 20.25)


def test_every_supported_class_is_tested() -> None:
    of_one_step = {"DecoderNetwork", "FeedForwardNetwork"}  # test_one_step.py
    assert {kind for kind, _ in NETWORKS.values()} | of_one_step == set(SUPPORTED)


@pytest.mark.parametrize("name", CASES)
def test_the_engine_computes_what_the_simulation_does(name: str, tmp_path: Path) -> None:
    network = make_network(name)
    signature = signature_of(network)
    recipe = observed_recipe(network)
    sample, conditioning = make_inputs(signature, seed=1)
    path = tmp_path / "float.onnx"
    ir.save(trace(network, signature), path)
    for timestep in TIMESTEPS:
        expected = predict(network, sample, timestep, conditioning)
        result = run(path, signature, sample, timestep, conditioning)
        np.testing.assert_allclose(result, expected, rtol=1e-3, atol=1e-4)

    (quantized,) = write_onnx(path, recipe, tmp_path / "int8.onnx")
    onnx.checker.check_model(quantized, full_check=True)
    assert check_model(quantized) == []
    simulated = simulate(network, recipe)
    for timestep in TIMESTEPS:
        expected = predict(simulated, sample, timestep, conditioning)
        result = run(quantized, signature, sample, timestep, conditioning)
        lost = relative_error(expected, predict(network, sample, timestep, conditioning))
        # a level that falls the other way changes all behind it; far less than quantization itself
        assert relative_error(result, expected) < max(1e-3, lost / 4)
        assert lost > 1e-3
    groups = [run(quantized, signature, sample, t, conditioning) for t in (501.0, 499.0)]
    assert relative_error(groups[0], predict(simulated, sample, 501.0, conditioning)) < 0.02
    assert relative_error(groups[1], predict(simulated, sample, 499.0, conditioning)) < 0.02

    (half,) = write_onnx(path, recipe, tmp_path / "bf16.onnx", precision="bf16")
    onnx.checker.check_model(half, full_check=True)
    assert check_model(half) == []
    sure = predict(network, sample, TIMESTEPS[1], conditioning)
    lost = relative_error(predict(simulated, sample, TIMESTEPS[1], conditioning), sure)
    feeds = inputs_of(signature, sample, TIMESTEPS[1], conditioning)
    with open_runner(half, "openvino", num_threads=1) as runner:
        assert relative_error(runner.infer(feeds)[signature.output.name], sure) < 1.5 * lost + 0.01
    (exact,) = ReferenceEvaluator(onnx.load(half)).run(None, feeds)
    assert relative_error(exact, sure) < 1.5 * lost + 0.01


def observed_recipe(network: nn.Module) -> Recipe:
    """Min-max scales of two step groups whose ranges differ, from one call each."""
    signature = signature_of(network)
    sample, conditioning = make_inputs(signature)
    names = place(network, count_macs(network, signature)).quantized
    sampler = ActivationSampler(names, [1, 1], 0)
    with sampler.watch(network), torch.no_grad():
        for group, timestep in enumerate(TIMESTEPS):
            sampler.group = group
            call(network, sample * (1 + group), timestep, conditioning)
    # OpenVINO sums products of 8-bit weights exactly only on processors with VNNI
    layers = initial_qparams(
        network, sampler.samples(), weight_bits=7, activation_bits=8, observer="minmax", affine=True
    )
    return Recipe(GROUPS, layers, signature, {}, model_hash(network))


@torch.no_grad()
def predict(network: nn.Module, sample: Tensor, timestep: float, conditioning: dict[str, Tensor]) -> Any:
    return call(network, sample, torch.tensor(timestep), conditioning).numpy()


def run(
    path: Path, signature: Any, sample: Tensor, timestep: float, conditioning: dict[str, Tensor]
) -> np.ndarray[Any, Any]:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    assert [value.name for value in session.get_inputs()] == [spec.name for spec in signature.inputs]
    feeds = inputs_of(signature, sample, timestep, conditioning)
    (result,) = session.run([signature.output.name], feeds)
    return np.asarray(result)


def inputs_of(
    signature: Any, sample: Tensor, timestep: float, conditioning: dict[str, Tensor]
) -> dict[str, np.ndarray[Any, Any]]:
    feeds = {name: tensor.numpy() for name, tensor in conditioning.items()}
    feeds[signature.sample.name] = sample.numpy()
    feeds["timestep"] = np.array([timestep / signature.timestep_divisor], np.float32)
    return feeds


def relative_error(result: Any, expected: Any) -> float:
    return float(np.linalg.norm(result - expected) / np.linalg.norm(expected))
