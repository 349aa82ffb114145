"""Checkpoints by block: the same gradients from less memory."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_networks import NETWORKS, make_inputs, make_network
from torch import Tensor, nn

from accuquant.calibration import CalibrationSettings, block_checkpoints, calibrate
from accuquant.calibration.activations import ActivationSampler, initial_qparams
from accuquant.calibration.block_checkpoints import bytes_kept, checkpoint_blocks
from accuquant.calibration.output_correction import corrected
from accuquant.calibration.trajectory import record_trajectories
from accuquant.denoising.process import DenoisingProcess
from accuquant.groups import StepGroups
from accuquant.networks.network import call, quantizable_layers, signature_of
from accuquant.networks.simulate import quantize_network, quantized_layers
from accuquant.pipelines.source import Source


def simulated(network: nn.Module, inputs: tuple[Tensor, dict[str, Tensor]]) -> nn.Module:
    names = list(quantizable_layers(network))
    sampler = ActivationSampler(names, [1], 0)
    with sampler.watch(network), torch.no_grad():
        call(network, inputs[0], 500.0, inputs[1])
    seen = {name: groups for name, groups in sampler._kept.items() if groups[0]}
    sampler._kept = seen
    qparams = initial_qparams(network, sampler.samples(), weight_bits=4, activation_bits=4, observer="minmax")
    return quantize_network(network, qparams.values(), StepGroups((1000.0, 0.0)))


def gradients(network: nn.Module, inputs: tuple[Tensor, dict[str, Tensor]]) -> list[Tensor]:
    layers = quantized_layers(network)
    for layer in layers.values():
        layer.learning = True
    with corrected(layers) as corrections:
        parameters = [p for p in network.parameters() if p.requires_grad]
        parameters += [p for correction in corrections.values() for p in correction.parameters()]
        loss = call(network, inputs[0], 500.0, inputs[1]).square().mean()
        found = torch.autograd.grad(loss, parameters, allow_unused=True)
    return [loss.detach(), *(torch.zeros(1) if g is None else g for g in found)]


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_gradients_are_the_same_bit_for_bit_with_blocks_checkpointed(name: str) -> None:
    network = make_network(name).requires_grad_(False)
    inputs = make_inputs(signature_of(network))
    quantized = simulated(network, inputs)
    kept = gradients(quantized, inputs)
    assert sum(float(g.abs().sum()) > 0 for g in kept) > len(kept) / 2
    quantized.enable_gradient_checkpointing()  # type: ignore[operator]
    again = gradients(quantized, inputs)
    for one, other in zip(kept, again, strict=True):
        assert torch.equal(one, other)


def test_blocks_are_checkpointed_where_a_call_would_keep_half_of_the_free_memory(
    tiny_source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = DenoisingProcess(tiny_source.scheduler, 2)
    (batch,) = record_trajectories(
        tiny_source.network, process, (1, 8, 8), num_trajectories=2, batch_size=2, seed=0
    )
    sample = torch.zeros(1, 1, 8, 8)
    network = simulated(tiny_source.network, (sample, {}))
    kept = bytes_kept(network, process, batch)
    one_map = 8 * 8 * 4 * 8  # one feature map of 8 channels at least
    assert 2 * one_map < kept < 2**30
    monkeypatch.setattr(block_checkpoints, "free_memory", lambda device: 2 * kept + 2)
    assert not checkpoint_blocks(network, process, batch)
    assert not network.is_gradient_checkpointing
    monkeypatch.setattr(block_checkpoints, "free_memory", lambda device: None)
    assert not checkpoint_blocks(network, process, batch)
    monkeypatch.setattr(block_checkpoints, "free_memory", lambda device: 2 * kept - 2)
    assert checkpoint_blocks(network, process, batch)
    assert network.is_gradient_checkpointing
    assert bytes_kept(network, process, batch) < 0.7 * kept


def test_checkpointing_changes_no_byte_of_a_recipe(tiny_source: Source, tmp_path: Path) -> None:
    settings = CalibrationSettings(
        steps=4, group_size=2, num_trajectories=2, batch_size=1, iterations=1, shared_iterations=1,
        activation_bits=4, observer="minmax", refine=False, rounding="nearest",
    )  # fmt: skip
    for choice in (False, True):
        calibrate(tiny_source, settings, output=tmp_path / f"{choice}.safetensors", checkpoint=choice)
    assert (tmp_path / "True.safetensors").read_bytes() == (tmp_path / "False.safetensors").read_bytes()
