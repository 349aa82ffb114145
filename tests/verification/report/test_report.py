from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import accuquant.verification.report.report as report_module
from accuquant.verification.measure.latency import Latency
from accuquant.verification.measure.metrics import Curve
from accuquant.verification.measure.parity import LayerParity
from accuquant.verification.report.html import byte_size, significant, write_html
from accuquant.verification.report.pictures import Selection
from accuquant.verification.report.report import Comparison, FidFigure, GroupFigure, LayerSensitivity, Report
from accuquant.verification.report.thresholds import Thresholds, judge

STEPS, IMAGES = 4, 12


def comparison(scale: float) -> Comparison:
    rng = np.random.default_rng(0)
    return Comparison(
        psnr=tuple(rng.uniform(30, 50, IMAGES).tolist()),
        ssim=(0.99,) * IMAGES,
        cosine=(0.999,) * IMAGES,
        latent_mse=(scale,) * IMAGES,
        by_step=Curve.of(scale * rng.uniform(0.5, 1.5, (STEPS, IMAGES))),
        step_error=Curve.of(0.1 * scale * rng.uniform(0.5, 1.5, (STEPS, IMAGES))),
    )


def make_report(**changes: Any) -> Report:
    images = torch.rand(IMAGES, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    pictures = Selection()
    pictures.add(images, images.flip(0), torch.linspace(20, 40, IMAGES))
    report = Report(
        verdict=judge({"psnr": 41.2, "lowering_psnr": 33.0}, Thresholds()),
        model={"name": "tiny", "pipeline_class": "DDIMPipeline", "component": "unet", "parameters": 9},
        settings={
            "engine": "openvino", "num_images": IMAGES, "steps": STEPS, "seed": 7, "bits": "W8A8",
            "scheduler": "DDIMScheduler", "lowering": "rescale", "precision": "fp32",
        },
        versions={"accuquant": "0.1.0"},
        timesteps=(750.0, 500.0, 250.0, 0.0),
        fidelity=comparison(1e-4),
        quantization=comparison(1e-4),
        lowering=comparison(1e-6),
        gallery=pictures.gallery(seed=7),
        fid=FidFigure("fashion", 0.123, 0.12),
        layers=(LayerParity("conv1", 1000, 1, 1), LayerParity("conv2", 1000, 2, 1)),
        sensitivity=(LayerSensitivity("conv_most", 2e-5, False), LayerSensitivity("conv1", 1e-5, True)),
        groups=(
            GroupFigure(1000, 500, 2e-3, 1e-3, "learned", ""),
            GroupFigure(500, 0, 2e-3, 2e-3, "rolled_back", "the loss became NaN"),
        ),
        placement={"int8_mac_share": 0.9, "int8_layers": 10, "float_layers": 2},
        sizes={"fp32_weights": 4_000_000, "engine_files": 1_000_000},
        latencies=(Latency("FP32 PyTorch", 9.0, 8.0, 4, 15), Latency("int8 openvino", 3.0, 2.0, 4, 15)),
        notes=("Sampled with 4 steps; the recipe was calibrated with 2.",),
    )  # fmt: skip
    return replace(report, **changes)


def test_json_has_the_documented_keys() -> None:
    data = json.loads(make_report().to_json())
    documented = re.findall(r"^    (\w+) {2,}\S", report_module.__doc__ or "", re.MULTILINE)
    assert list(data) == documented
    assert data["schema_version"] == 1


def test_json_says_what_was_measured() -> None:
    data = json.loads(make_report().to_json())
    assert data["passed"] is False
    assert [check["passed"] for check in data["checks"]] == [True, False]
    assert len(data["fidelity"]["images"]["psnr"]) == IMAGES
    assert data["fidelity"]["summary"]["psnr"]["median"] == np.median(data["fidelity"]["images"]["psnr"])
    assert len(data["lowering"]["latent_mse_by_step"]["p90"]) == STEPS
    assert data["layers"][1]["share"] == 0.002


def test_numbers_that_are_not_finite_become_null() -> None:
    report = make_report(groups=(GroupFigure(1000, 0, math.nan, math.inf, "rolled_back", "NaN"),))
    (group,) = json.loads(report.to_json())["groups"]
    assert (group["initial_loss"], group["final_loss"]) == (None, None)


def test_files_are_written_whole(tmp_path: Path) -> None:
    report = make_report()
    report.write_json(tmp_path / "reports" / "a.json")
    write_html(report, tmp_path / "reports" / "a.html")
    assert (tmp_path / "reports" / "a.json").read_text() == report.to_json()
    assert (tmp_path / "reports" / "a.html").read_text().endswith("</html>\n")
    assert len(list((tmp_path / "reports").iterdir())) == 2


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("html") / "report.html"
    write_html(make_report(), path)
    return path.read_text()


def test_the_page_needs_no_other_file(page: str) -> None:
    sources = re.findall(r"""(?:src|href)\s*=\s*["']([^"']*)""", page)
    assert sources
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert "url(" not in page
    assert "<script" not in page
    assert "<link" not in page


def test_the_page_shows_verdict_images_and_notes(page: str) -> None:
    assert "<title>Failed: tiny" in page
    assert "1 of 2 checks failed." in page
    assert page.count("<img") == 3 * 10
    assert "rolled back" in page
    assert "the loss became NaN" in page
    assert "Sampled with 4 steps" in page
    assert "prefers-color-scheme: dark" in page


def test_sections_without_figures_are_left_out(tmp_path: Path) -> None:
    report = make_report(
        fid=None, layers=None, sensitivity=(), groups=(), placement={}, sizes={}, latencies=(), notes=()
    )
    write_html(report, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    for heading in ("Layer by layer", "Sensitive layers", "Step groups", "Speed and size", "FID2FP32"):
        assert heading not in page


def test_names_are_escaped(tmp_path: Path) -> None:
    report = make_report(model={"name": "<script>alert(1)</script>"})
    write_html(report, tmp_path / "report.html")
    assert "<script" not in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (41.23, "41.2"),
        (0.01234, "0.0123"),
        (1234.5, "1234"),
        (2.16e-5, "2.16 \u00d7 10\u207b\u2075"),
    ],
)
def test_numbers_for_people(value: float, text: str) -> None:
    assert significant(value).replace("\u2009", " ") == text


@pytest.mark.parametrize(("value", "text"), [(999, "999 B"), (206_100, "206 kB"), (3_010_000, "3.01 MB")])
def test_sizes_for_people(value: float, text: str) -> None:
    assert byte_size(value) == text
