"""Blocks are found, watched and reconstructed: levels by AdaRound, then scales."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from accuquant._util.progress import Silent
from accuquant.calibration import CalibrationSettings
from accuquant.calibration.methods.adaround import beta_at, first_alpha, soft_step, undecided
from accuquant.calibration.methods.blocks import Rows, block_names, in_order, rows_of
from accuquant.calibration.methods.calibration_set import Pick, evenly_spaced
from accuquant.calibration.methods.learnable_layer import LearnableLayer, make_learnable
from accuquant.calibration.methods.method import Run
from accuquant.calibration.methods.observed import batch_sizes, observe
from accuquant.calibration.methods.ranges import ranged
from accuquant.calibration.methods.reconstruction import few_of, learn_rounding, learn_scales, reconstruct
from accuquant.calibration.placement import place
from accuquant.calibration.trajectory import record_trajectories
from accuquant.denoising.process import DenoisingProcess
from accuquant.groups import StepGroups
from accuquant.networks.network import count_macs, float_weight, quantizable_layers
from accuquant.networks.simulate import QuantizedLayer, quantize_network
from accuquant.pipelines.source import Source
from accuquant.qparams import LayerQParams


@pytest.fixture(scope="module")
def run(tiny_source: Source) -> Run:
    """Two steps of four trajectories, W4A8, 16 iterations."""
    settings = CalibrationSettings.preset(
        "balanced", method="q-diffusion", steps=2, num_trajectories=4, batch_size=2, weight_bits=4,
        iterations=16, affine=False,
    )  # fmt: skip
    process = DenoisingProcess(tiny_source.scheduler, 2)
    batches = record_trajectories(
        tiny_source.network, process, (1, 8, 8), num_trajectories=4, batch_size=2, seed=0
    )
    groups = StepGroups.from_timesteps(process.timesteps, group_size=2, num_train_timesteps=1000)
    placement = place(tiny_source.network, count_macs(tiny_source.network, tiny_source.signature))
    return Run(tiny_source, settings, process, groups, placement, batches, Silent())


@pytest.fixture(scope="module")
def picks(run: Run) -> list[Pick]:
    return evenly_spaced(batch_sizes(run), 2, 2)


@pytest.fixture(scope="module")
def qparams(run: Run, picks: list[Pick]) -> dict[str, LayerQParams]:
    return ranged(run, observe(run, picks), "mse")


def test_soft_rounding_begins_where_it_is_told_and_ends_at_levels() -> None:
    rest = torch.tensor([0.0, 0.2, 0.5, 0.999])
    torch.testing.assert_close(soft_step(first_alpha(rest)), rest)
    assert soft_step(torch.tensor([-9.0, 9.0])).tolist() == [0, 1]
    assert float(undecided(torch.tensor([-9.0, 9.0]), 2.0)) == 0
    assert float(undecided(first_alpha(torch.tensor([0.5])), 2.0)) == pytest.approx(1)


def test_the_exponent_falls_from_20_to_2_after_the_warm_up() -> None:
    assert [beta_at(i, 100) for i in (0, 19)] == [None, None]
    assert beta_at(20, 100) == 20
    assert beta_at(60, 100) == 11
    assert beta_at(99, 100) == pytest.approx(2 + 18 / 80)


def test_a_layer_belongs_to_the_outermost_block_around_it(run: Run) -> None:
    layers = list(quantizable_layers(run.source.network))
    blocks = block_names(run.source.network, layers)
    resnet = "down_blocks.0.resnets.0"
    assert blocks[resnet] == (f"{resnet}.conv1", f"{resnet}.time_emb_proj", f"{resnet}.conv2")
    assert blocks["conv_in"] == ("conv_in",)
    attention = "down_blocks.0.attentions.0"
    assert blocks[attention] == tuple(f"{attention}.{x}" for x in ("to_q", "to_k", "to_v", "to_out.0"))
    assert sorted(name for names in blocks.values() for name in names) == sorted(layers)


def test_blocks_come_in_the_order_in_which_they_run(run: Run, picks: list[Pick]) -> None:
    blocks = list(block_names(run.source.network, run.placement.quantized))
    order = in_order(run, blocks, picks[0])
    assert sorted(order) == sorted(blocks)
    assert [name.split("_blocks")[0].split(".")[0] for name in order][:2] == ["down", "down"]
    assert order[-1].startswith("up_blocks.0.resnets.1")
    middle = next(k for k, name in enumerate(order) if name.startswith("mid_block"))
    assert all(name.startswith("up_blocks") for name in order[middle:] if not name.startswith("mid"))


def test_the_float_block_returns_its_targets(run: Run, picks: list[Pick]) -> None:
    name = "down_blocks.0.resnets.0"
    rows = rows_of(run, name, run.source.network, picks)
    assert len(rows) == 8
    with torch.no_grad():
        outputs, targets = rows.run(run.source.network.get_submodule(name), torch.tensor([7, 0, 3]))
    torch.testing.assert_close(outputs, targets)


def test_few_picks_are_spread_over_all() -> None:
    picks = [Pick(0, step, tuple(range(8))) for step in range(100)]
    few = few_of(picks, 64)
    assert [pick.step for pick in few] == [0, 14, 28, 42, 57, 71, 85, 99]
    assert few_of(picks[:3], 64) == picks[:3]


def linear_block(bits: int = 3) -> tuple[LearnableLayer, Tensor, np.ndarray]:
    """One linear layer whose inputs are strongly correlated, which is what nearest rounding ignores."""
    torch.manual_seed(0)
    layer = nn.Linear(16, 8, bias=False)
    common = torch.randn(512, 1)
    x = common + 0.1 * torch.randn(512, 16)
    weight = layer.weight.detach().numpy()
    scale = (np.abs(weight).max(1) / (2 ** (bits - 1) - 1)).astype(np.float32)
    qparams = LayerQParams(
        "layer", "linear", (8, 16), "", scale, np.array([0.05], np.float32), weight_bits=bits
    )
    from accuquant.networks.simulate import ActiveGroup

    quantized = QuantizedLayer(layer, qparams, ActiveGroup(StepGroups((1000.0, 0.0))))
    return LearnableLayer(quantized, layer), x, weight


def rows_for(layer: LearnableLayer, x: Tensor) -> Rows:
    from torch.utils import _pytree as pytree

    leaves, spec = pytree.tree_flatten(((x,), {}))
    return Rows(leaves, [True], spec, [x @ layer.float_weight.T])


def test_learned_rounding_beats_nearest_on_inputs_it_has_not_seen_and_moves_one_level_at_most() -> None:
    layer, x, weight = linear_block()
    rows = rows_for(layer, x[:256])
    before, after = learn_rounding(layer, [layer], rows, 300, seed=0)
    assert after < 0.3 * before
    levels = layer.quantized.levels.numpy().astype(int)
    ratio = weight / layer.quantized.qparams.weight_scale[:, None]
    assert np.abs(levels - np.clip(np.rint(ratio), -4, 3)).max() == 1
    assert ((levels == np.clip(np.floor(ratio), -4, 3)) | (levels == np.clip(np.ceil(ratio), -4, 3))).all()
    held_out, scale = x[256:].numpy(), layer.quantized.qparams.weight_scale[:, None]

    def error(chosen: np.ndarray) -> float:
        return float(np.square(held_out @ (chosen * scale - weight).T).mean())

    assert error(levels) < 0.3 * error(np.clip(np.rint(ratio), -4, 3))


def test_learned_scales_find_a_range_that_was_chosen_far_too_wide() -> None:
    layer, x, _ = linear_block(8)
    layer.weights, layer.inputs = "levels", True
    layer.quantized.set_scale(0, 0.2)
    rows = rows_for(layer, x)

    def error() -> float:
        with torch.no_grad():
            return float((layer(x) - rows.targets[0]).square().mean())

    before = error()
    learn_scales(layer, [layer], rows, 250, seed=0)
    assert error() < 0.5 * before
    assert layer.quantized.scale_of(0) < 0.14


def test_every_block_is_reconstructed(run: Run, picks: list[Pick], qparams: dict[str, LayerQParams]) -> None:
    found = reconstruct(run, qparams, picks, scales=True)
    before, after = (sum(pair[k] for pair in found.errors.values()) for k in (0, 1))
    assert after < before
    for name, layer in found.layers.items():
        assert layer.weight_levels is not None
        nearest = qparams[name].quantized_weight(float_weight(quantizable_layers(run.source.network)[name]))
        assert np.abs(layer.weight_levels.astype(int) - nearest).max() <= 1
        assert layer.weight_levels.min() >= -8
        assert math.isfinite(float(layer.activation_scale[0]))
    assert any(
        float(layer.activation_scale[0]) != float(qparams[name].activation_scale[0])
        for name, layer in found.layers.items()
    )


def test_without_iterations_levels_are_the_nearest(
    run: Run, picks: list[Pick], qparams: dict[str, LayerQParams]
) -> None:
    still = replace(run, settings=replace(run.settings, iterations=0))
    found = reconstruct(still, qparams, picks, scales=False)
    layers = quantizable_layers(run.source.network)
    for name, layer in found.layers.items():
        np.testing.assert_array_equal(
            layer.weight_levels, qparams[name].quantized_weight(float_weight(layers[name]))
        )
        np.testing.assert_array_equal(layer.activation_scale, qparams[name].activation_scale)


def test_a_learnable_network_computes_what_the_simulated_one_does(
    run: Run, qparams: dict[str, LayerQParams]
) -> None:
    x, t = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor(500)
    simulated = quantize_network(run.source.network, qparams.values(), run.groups)
    learnable = quantize_network(run.source.network, qparams.values(), run.groups)
    layers: dict[str, Any] = make_learnable(learnable, run.source.network)
    with torch.no_grad():
        torch.testing.assert_close(learnable(x, t).sample, run.source.network(x, t).sample)
        for layer in layers.values():
            layer.weights, layer.inputs = "levels", True
        torch.testing.assert_close(learnable(x, t).sample, simulated(x, t).sample)
