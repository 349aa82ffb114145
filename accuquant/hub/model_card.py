"""The model card of an exported folder: README.md, written from the manifest and the verification report."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from accuquant._util.files import write_text
from accuquant.errors import UsageError
from accuquant.manifest import Manifest

CARD_NAME = "README.md"
#: Where this file is there, `accuquant export --whole-pipeline` wrote every part.
_VAE = "vae_decoder/model.onnx"
_WITH_OPTIMUM = (
    "Every part of the pipeline is here: Optimum's `ORTDiffusionPipeline.from_pretrained` loads this "
    "repository, and its `OVDiffusionPipeline.from_pretrained` does with `from_onnx=True`.",
    "",
)
_TAGS = ("accuquant", "quantization", "int8", "onnx", "openvino", "diffusers")


def write_model_card(folder: Path, report: Path | None = None) -> Path:
    """Write README.md into an exported folder and return its path.

    `report` is the JSON of `accuquant verify`; without it the card says that nothing was measured. Raises
    EngineError for a folder that `accuquant export` did not write, UsageError for a JSON that is no report.
    """
    manifest = Manifest.load(folder)
    text = model_card(manifest, None if report is None else read_report(report))
    path = folder / CARD_NAME
    write_text(path, text)
    return path


def read_report(path: Path) -> dict[str, Any]:
    """Read the JSON that `accuquant verify --json` wrote. Raises UsageError where it is something else."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as fault:
        raise _no_report(path, f"{type(fault).__name__}: {fault}") from fault
    if not isinstance(data, dict) or data.get("schema_version") != 1 or "checks" not in data:
        raise _no_report(path, "JSON without a report's fields")
    return data


def model_card(manifest: Manifest, report: Mapping[str, Any] | None) -> str:
    """Return the card as Markdown with the metadata that the Hub reads."""
    parts = [_front_matter(manifest), _introduction(manifest), _usage(manifest)]
    parts.append(_NOT_MEASURED if report is None else _measured(report))
    return "\n".join(parts)


def _front_matter(manifest: Manifest) -> str:
    lines = ["---", "library_name: diffusers"]
    if _is_hub_id(manifest.source):
        lines += [f"base_model: {manifest.source}", "base_model_relation: quantized"]
    lines += ["tags:", *(f"- {tag}" for tag in _TAGS), "---", ""]
    return "\n".join(lines)


def _introduction(manifest: Manifest) -> str:
    name = manifest.source if _is_hub_id(manifest.source) else Path(manifest.source).name
    groups = len(manifest.groups)
    return "\n".join(
        [
            f"# {name or manifest.pipeline_class}, int8",
            "",
            f"The {manifest.component} ({manifest.signature.architecture}) of a {manifest.pipeline_class} as "
            f"ONNX with int8 weights and activations (QDQ pairs), {groups} step group"
            f"{'s' if groups > 1 else ''}, lowering {manifest.lowering}, {manifest.precision} elsewhere.",
            f"Made with AccuQuant {manifest.accuquant_version}; `accuquant.json` lists each file's SHA-256.",
            "",
        ]
    )


def _usage(manifest: Manifest) -> str:
    source = manifest.source or "the float pipeline"
    return "\n".join(
        [
            "## Use",
            "",
            "```python",
            "from accuquant import EngineUNet",
            "from diffusers import DiffusionPipeline",
            "",
            f'pipe = DiffusionPipeline.from_pretrained("{source}")',
            f'pipe.{manifest.component} = EngineUNet.from_pretrained("<this repository>", engine="openvino")',
            f"images = pipe(num_inference_steps={manifest.num_inference_steps}).images",
            "```",
            "",
            *(_WITH_OPTIMUM if _VAE in manifest.files else ()),
        ]
    )


_NOT_MEASURED = """## Measured

Nothing yet: `accuquant verify` compares the images with those of the float pipeline.
"""


def _measured(report: Mapping[str, Any]) -> str:
    settings, fidelity = report["settings"], report["fidelity"]["summary"]
    psnr, ssim = fidelity["psnr"], fidelity["ssim"]
    rows = [
        ("PSNR against FP32, median (mean, minimum)", f"{_numbers(psnr, '.1f')} dB"),
        ("SSIM, median (mean, minimum)", _numbers(ssim, ".3f")),
    ]
    if report.get("fid2fp32"):
        fid = report["fid2fp32"]
        rows.append((f"FID2FP32 ({fid['extractor']} features)", _number(fid["engine"], ".3f")))
    if "int8_mac_share" in report.get("placement", {}):
        rows.append(("multiply-accumulates in int8", f"{report['placement']['int8_mac_share']:.1%}"))
    sizes = report.get("sizes", {})
    if {"fp32_weights", "engine_files"} <= set(sizes):
        sizes_mb = [f"{sizes[key] / 1e6:.1f} MB" for key in ("fp32_weights", "engine_files")]
        rows.append(("weights on disk", " -> ".join(sizes_mb)))
    rows += [(f"one call, {x['name']}", f"{x['median_ms']:.1f} ms") for x in report.get("latencies", ())]
    verdict = "passed" if report["passed"] else "**failed**"
    how = f"{settings.get('num_images')} seeds, {settings.get('steps')} steps, {settings.get('engine')}"
    return "\n".join(
        [
            "## Measured",
            "",
            f"Against the float pipeline, seed by seed ({how}); the verification {verdict}.",
            "",
            "| | |",
            "|---|---|",
            *(f"| {name} | {value} |" for name, value in rows),
            "",
        ]
    )


def _numbers(summary: Mapping[str, Any], form: str) -> str:
    median, mean, least = (_number(summary[key], form) for key in ("median", "mean", "minimum"))
    return f"{median} ({mean}, {least})"


def _number(value: Any, form: str) -> str:
    return "not finite" if value is None else format(value, form)


def _is_hub_id(source: str) -> bool:
    """Return whether `source` is owner/name and no folder here, which older manifests name alike."""
    return re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", source) is not None and not Path(source).is_dir()


def _no_report(path: Path, got: str) -> UsageError:
    return UsageError(
        f"report '{path}'",
        got=got,
        expected="the JSON that `accuquant verify --json FILE` writes",
        remedy="Verify the exported folder first, and give that file",
    )
