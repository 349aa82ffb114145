"""The fidelity study: what a cell runs, what its table says, and that a stopped run goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fidelity_cells import Bench, Cell, Sampled, Setting, compared, figures_path, measured
from fidelity_networks import NETWORKS, find_network
from fidelity_table import interval, row

CELL = Cell(NETWORKS["fashion-ddpm"], "q-diffusion", Setting(4, 8), 2, ("--group-size", "10"))


def _words_behind(command: list[str], option: str) -> str:
    return command[command.index(option) + 1]


def test_a_method_that_is_no_arm_of_ours_goes_to_the_command_line() -> None:
    command = CELL.command(Path("out"))
    assert _words_behind(command, "--method") == "q-diffusion"
    assert _words_behind(command, "--weight-bits") == "4"
    assert _words_behind(command, "--activation-bits") == "8"
    assert _words_behind(command, "--seed") == "2"
    assert _words_behind(command, "--group-size") == "10"


def test_an_arm_of_ours_needs_no_method() -> None:
    command = Cell(NETWORKS["fashion-text"], "no-learning", Setting(8, 8), 0).command(Path("out"))
    assert "--method" not in command
    assert _words_behind(command, "--iterations") == "0"
    assert _words_behind(command, "--prompts").endswith("prompts.txt")


@pytest.mark.parametrize("text", ["48", "W4", "WxA8"])
def test_rejects_what_is_no_setting(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - argparse names the option and the text
        Setting.parse(text)


def test_rejects_a_network_that_is_neither_known_nor_a_folder(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected one of fashion-ddpm, fashion-text"):
        find_network(str(tmp_path / "nothing"))


def test_a_cell_that_was_measured_is_not_measured_again(tmp_path: Path) -> None:
    bench = Bench(CELL.network, tmp_path, num_images=4, first_seed=7)
    figures_path(CELL, bench).write_text(json.dumps({"psnr": [1.0]}))
    assert measured(CELL, bench) == {"psnr": [1.0]}


def test_the_interval_of_a_mean_is_that_of_the_central_limit_theorem() -> None:
    values = np.random.default_rng(1).normal(5, 2, 400)
    low, high = interval(lambda chosen: float(values[chosen].mean()), len(values))
    assert (low + high) / 2 == pytest.approx(values.mean(), abs=0.05)
    assert high - low == pytest.approx(2 * 1.96 * 2 / 20, rel=0.2)


def _run(shift: float) -> dict[str, Any]:
    random = np.random.default_rng(0)
    features = random.normal(size=(51, 2))
    return {
        "psnr": (30 + np.arange(51) / 10 - shift).tolist(),
        "latent_mse": [1e-3] * 51,
        "features": (features + shift).tolist(),
        "reference_features": features.tolist(),
        "seconds": 10 + shift,
        "cpu_seconds": 5,
        "peak_mb": 100 * shift,
    }


def test_a_line_of_the_table_averages_calibration_seeds_and_keeps_the_worst() -> None:
    name, seeds, fid, decibels, worst, latent, seconds, cpu, peak = row("x", [_run(1), _run(3)])
    assert (name, seeds, latent, seconds, cpu, peak) == ("x", "2", "1.0e-03", "12", "5", "300")
    # equal spreads: the distance is that of the means, 2 * 1² and 2 * 3²
    assert fid == "10.0000 (10.0000 to 10.0000)"
    assert decibels.startswith("30.5 (")
    assert worst == "27.0"


def test_images_are_compared_one_by_one_and_step_by_step() -> None:
    reference = Sampled(torch.zeros(2, 3, 1, 4, 4), torch.zeros(3, 1, 4, 4), np.zeros((3, 2)))
    trajectory = torch.stack([torch.full((3, 1, 4, 4), 0.1), torch.full((3, 1, 4, 4), 0.2)])
    found = compared(Sampled(trajectory, torch.full((3, 1, 4, 4), 0.1), np.ones((3, 2))), reference)
    assert found["psnr"] == pytest.approx([20.0] * 3, abs=1e-4)
    assert found["mse_of_step"] == pytest.approx([0.01, 0.04])
    assert found["latent_mse"] == pytest.approx([0.04] * 3)
