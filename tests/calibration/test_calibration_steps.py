"""Calibrated at fewer steps than are sampled with: every timestep still has its group, and its scales."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import diffusers
import pytest

from accuquant._util.progress import Silent
from accuquant.calibration import CalibrationSettings, calibrate
from accuquant.denoising.process import DenoisingProcess
from accuquant.groups import StepGroups
from accuquant.networks.simulate import quantized_layers, simulate
from accuquant.pipelines.source import Source
from accuquant.recipe import Recipe

FEW = CalibrationSettings(
    steps=12,
    calibration_steps=3,
    group_size=4,
    num_trajectories=4,
    batch_size=2,
    iterations=1,
    shared_iterations=1,
    observer="minmax",
)


class Totals(Silent):
    """Keeps how many units every stage has."""

    def __init__(self) -> None:
        self.totals: dict[str, int] = {}

    def stage(self, name: str, total: int) -> None:
        self.totals[name] = total


@pytest.fixture(scope="module")
def calibrated(tiny_source: Source, tmp_path_factory: pytest.TempPathFactory) -> tuple[Recipe, Totals]:
    progress, output = Totals(), tmp_path_factory.mktemp("few") / "recipe"
    calibrate(tiny_source, FEW, output=output, progress=progress)
    return Recipe.load(output), progress


def test_the_recipe_records_the_steps_of_both_and_samples_with_all(
    calibrated: tuple[Recipe, Totals], tiny_source: Source
) -> None:
    recipe, progress = calibrated
    assert recipe.calibration["settings"]["steps"] == 12
    assert recipe.calibration["settings"]["calibration_steps"] == 3
    assert recipe.facts.settings.steps == 12  # what `sample` and `verify` take
    assert progress.totals["full-precision trajectories"] == 2 * 3
    sampled = DenoisingProcess(tiny_source.scheduler, 12).timesteps
    # 666, 333, 0 were simulated: the edges between them are 499.5 and 166.5
    assert recipe.groups.edges == (1000.0, 499.5, 166.5, 0.0)
    assert [len(members) for members in recipe.groups.steps_of(sampled)] == [5, 4, 3]


def test_every_sampled_timestep_runs_with_the_scales_of_its_range(
    calibrated: tuple[Recipe, Totals], tiny_source: Source
) -> None:
    recipe, _ = calibrated
    network = simulate(tiny_source.network, recipe)
    layer = next(iter(quantized_layers(network).values()))
    process = DenoisingProcess(tiny_source.scheduler, 12)
    for timestep in process.timesteps:
        layer.active.select(timestep)
        low, high = recipe.groups.edges[layer.active.index + 1], recipe.groups.edges[layer.active.index]
        assert low <= timestep < high
        assert (
            float(layer.current_scale())
            == recipe.layers[layer.qparams.name].activation_scale[layer.active.index]
        )


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("DDIMScheduler", {"timestep_spacing": "leading"}),
        ("DDIMScheduler", {"timestep_spacing": "trailing"}),
        ("DDIMScheduler", {"timestep_spacing": "linspace"}),
        ("DDPMScheduler", {}),
        ("EulerDiscreteScheduler", {}),
        ("HeunDiscreteScheduler", {}),
        ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}),
        ("UniPCMultistepScheduler", {}),
        ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}),
    ],
)
@pytest.mark.parametrize(("calibrated_with", "size"), [(1, 1), (8, 1), (16, 2)])
def test_groups_of_few_steps_hold_the_timesteps_of_many(
    name: str, options: dict[str, Any], calibrated_with: int, size: int
) -> None:
    def timesteps(steps: int) -> list[float]:
        return list(DenoisingProcess(getattr(diffusers, name)(**options), steps).timesteps)

    few = timesteps(calibrated_with)
    groups = StepGroups.from_timesteps(few, group_size=size, num_train_timesteps=1000)
    for steps in (20, 50):
        members = groups.steps_of(timesteps(steps))  # raises where a timestep has no group
        assert sum(map(len, members)) == len(timesteps(steps))
    assert all(groups.steps_of(few)), "a group that no trajectory went through has no scales"


def test_as_many_calibration_steps_as_steps_are_the_same_calibration(
    pointwise_source: Source, tmp_path: Path
) -> None:
    for name, count in (("all", 12), ("none", None)):
        settings = dataclasses.replace(FEW, calibration_steps=count)
        calibrate(pointwise_source, settings, output=tmp_path / name)
    assert (tmp_path / "all").read_bytes() == (tmp_path / "none").read_bytes()
