"""NaN and infinity are refused with the place where they arise, or left out where they are few."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler
from torch import Tensor, nn

from accuquant.calibration import CalibrationSettings, calibrate
from accuquant.calibration.descent import HeldOutJudge, LearningSettings
from accuquant.calibration.learning import learn_group
from accuquant.calibration.shared_learning import learn_shared
from accuquant.calibration.trajectory import TrajectoryBatch
from accuquant.denoising.process import DenoisingProcess
from accuquant.errors import CalibrationError
from accuquant.groups import StepGroups
from accuquant.networks.simulate import quantize_network
from accuquant.pipelines.source import Source
from accuquant.qparams import LayerQParams
from accuquant.recipe import Recipe
from accuquant.scales.observer import OBSERVERS, choose_zero_point

QUICK = CalibrationSettings(
    steps=4, group_size=2, num_trajectories=4, batch_size=1, iterations=2, shared_iterations=2
)
NAN, INF = math.nan, math.inf


class Overflowing(nn.Module):
    """A UNet whose calls give NaN inside from one timestep on; all else is the UNet's own."""

    def __init__(self, unet: nn.Module, layer: str, below: float) -> None:
        super().__init__()
        self.unet, self.below, self.timestep = unet, below, 0.0
        unet.get_submodule(layer).register_forward_hook(self._spoil)

    def _spoil(self, _layer: nn.Module, _inputs: Any, output: Tensor) -> Tensor | None:
        return output * NAN if self.timestep < self.below else None


@pytest.fixture
def spoiled(tiny_source: Source, make_unet: Callable[..., nn.Module]) -> Source:
    """Return the tiny source with a network whose first convolution gives NaN below timestep 500."""
    unet = make_unet()
    watch = Overflowing(unet, "conv_in", 500)

    def note_timestep(_unet: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        watch.timestep = float(kwargs.get("timestep", args[1] if len(args) > 1 else 0))

    unet.register_forward_pre_hook(note_timestep, with_kwargs=True)
    return replace(tiny_source, network=unet.requires_grad_(False))


@pytest.mark.parametrize("observer", OBSERVERS)
def test_an_activation_that_is_nan_names_layer_and_step_whatever_the_observer(
    spoiled: Source, tmp_path: Path, observer: str
) -> None:
    output = tmp_path / "recipe.safetensors"
    output.write_bytes(b"an earlier recipe")
    with pytest.raises(
        CalibrationError,
        match=r"layer '[\w.]+', step 3 of 4 \(timestep 250\): got NaN or infinity among its inputs",
    ):
        calibrate(spoiled, replace(QUICK, observer=observer), output=output)
    assert output.read_bytes() == b"an earlier recipe"


def test_latents_that_are_nan_name_the_step(
    pointwise: nn.Module, process: DenoisingProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    from accuquant.calibration.trajectory import record_trajectories

    step = process.step
    monkeypatch.setattr(
        process, "step", lambda net, x, index, gens=(): step(net, x, index, gens) * (NAN if index == 2 else 1)
    )
    with pytest.raises(CalibrationError, match=r"step 3 of 6 \(timestep \d+\): got NaN .* 2 of 2 latents"):
        record_trajectories(pointwise, process, (1, 4, 4), num_trajectories=2, batch_size=2, seed=0)


def spoil_target(batch: TrajectoryBatch, rows: list[int]) -> TrajectoryBatch:
    """Return a batch whose quantized ends have no finite distance to some of its targets."""
    latents = batch.latents.clone()
    latents[-1, rows] = INF
    return replace(batch, latents=latents)


@pytest.fixture
def recipe(
    groups: StepGroups, pointwise_qparams: Callable[..., LayerQParams], pointwise_source: Source
) -> Recipe:
    return Recipe(
        groups, {"conv": pointwise_qparams((2.0, 0.2))}, pointwise_source.signature, {}, "0" * 64, {}
    )


def test_one_diverging_held_out_trajectory_does_not_judge(
    pointwise: nn.Module, process: DenoisingProcess, recipe: Recipe, batches: list[TrajectoryBatch]
) -> None:
    settings = LearningSettings(iterations=4, learning_rate=0.01)
    held_out = [spoil_target(batches[3], [1])]
    _, result = learn_shared(pointwise, process, recipe, batches[:3], held_out, settings, seed=0)
    _, whole = learn_shared(pointwise, process, recipe, batches[:3], batches[3:], settings, seed=0)
    assert "1 of 3 held-out trajectories diverge and do not judge" in result.note
    assert math.isfinite(result.initial_loss)
    assert math.isfinite(result.final_loss)
    assert result.initial_loss == pytest.approx(whole.initial_loss, rel=2)
    json.dumps(vars(result), allow_nan=False)


def test_a_group_of_which_every_held_out_trajectory_diverges_is_refused(
    pointwise: nn.Module, process: DenoisingProcess, recipe: Recipe, batches: list[TrajectoryBatch]
) -> None:
    settings = LearningSettings(iterations=2)
    held_out = [spoil_target(batches[3], [0, 1, 2])]
    expected = r"held-out trajectories \(3\): got NaN or infinity at the end of every one"
    with pytest.raises(CalibrationError, match=expected):
        learn_shared(pointwise, process, recipe, batches[:3], held_out, settings, seed=0)
    network = quantize_network(pointwise, recipe.layers.values(), recipe.groups)
    with pytest.raises(CalibrationError, match=expected):
        learn_group(network, process, range(3, 6), 1, batches[:3], held_out, settings, seed=0)


def test_losses_are_medians_over_the_trajectories_that_stay_finite() -> None:
    judge = HeldOutJudge(torch.tensor([1.0, NAN, 4.0, 2.0, INF]))
    assert (judge.initial_loss, judge.left_out) == (2.0, 2)
    assert judge.is_best(torch.tensor([0.5, 9.0, 2.0, 1.0, NAN]))
    assert judge.best_loss == 1.0


def test_a_trajectory_that_learning_makes_diverge_counts_against_it() -> None:
    judge = HeldOutJudge(torch.tensor([1.0, 4.0, 2.0]))
    assert not judge.is_best(torch.tensor([0.1, NAN, 0.1]))
    assert not judge.found_better
    assert judge.is_best(torch.tensor([0.5, 2.0, 1.0]))


@pytest.mark.parametrize("observer", OBSERVERS)
@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_observers_refuse_values_that_are_not_finite(observer: str, value: float) -> None:
    values = torch.tensor([0.0, 1.0, value, 0.5]).numpy()
    with pytest.raises(CalibrationError, match=r"observed activations: got values from .*finite values"):
        OBSERVERS[observer](values, 8, 0)
    with pytest.raises(CalibrationError, match=r"observed activations"):
        choose_zero_point([values], 8)


ZERO_SNR = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}


def test_zero_terminal_snr_with_epsilon_is_refused_before_anything_is_computed(
    tiny_source: Source, tmp_path: Path
) -> None:
    for observer in OBSERVERS:
        source = replace(tiny_source, scheduler=DDIMScheduler(**ZERO_SNR))
        with pytest.raises(
            CalibrationError,
            match=r"scheduler DDIMScheduler, timestep 999: got no signal left \(zero terminal SNR\)",
        ):
            calibrate(source, replace(QUICK, observer=observer), output=tmp_path / "recipe.safetensors")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "changes",
    [{"prediction_type": "v_prediction"}, {"prediction_type": "sample"}, {"timestep_spacing": "leading"}],
)
def test_zero_terminal_snr_is_fine_where_nothing_is_divided_by_it(changes: dict[str, str]) -> None:
    scheduler = DDIMScheduler(**(ZERO_SNR | changes))
    assert len(DenoisingProcess(scheduler, 4)) == 4
