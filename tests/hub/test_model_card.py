"""The model card: the report's figures, as Markdown that the Hub reads."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

from accuquant.errors import VerificationError
from accuquant.hub.model_card import CARD_NAME, model_card, write_model_card
from accuquant.hub.report_facts import ReportFacts
from accuquant.manifest import Manifest


def test_the_card_has_the_figures_of_the_report(export: Path, report: Callable[..., dict[str, Any]]) -> None:
    card = model_card(Manifest.load(export), ReportFacts.of(report()))
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
    assert "**failed**" in model_card(Manifest.load(export), ReportFacts.of(report(passed=False)))


def test_the_hub_reads_the_card(export: Path, report: Callable[..., dict[str, Any]]) -> None:
    card = huggingface_hub.ModelCard(model_card(Manifest.load(export), ReportFacts.of(report())))
    data: Any = card.data  # its attributes are those of the card
    assert data.base_model == "owner/model"
    assert data.library_name == "diffusers"
    assert "int8" in data.tags


def test_a_card_of_a_local_pipeline_names_no_base_model_and_nothing_measured(
    export: Path, manifest_of: Callable[..., Manifest]
) -> None:
    card = model_card(manifest_of(export, source="/home/me/models/my-ddpm"), None)
    assert "base_model" not in card
    assert "# my-ddpm, int8" in card
    assert "/home/me" not in card
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
    with pytest.raises(VerificationError, match=r"report '.*r\.json'.*accuquant verify --json"):
        write_model_card(export, tmp_path / "r.json")
    assert not (export / CARD_NAME).exists()


def test_the_card_of_a_whole_pipeline_says_how_optimum_loads_it(
    export: Path, manifest_of: Callable[..., Manifest]
) -> None:
    assert "ORTDiffusionPipeline" not in model_card(Manifest.load(export), None)
    whole = manifest_of(export, files={"vae_decoder/model.onnx": "0" * 64})
    assert "ORTDiffusionPipeline.from_pretrained" in model_card(whole, None)


HOSTILE = "](https://evil.example) <script>alert(1)</script> | `x` **b** &amp; $y$"


def test_what_manifest_and_report_say_is_no_markup(
    export: Path, manifest_of: Callable[..., Manifest], report: Callable[..., dict[str, Any]]
) -> None:
    named = manifest_of(
        export,
        pipeline_class=HOSTILE,
        lowering=HOSTILE,
        precision=HOSTILE,
        accuquant_version=HOSTILE,
        source="",
    )
    numbers = report(
        latencies=[{"name": HOSTILE, "median_ms": 1.0}],
        fid2fp32={"extractor": HOSTILE, "engine": 0.1, "simulated": 0.1},
        settings={"num_images": 1, "steps": 1, "engine": HOSTILE},
    )
    card = model_card(named, ReportFacts.of(numbers))
    assert re.search(r"(?<!\\)(<script|</script|\]\(|`x|\*\*b|&amp|\$y)", card) is None
    rows = [line for line in card.splitlines() if line.startswith("| ")]
    assert all(len(re.findall(r"(?<!\\)\|", row)) == 3 for row in rows)


@pytest.mark.parametrize(
    "source",
    ["me/model\nlicense: mit", "me/model: x", "me/{{model}}", "me/mod\u202eel", "-/../x", "me/model #x"],
)
def test_a_source_that_is_no_hub_id_becomes_no_metadata(
    export: Path, manifest_of: Callable[..., Manifest], source: str
) -> None:
    card = model_card(manifest_of(export, source=source), None)
    assert card.split("---")[1].splitlines()[1] == "library_name: diffusers"
    assert "base_model" not in card
    assert f'"{source}"' not in card
    assert "license: mit" not in card.splitlines()


def test_a_pinned_source_is_named_with_its_revision(
    export: Path, manifest_of: Callable[..., Manifest]
) -> None:
    card = model_card(manifest_of(export, source="owner/model@abc"), None)
    assert "base_model: owner/model\n" in card
    assert 'from_pretrained("owner/model", revision="abc")' in card


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("passed", "yes"),
        ("fidelity", []),
        ("fidelity", {"summary": {"psnr": {"median": "45"}}}),
        ("latencies", [{"name": "a\x1b[2J", "median_ms": 1.0}]),
        ("sizes", {"fp32_weights": -1}),
        ("settings", 3),
        ("placement", {"int8_mac_share": 10**400}),
    ],
)
def test_a_report_with_values_of_other_types_is_refused(
    export: Path, tmp_path: Path, report: Callable[..., dict[str, Any]], key: str, value: Any
) -> None:
    (tmp_path / "r.json").write_text(json.dumps(report(**{key: value})))
    with pytest.raises(VerificationError, match=rf"r\.json': got {key}"):
        write_model_card(export, tmp_path / "r.json")
