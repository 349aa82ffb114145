"""Rounding that is learned block by block: where it begins, what weighs, and who judges."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from torch import nn
from torch.utils import _pytree as pytree

from accuquant._util.progress import Silent
from accuquant.calibration import CalibrationSettings, calibrate
from accuquant.calibration.block_rounding import learn_levels, reach, relative
from accuquant.calibration.estimate import estimate
from accuquant.calibration.methods.adaround import between
from accuquant.calibration.methods.blocks import Rows
from accuquant.calibration.methods.calibration_set import Pick
from accuquant.calibration.methods.learnable_layer import LearnableLayer
from accuquant.calibration.methods.method import Run
from accuquant.calibration.methods.reconstruction import Learnt, learn_rounding
from accuquant.calibration.placement import place
from accuquant.calibration.trajectory import record_trajectories
from accuquant.denoising.process import DenoisingProcess
from accuquant.errors import UsageError
from accuquant.groups import StepGroups
from accuquant.networks.network import count_macs, float_weight
from accuquant.networks.simulate import ActiveGroup, QuantizedLayer, simulate
from accuquant.pipelines.source import Source
from accuquant.qparams import LayerQParams
from accuquant.recipe import GroupResult, Recipe

LEARNED = CalibrationSettings(
    steps=2, group_size=2, num_trajectories=6, batch_size=2, weight_bits=3, iterations=0,
    shared_iterations=0, observer="minmax", refine=False, affine=False, rounding="adaround",
)  # fmt: skip

LEARNT = Learnt(100, 0.5, lambda _name, picks: torch.ones(len(picks)))


@pytest.fixture(scope="module")
def run(tiny_source: Source) -> Run:
    process = DenoisingProcess(tiny_source.scheduler, 2)
    batches = record_trajectories(
        tiny_source.network, process, (1, 8, 8), num_trajectories=6, batch_size=2, seed=0
    )
    groups = StepGroups.from_timesteps(process.timesteps, group_size=2, num_train_timesteps=1000)
    placement = place(tiny_source.network, count_macs(tiny_source.network, tiny_source.signature))
    return Run(tiny_source, LEARNED, process, groups, placement, batches, Silent())


@pytest.fixture(scope="module")
def first(tiny_source: Source, tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    """Round-to-nearest's recipe."""
    path = tmp_path_factory.mktemp("rounding") / "recipe.safetensors"
    return calibrate(tiny_source, replace(LEARNED, rounding="nearest"), output=path)


def test_a_weight_chooses_between_its_level_and_the_neighbour_towards_it() -> None:
    ratio = torch.tensor([1.3, 1.3, 0.2, 9.0, -9.0, 2.0])
    levels = torch.tensor([1.0, 2.0, 3.0, 7.0, -8.0, 2.0])
    below, rest = between(ratio, levels, (-8, 7), 0.5)
    assert below.tolist() == [1, 1, 2, 6, -8, 2]
    torch.testing.assert_close(
        rest, torch.tensor([0.15, 0.65, 0.5, 0.999, 0.001, 0.001]), rtol=1e-3, atol=1e-3
    )
    chosen = below + (between(ratio, levels, (-8, 7), 0.5)[1] >= 0.5)
    assert chosen.tolist() == levels.tolist(), "with nothing learned, every weight keeps its level"


def test_an_error_of_the_last_layer_reaches_the_latents_by_ddims_own_coefficient(run: Run) -> None:
    scheduler = DDIMScheduler.from_config(run.source.scheduler.config, clip_sample=False)
    run = replace(run, process=DenoisingProcess(scheduler, 2))
    alphas = scheduler.alphas_cumprod.double()
    step, (now, later) = 0, (int(t) for t in run.process.timesteps)
    a, b = alphas[now], alphas[later]
    coefficient = (1 - b).sqrt() - (1 - a).sqrt() * (b / a).sqrt()
    found = reach(run, "conv_out", Pick(0, step, (0, 1)), seed=0)
    torch.testing.assert_close(found.double(), (coefficient**2).expand(2), rtol=1e-4, atol=0)


def test_weights_of_rows_have_a_mean_of_one() -> None:
    torch.testing.assert_close(
        relative([torch.tensor([1.0, 3.0]), torch.tensor([0.0])]), torch.tensor([0.75, 2.25, 0])
    )
    assert relative([torch.zeros(2)]).tolist() == [1, 1]


def test_rows_that_weigh_nothing_are_not_learned_from() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(16, 8, bias=False)
    weight = layer.weight.detach()
    scale = (weight.abs().amax(1) / 3).numpy()
    qparams = LayerQParams("layer", "linear", (8, 16), "", scale, np.array([0.05], np.float32), weight_bits=3)
    x = torch.randn(64, 1) + 0.1 * torch.randn(64, 16)
    leaves, spec = pytree.tree_flatten(((x,), {}))
    weights = (torch.arange(64) < 32).float() * 2

    def learned(noise: float) -> tuple[np.ndarray, float]:
        targets = x @ weight.T
        targets[32:] += noise
        quantized = QuantizedLayer(layer, qparams, ActiveGroup(StepGroups((1000.0, 0.0))))
        first = quantized.levels.numpy() * scale[:, None]
        rows = Rows(leaves, [True], spec, [targets])
        learnable = LearnableLayer(quantized, layer)
        before, after = learn_rounding(learnable, [learnable], rows, 300, 0, learnt=LEARNT, weights=weights)
        error = np.square(x.numpy()[:32] @ (first - weight.numpy()).T).mean()
        assert before == pytest.approx(error, rel=1e-4)
        return quantized.levels.numpy(), after / before

    levels, share = learned(0)
    assert share < 0.9
    np.testing.assert_array_equal(learned(100)[0], levels)


@pytest.mark.slow
def test_learned_levels_end_nearer_and_are_the_first_or_their_neighbours(run: Run, first: Recipe) -> None:
    learned, result = learn_levels(run, first, run.batches, iterations=100)
    assert result.status == "learned"
    assert result.final_loss < result.initial_loss
    moved = 0
    for name, layer in learned.layers.items():
        before = first.layers[name]
        weight = float_weight(run.source.network.get_submodule(name))
        difference = layer.quantized_weight(weight).astype(int) - before.quantized_weight(weight)
        assert np.abs(difference).max() <= 1
        moved += np.count_nonzero(difference)
        np.testing.assert_array_equal(layer.weight_scale, before.weight_scale)
    assert moved > 0

    def end_errors(recipe: Recipe) -> np.ndarray:
        network, found = simulate(run.source.network, recipe), []
        for batch in run.batches:
            generators = run.process.restore_state(batch.state_before(0))
            with torch.no_grad():
                end = run.process.sample(batch.bind(network), batch.latents_before(0), generators)
            found += (end - batch.latents_before(2)).square().flatten(1).mean(1).tolist()
        return np.array(found)

    after, start = end_errors(learned), end_errors(first)
    assert np.log(after / start).mean() < 0
    assert np.sort(start)[len(start) // 2 - 1] == pytest.approx(result.initial_loss, rel=1e-4)


def test_what_held_out_trajectories_do_not_confirm_is_rolled_back(run: Run, first: Recipe) -> None:
    same, result = learn_levels(run, first, run.batches[-1:], iterations=0)
    assert same is first
    assert result.status == "rolled_back"
    assert "no moment was better" in result.note


def test_a_dry_run_says_that_it_does_not_time_learned_rounding(tiny_source: Source) -> None:
    with pytest.raises(UsageError, match="--rounding adaround, whose learning is not timed"):
        estimate(tiny_source, LEARNED)


def test_an_interrupted_calibration_does_not_learn_its_levels_again(
    tiny_source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calibrating, learned = sys.modules[calibrate.__module__], []

    def learn(_run: Run, recipe: Recipe, _held_out: object) -> tuple[Recipe, GroupResult]:
        learned.append(recipe)
        return recipe, GroupResult(2.0, 1.0)

    def stop(*_args: object, **_words: object) -> None:
        raise KeyboardInterrupt

    output = tmp_path / "recipe.safetensors"
    monkeypatch.setattr(calibrating, "learn_levels", learn)
    with monkeypatch.context() as patch:
        patch.setattr(calibrating, "learn_groups", stop)
        with pytest.raises(KeyboardInterrupt):
            calibrate(tiny_source, LEARNED, output=output)
    resumed = calibrate(tiny_source, LEARNED, output=output)
    assert len(learned) == 1
    assert resumed.calibration["learned_rounding"]["final_loss"] == 1
