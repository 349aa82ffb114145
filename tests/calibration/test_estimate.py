"""What a calibration is said to take, against what it takes: a network that counts its calls."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, HeunDiscreteScheduler, PNDMScheduler
from pretend_device import pretend_device
from torch import nn

import accuquant
from accuquant._util.progress import Silent
from accuquant.calibration import CalibrationSettings, calibrate, trial
from accuquant.calibration.calls import Calls
from accuquant.calibration.estimate import Estimate, estimate
from accuquant.errors import UsageError
from accuquant.networks import room
from accuquant.pipelines.source import Source, load_source
from accuquant.pipelines.task import Task

#: Groups of two, two and one steps, batches of two, two and one trajectories.
SETTINGS = CalibrationSettings(
    probe=False,
    steps=5,
    group_size=2,
    num_trajectories=5,
    batch_size=2,
    iterations=3,
    shared_iterations=2,
    observer="minmax",
    activation_bits=6,
    learning_rate=0.02,
    sensitivity=True,
    exclude=("mid_block*",),
)


class Counting(Silent):
    """Counts the calls of a network in each stage that it is told of."""

    def __init__(self) -> None:
        self.name = ""
        self.forward: Counter[str] = Counter()
        self.backward: Counter[str] = Counter()
        self.units: Counter[str] = Counter()

    def stage(self, name: str, total: int) -> None:
        self.name = "step groups" if name.startswith("step group ") else name
        self.units[self.name] += total

    def calls(self) -> dict[str, Calls]:
        names = [*self.units]
        return {name: Calls(self.forward[name], self.backward[name]) for name in names}

    @contextmanager
    def of(self, network: nn.Module) -> Iterator[None]:
        """Count calls of `network`, and of copies of it, inside the block."""

        def count(_module: nn.Module, _args: Any) -> None:
            (self.backward if torch.is_grad_enabled() else self.forward)[self.name] += 1

        handle = network.register_forward_pre_hook(count)
        try:
            yield
        finally:
            handle.remove()


def counted(source: Source, settings: CalibrationSettings, folder: Path) -> Counting:
    """Calibrate, and count."""
    counting = Counting()
    with counting.of(source.network):
        # told to keep activations, it does not try a call to see whether they fit
        calibrate(source, settings, output=folder / "recipe.safetensors", checkpoint=False, progress=counting)
    return counting


@pytest.fixture(autouse=True)
def timed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "_REPEATS", 1)


def by_stage(found: Estimate) -> dict[str, Calls]:
    return {stage.name: stage.calls for stage in found.stages}


@pytest.fixture(scope="module")
def small(tiny_source: Source) -> Estimate:
    return estimate(tiny_source, SETTINGS)


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    "gradient", ["accuquant", "exact", *(pytest.param(g, marks=SLOW) for g in ("independent", "checkpoint"))]
)
def test_every_stage_calls_the_network_as_often_as_was_said(
    gradient: str, tiny_source: Source, tmp_path: Path
) -> None:
    settings = dataclasses.replace(SETTINGS, gradient=gradient)
    counting, found = counted(tiny_source, settings, tmp_path), estimate(tiny_source, settings)
    real, said = counting.calls(), by_stage(found)
    assert list(said) == list(real)
    assert {stage.name: stage.units for stage in found.stages} == dict(counting.units)
    # three judgements a group: none can end it early
    assert said == real
    assert found.calls == sum(real.values(), Calls())


def test_a_judge_may_end_a_group_early_and_no_group_takes_more(tiny_source: Source, tmp_path: Path) -> None:
    settings = dataclasses.replace(
        SETTINGS, iterations=16, shared_iterations=0, sensitivity=False, refine=False, learning_rate=1.0
    )
    real, said = (
        counted(tiny_source, settings, tmp_path).calls(),
        by_stage(estimate(tiny_source, settings)),
    )
    assert list(said) == list(real)
    assert "weight scales and biases" not in said
    assert real["step groups"].backward < said["step groups"].backward  # such steps help nobody
    assert real["step groups"].forward < said["step groups"].forward
    assert real["full-precision trajectories"] == said["full-precision trajectories"] == Calls(15, 0)


def test_without_learning_and_rounding_only_judges_remain(tiny_source: Source, tmp_path: Path) -> None:
    settings = dataclasses.replace(
        SETTINGS, iterations=0, shared_iterations=0, rounding="nearest", sensitivity=False
    )
    said = by_stage(estimate(tiny_source, settings))
    real = counted(tiny_source, settings, tmp_path).calls()
    del real["weight rounding"]  # announced, and empty
    assert said == real
    assert said["step groups"] == Calls(forward=5)


@pytest.mark.parametrize(
    "solver",
    [
        DPMSolverMultistepScheduler,
        *(pytest.param(s, marks=SLOW) for s in (HeunDiscreteScheduler, PNDMScheduler)),
    ],
)
def test_solvers_that_remember_and_that_call_twice_a_step_are_counted(
    solver: Any, tiny_source: Source, tmp_path: Path
) -> None:
    scheduler = solver.from_config(tiny_source.scheduler.config)
    source = dataclasses.replace(tiny_source, scheduler=scheduler, pipeline_class="DDPMPipeline")
    settings = dataclasses.replace(
        SETTINGS, rounding="nearest", sensitivity=False, iterations=1, shared_iterations=1
    )
    if solver is HeunDiscreteScheduler:  # its inputs are scaled, which this pipeline does not do
        source = dataclasses.replace(source, pipeline_class="AnotherPipeline")
    real = counted(source, settings, tmp_path).calls()
    del real["weight rounding"]
    assert by_stage(estimate(source, settings)) == real


def test_a_pipeline_with_prompts_prepares_them_first_and_few_of_them_are_named(
    tiny_text_pipeline: Callable[[str], Path], tmp_path: Path
) -> None:
    source, task = load_source(tiny_text_pipeline("sd")), Task(prompts=("a coat",), guidance_scale=3.0)
    settings = dataclasses.replace(
        SETTINGS, sensitivity=False, refine=False, iterations=0, shared_iterations=0
    )
    counting = Counting()
    with counting.of(source.network):
        calibrate(source, settings, output=tmp_path / "r.safetensors", task=task, progress=counting)
    found = estimate(source, settings, task=task)
    real, said = counting.calls(), by_stage(found)
    assert list(said) == list(real)
    del real["prompts and first latents"]  # the pipeline's own code calls a network that is spared
    assert {name: said[name] for name in real} == real
    first, *_ = found.stages
    assert (first.name, first.units, first.calls) == ("prompts and first latents", 3, Calls())
    assert first.seconds > 0
    (note,) = found.care
    assert note.startswith("Few distinct inputs will be seen")
    assert "attn2.to_k" in note


def test_nothing_is_written_and_the_network_is_as_it_was(
    tiny_source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    before = {name: tensor.clone() for name, tensor in tiny_source.network.state_dict().items()}
    estimate(tiny_source, SETTINGS)
    assert list(tmp_path.iterdir()) == []
    after = tiny_source.network.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)
    for module in tiny_source.network.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks


def test_a_probe_counts_and_may_spare_the_groups(tiny_source: Source, tmp_path: Path) -> None:
    quick = dataclasses.replace(SETTINGS, shared_iterations=0, sensitivity=False, refine=False)
    without = by_stage(estimate(tiny_source, quick))["step groups"]
    probed = dataclasses.replace(quick, probe=True, learning_rate=1e-8)  # such a rate has nothing to gain
    said = by_stage(estimate(tiny_source, probed))["step groups"]
    real = counted(tiny_source, probed, tmp_path).calls()["step groups"]
    both = 2 * probed.steps
    assert said.backward == without.backward + both
    assert real.backward == both


def test_it_names_what_stays_float_and_why(small: Estimate, tiny_source: Source, tmp_path: Path) -> None:
    quick = dataclasses.replace(SETTINGS, iterations=0, shared_iterations=0, refine=False, sensitivity=False)
    recipe = calibrate(tiny_source, quick, output=tmp_path / "recipe.safetensors")
    assert small.layers == len(recipe.layers)
    assert small.int8_share == recipe.calibration["int8_mac_share"]
    asked, default = small.left_in_float.values()
    assert next(iter(small.left_in_float)) == "excluded by --exclude"
    assert "mid_block.resnets.0.conv1" in asked
    assert {"conv_in", "conv_out"} <= set(default)
    assert sorted(asked + default) == sorted(recipe.calibration["float_layers"])


def test_it_is_json(small: Estimate) -> None:
    data = json.loads(json.dumps(small.to_dict()))
    assert data["fits"] is True
    assert data["calls"]["forward"] == sum(stage["calls"]["forward"] for stage in data["stages"])
    assert data["seconds"] == pytest.approx(sum(stage["seconds"] for stage in data["stages"]))
    assert data["room"]["gpu"] is False


def test_seconds_and_bytes_are_those_of_the_work(small: Estimate) -> None:
    stages = {stage.name: stage for stage in small.stages}
    for stage in small.stages:
        assert stage.seconds > 0
        assert stage.need.network > 0
    learning = stages["weight scales and biases"].need
    assert learning.network > stages["full-precision trajectories"].need.network  # a second network
    assert learning.batch > 0
    # of three batches, one: latents [3, 16, 16] of float32 before and after five steps, and random states
    images = 5 * 4 * 3 * 16 * 16 * 6
    assert images < 3 * (learning.recorded + 1) < images + 5 * 5 * 6000


def test_what_does_not_fit_is_named_with_the_batch_that_would(
    tiny_source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = dataclasses.replace(
        SETTINGS, batch_size=4, num_trajectories=4, refine=False, sensitivity=False, rounding="nearest"
    )
    roomy = estimate(tiny_source, settings)
    worst = max((stage.need for stage in roomy.stages), key=lambda need: need.total)
    free = worst.total - roomy.room.held - worst.batch // 4  # half of the batch is a fourth more than enough
    monkeypatch.setattr(room, "free_main_memory", lambda: free)
    found = estimate(tiny_source, settings)
    assert not found.fits
    fault, remedy = found.remedies
    assert fault.startswith("Stage '")
    assert remedy == "Give --batch-size 2."


def test_the_class_of_a_fault_is_that_of_calibrating(tiny_source: Source) -> None:
    with pytest.raises(UsageError, match="prompts"):
        estimate(tiny_source, SETTINGS, task=Task(prompts=("a coat",)))
    with pytest.raises(UsageError, match="a pattern that matches no layer"):
        estimate(tiny_source, dataclasses.replace(SETTINGS, exclude=("absent*",)))


def test_it_runs_where_the_network_is(tiny_source: Source) -> None:
    with pretend_device() as device:
        there = dataclasses.replace(tiny_source, network=copy.deepcopy(tiny_source.network)).to(device)
        found = accuquant.estimate(there, dataclasses.replace(SETTINGS, refine=False, sensitivity=False))
    here = estimate(tiny_source, dataclasses.replace(SETTINGS, refine=False, sensitivity=False))
    assert by_stage(found) == by_stage(here)
    assert found.device == str(device)
