from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from torch import Tensor

from accuquant.denoising.process import DenoisingProcess
from accuquant.denoising.start import seeded_starts
from accuquant.manifest import Manifest
from accuquant.runtime.cpu_forms.precision_verdict import load_verdict
from accuquant.runtime.engine_model import EngineModel
from accuquant.verification.measure import engine_precision as module
from accuquant.verification.measure.engine_precision import compare_precisions, judge_bfloat16

PROCESS = DenoisingProcess(DDIMScheduler(clip_sample=False), 4)
(START,) = seeded_starts(PROCESS, (1, 2, 2), count=2, batch_size=2, seed=5)


def off_by(bias: float) -> Any:
    def network(sample: Tensor, timestep: Tensor, conditioning: Mapping[str, Tensor]) -> Tensor:
        return torch.full_like(sample, bias)

    return network


def decibels(bias: float) -> float:
    """PSNR of a network that is off by `bias` everywhere, from DDIM (arXiv 2010.02502, eq. 12)."""
    alphas = PROCESS.scheduler.alphas_cumprod.double().numpy()
    error = 0.0
    for timestep in map(int, PROCESS.timesteps):
        before, after = alphas[timestep], alphas[timestep - 250] if timestep >= 250 else 1.0
        a = np.sqrt(after / before)
        error = a * error + (np.sqrt(1 - after) - a * np.sqrt(1 - before)) * bias
    return float(-20 * np.log10(abs(error)))


def test_decibels_are_those_of_the_images_that_each_precision_makes() -> None:
    verdict = compare_precisions(PROCESS, START, off_by(0), off_by(0.01), off_by(0.02), lambda x: x)
    assert verdict.fp32_db == pytest.approx(decibels(0.01), abs=1e-2)
    assert verdict.bf16_db == pytest.approx(decibels(0.02), abs=1e-2)
    assert verdict.fp32_db - verdict.bf16_db == pytest.approx(20 * np.log10(2), abs=1e-2)
    assert not verdict.takes_bf16


def test_a_verdict_is_kept_for_every_graph_and_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCUQUANT_CACHE", str(tmp_path))
    place = "Some Processor (BF16, FP32), OpenVINO 1"
    monkeypatch.setattr(module, "name_of_place", lambda core: place)
    monkeypatch.setattr(module, "graph_digest", lambda path: str(path))
    monkeypatch.setattr(module, "real_model", lambda path: path)

    class Folder:
        def graph_paths(self, folder: Path) -> list[Path]:
            return [folder / "one.onnx", folder / "two.onnx"]

    monkeypatch.setattr(Manifest, "load", lambda folder: Folder())
    monkeypatch.setattr(EngineModel, "from_folder", lambda *_, precision, **__: nullcontext(precision))
    biases = {"fp32": 0.01, "bf16": 0.02}
    (note,) = judge_bfloat16(
        tmp_path, PROCESS, START, off_by(0), lambda model: off_by(biases[str(model)]), lambda x: x
    )
    assert "PSNR -6.02 dB: on this machine --engine-precision auto stays with fp32" in note
    for name in ("one.onnx", "two.onnx"):
        kept = load_verdict(str(tmp_path / name), place)
        assert kept is not None
        assert kept.fp32_db == pytest.approx(decibels(0.01), abs=1e-2)


def test_nothing_is_compared_on_a_processor_without_bfloat16(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "name_of_place", lambda core: "Old Processor (FP32, INT8), OpenVINO 1")
    assert judge_bfloat16(tmp_path, PROCESS, START, off_by(0), lambda model: off_by(0), lambda x: x) == ()
