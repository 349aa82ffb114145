"""The model card of an exported folder: README.md, written from the manifest and the verification report."""

from __future__ import annotations

import re
from pathlib import Path

from accuquant._util.facts import FactsError
from accuquant._util.files import write_text
from accuquant.errors import VerificationError, printable
from accuquant.manifest import Manifest

from .published import published_name
from .report_facts import ReportFacts, SummaryFacts, read_report_facts
from .repository import Repository

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
    EngineError for a folder that `accuquant export` did not write, VerificationError for a JSON that is no
    report.
    """
    manifest = Manifest.load(folder)
    text = model_card(manifest, None if report is None else read_report(report))
    path = folder / CARD_NAME
    write_text(path, text)
    return path


def read_report(path: Path) -> ReportFacts:
    """Read the JSON that `accuquant verify --json` wrote. Raises VerificationError for something else."""
    try:
        return read_report_facts(path)
    except (OSError, FactsError) as fault:
        raise VerificationError(
            f"report '{path}'",
            got=str(fault),
            expected="the JSON that `accuquant verify --json FILE` writes",
            remedy="Verify the exported folder first, and give that file",
        ) from fault


def model_card(manifest: Manifest, report: ReportFacts | None) -> str:
    """Return the card as Markdown with the metadata that the Hub reads.

    What manifest and report say is text to show: it can be neither markup nor code nor metadata.
    """
    parts = [_front_matter(manifest), _introduction(manifest), _usage(manifest)]
    parts.append(_NOT_MEASURED if report is None else _measured(report))
    return "\n".join(parts)


def _front_matter(manifest: Manifest) -> str:
    lines = ["---", "library_name: diffusers"]
    base = Repository.find(manifest.source)
    if base is not None:
        lines += [f"base_model: {base.id}", "base_model_relation: quantized"]
    lines += ["tags:", *(f"- {tag}" for tag in _TAGS), "---", ""]
    return "\n".join(lines)


def _introduction(manifest: Manifest) -> str:
    name = published_name(manifest.source) or Path(manifest.source).name
    groups = len(manifest.groups)
    return "\n".join(
        [
            f"# {_plain(name or manifest.pipeline_class)}, int8",
            "",
            f"The {manifest.component} ({_plain(manifest.signature.architecture)}) of a "
            f"{_plain(manifest.pipeline_class)} as "
            f"ONNX with int8 weights and activations (QDQ pairs), {groups} step group"
            f"{'s' if groups > 1 else ''}, lowering {_plain(manifest.lowering)}, "
            f"{_plain(manifest.precision)} elsewhere.",
            f"Made with AccuQuant {_plain(manifest.accuquant_version)}; "
            "`accuquant.json` lists each file's SHA-256.",
            "",
        ]
    )


def _usage(manifest: Manifest) -> str:
    base = Repository.find(manifest.source)
    source = "<the float pipeline>" if base is None else base.id
    revision = "" if base is None or base.revision is None else f', revision="{base.revision}"'
    steps = (
        "" if manifest.num_inference_steps is None else f"num_inference_steps={manifest.num_inference_steps}"
    )
    return "\n".join(
        [
            "## Use",
            "",
            "```python",
            "from accuquant import EngineUNet",
            "from diffusers import DiffusionPipeline",
            "",
            f'pipe = DiffusionPipeline.from_pretrained("{source}"{revision})',
            f'pipe.{manifest.component} = EngineUNet.from_pretrained("<this repository>", engine="openvino")',
            f"images = pipe({steps}).images",
            "```",
            "",
            *(_WITH_OPTIMUM if _VAE in manifest.files else ()),
        ]
    )


_NOT_MEASURED = """## Measured

Nothing yet: `accuquant verify` compares the images with those of the float pipeline.
"""


def _measured(report: ReportFacts) -> str:
    settings, fidelity = report.settings, report.fidelity.summary
    rows = [
        ("PSNR against FP32, median (mean, minimum)", f"{_numbers(fidelity.psnr, '.1f')} dB"),
        ("SSIM, median (mean, minimum)", _numbers(fidelity.ssim, ".3f")),
    ]
    if report.fid2fp32 is not None:
        fid = report.fid2fp32
        rows.append((f"FID2FP32 ({_plain(fid.extractor)} features)", _number(fid.engine, ".3f")))
    if report.placement.int8_mac_share is not None:
        rows.append(("multiply-accumulates in int8", f"{report.placement.int8_mac_share:.1%}"))
    sizes = (report.sizes.fp32_weights, report.sizes.engine_files)
    if None not in sizes:
        rows.append(
            ("weights on disk", " -> ".join(f"{size / 1e6:.1f} MB" for size in sizes if size is not None))
        )
    rows += [(f"one call, {_plain(x.name)}", f"{x.median_ms:.1f} ms") for x in report.latencies]
    verdict = {True: "passed", None: "judged nothing"}.get(report.passed, "**failed**")
    how = f"{settings.num_images} seeds, {settings.steps} steps, {_plain(settings.engine)}"
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


def _numbers(summary: SummaryFacts, form: str) -> str:
    median, mean, least = (_number(x, form) for x in (summary.median, summary.mean, summary.minimum))
    return f"{median} ({mean}, {least})"


def _number(value: float | None, form: str) -> str:
    return "not finite" if value is None else format(value, form)


def _plain(text: object) -> str:
    """Return text that Markdown shows as it is: its signs, and those of HTML, escaped."""
    return re.sub(r"([\\`*_{}\[\]<>#|!~$&()+])", r"\\\1", printable(text, 200))
