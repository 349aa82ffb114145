"""The model card: the report's figures, as Markdown that the Hub reads."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

from accuquant.errors import UsageError
from accuquant.hub.model_card import CARD_NAME, model_card, write_model_card
from accuquant.manifest import Manifest


def test_the_card_has_the_figures_of_the_report(export: Path, report: Callable[..., dict[str, Any]]) -> None:
    card = model_card(Manifest.load(export), report())
    for text in (
        "base_model: owner/model",
        "library_name: diffusers",
        "48 seeds, 50 steps, openvino); the verification passed",
        "| PSNR against FP32, median (mean, minimum) | 45.5 (43.6, 21.4) dB |",
        "| SSIM, median (mean, minimum) | 45.520 (not finite, 21.400) |",
        "| FID2FP32 (fashion features) | 0.061 |",
        "| multiply-accumulates in int8 | 95.9% |",
        "| weights on disk | 10.9 MB -> 3.8 MB |",
        "| one call, OpenVINO int8 | 35.0 ms |",
        'DiffusionPipeline.from_pretrained("owner/model")',
        "2 step groups, lowering rescale",
    ):
        assert text in card
    assert "**failed**" in model_card(Manifest.load(export), report(passed=False))


def test_the_hub_reads_the_card(export: Path, report: Callable[..., dict[str, Any]]) -> None:
    card = huggingface_hub.ModelCard(model_card(Manifest.load(export), report()))
    assert card.data.base_model == "owner/model"
    assert card.data.library_name == "diffusers"
    assert "int8" in card.data.tags


def test_a_card_of_a_local_pipeline_names_no_base_model_and_nothing_measured(
    export: Path, manifest_of: Callable[..., Manifest]
) -> None:
    card = model_card(manifest_of(export, source="/home/me/models/my-ddpm"), None)
    assert "base_model" not in card
    assert "# my-ddpm, int8" in card
    assert "Nothing yet" in card


@pytest.mark.parametrize(
    "source",
    ["./models/my-ddpm", "C:/my-ddpm", "~/my-ddpm", "models\\my-ddpm", "runs/my-ddpm/", "here/my-ddpm"],
)
def test_a_folder_is_no_base_model(
    export: Path,
    manifest_of: Callable[..., Manifest],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    source: str,
) -> None:
    (tmp_path / "here" / "my-ddpm").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert "base_model" not in model_card(manifest_of(export, source=source), None)


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"schema_version": 2, "checks": []}'])
def test_a_file_that_is_no_report_is_refused(export: Path, tmp_path: Path, content: str) -> None:
    (tmp_path / "r.json").write_text(content)
    with pytest.raises(UsageError, match=r"report '.*r\.json'.*accuquant verify --json"):
        write_model_card(export, tmp_path / "r.json")
    assert not (export / CARD_NAME).exists()


def test_the_card_of_a_whole_pipeline_says_how_optimum_loads_it(
    export: Path, manifest_of: Callable[..., Manifest]
) -> None:
    assert "ORTDiffusionPipeline" not in model_card(Manifest.load(export), None)
    whole = manifest_of(export, files={"vae_decoder/model.onnx": "0" * 64})
    assert "ORTDiffusionPipeline.from_pretrained" in model_card(whole, None)
