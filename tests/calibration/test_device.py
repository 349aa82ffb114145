"""Calibration on another device than the CPU: shown on a pretended one, which refuses forgotten tensors."""

from __future__ import annotations

import copy
import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler
from pretend_device import pretend_device

from accuquant._util.progress import Silent
from accuquant.calibration import CalibrationSettings, calibrate
from accuquant.errors import CalibrationError
from accuquant.networks.device import choose_device
from accuquant.pipelines.source import Source
from accuquant.recipe import Recipe

#: 4-bit activations leave so much to learn that float rounding flips no decision of a judge. Searches are
#: left out: they choose among candidates 1 to 2.5 % apart, and a tie falls either way.
SETTINGS = CalibrationSettings(
    steps=2, group_size=1, num_trajectories=2, batch_size=1, iterations=1, shared_iterations=1,
    float_budget=0.05, learning_rate=0.02, activation_bits=4, observer="minmax", refine=False,
    probe=False,
)  # fmt: skip


def with_network_of_its_own(source: Source) -> Source:
    return dataclasses.replace(source, network=copy.deepcopy(source.network))


def compare(there: Recipe, here: Recipe) -> None:
    """What float rounding leaves: scales to 1e-3, and one level in a thousand."""
    assert list(there.layers) == list(here.layers)
    assert [result.status for result in there.results] == [result.status for result in here.results]
    for name, layer in there.layers.items():
        other = here.layers[name]
        np.testing.assert_allclose(layer.activation_scale, other.activation_scale, rtol=1e-3, err_msg=name)
        np.testing.assert_allclose(layer.weight_scale, other.weight_scale, rtol=1e-3, err_msg=name)
        assert layer.zero_point == other.zero_point
        if layer.weight_levels is None or other.weight_levels is None:
            assert layer.weight_levels is other.weight_levels
            continue
        assert np.mean(layer.weight_levels != other.weight_levels) < 1e-3, name


def test_the_recipe_of_another_device_is_the_cpus_within_float_rounding(
    tiny_source: Source, tmp_path: Path
) -> None:
    here = calibrate(tiny_source, SETTINGS, output=tmp_path / "here.safetensors")
    with pretend_device() as device:
        source = with_network_of_its_own(tiny_source).to(device)
        there = calibrate(source, SETTINGS, output=tmp_path / "there.safetensors")
    compare(there, here)


class Interrupting(Silent):
    """Stops a calibration at its first stage, as Ctrl-C does."""

    def stage(self, name: str, total: int) -> None:
        raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("changed", "said"),
    [({"device": "cuda"}, "device: 'cuda' -> 'cpu'"), ({"version": "0.0.1"}, "version: '0.0.1' -> ")],
)
def test_what_another_device_or_version_left_is_refused_and_kept(
    tiny_source: Source, tmp_path: Path, changed: dict[str, str], said: str
) -> None:
    output = tmp_path / "recipe.safetensors"
    with pytest.raises(KeyboardInterrupt):
        calibrate(tiny_source, SETTINGS, output=output, progress=Interrupting())
    (marker,) = tmp_path.glob("*.partial/settings.json")
    marker.write_text(json.dumps(json.loads(marker.read_text()) | changed))
    kept = marker.with_name("kept.safetensors")
    kept.write_bytes(b"hours of work")
    with pytest.raises(CalibrationError, match=rf"other settings \({said}.*delete that folder to start over"):
        calibrate(tiny_source, SETTINGS, output=output)
    assert kept.read_bytes() == b"hours of work"
    assert json.loads(marker.read_text()).items() >= changed.items()
    assert not output.exists()


@pytest.mark.slow
def test_a_solver_that_remembers_earlier_outputs_keeps_them_on_the_device(
    tiny_source: Source, tmp_path: Path
) -> None:
    settings = dataclasses.replace(
        SETTINGS, steps=4, group_size=2, num_trajectories=4, batch_size=2, iterations=2,
        gradient="checkpoint", observer="minmax", rounding="nearest",
    )  # fmt: skip
    multistep = DPMSolverMultistepScheduler.from_config(tiny_source.scheduler.config)
    source = dataclasses.replace(tiny_source, scheduler=multistep, pipeline_class="DDPMPipeline")
    here = calibrate(source, settings, output=tmp_path / "here.safetensors")
    with pretend_device() as device:
        moved = with_network_of_its_own(source).to(device)
        there = calibrate(moved, settings, output=tmp_path / "there.safetensors")
    compare(there, here)


def test_a_forgotten_tensor_is_an_error_on_the_pretended_device(tiny_source: Source) -> None:
    with pretend_device() as device:
        network = with_network_of_its_own(tiny_source).to(device).network
        with pytest.raises(RuntimeError, match="tensors on meta and cpu"):
            network(torch.zeros(1, 3, 16, 16), 5)


@pytest.mark.gpu
def test_cuda_gives_the_cpus_recipe_within_float_rounding_and_its_own_bit_for_bit(
    tiny_source: Source, tmp_path: Path
) -> None:
    here = calibrate(tiny_source, SETTINGS, output=tmp_path / "here.safetensors")
    source = with_network_of_its_own(tiny_source).to(choose_device("cuda"))
    there = calibrate(source, SETTINGS, output=tmp_path / "there.safetensors")
    calibrate(source, SETTINGS, output=tmp_path / "again.safetensors")
    compare(there, here)
    assert (tmp_path / "there.safetensors").read_bytes() == (tmp_path / "again.safetensors").read_bytes()
