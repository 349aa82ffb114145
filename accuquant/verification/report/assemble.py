"""Put a report together: what was measured, and what describes it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from accuquant.calibration_facts import GuidanceFacts
from accuquant.runtime.int8_use import Int8Use
from accuquant.verification.measure.latency import Latency
from accuquant.verification.measure.parity import LayerParity
from accuquant.verification.measure.subject import Subject
from accuquant.verification.report import facts
from accuquant.verification.report.report import Comparison, FidFigure, Report
from accuquant.verification.report.tally import Tally
from accuquant.verification.report.thresholds import Thresholds, judge


def assemble(
    subject: Subject,
    tally: Tally,
    *,
    timesteps: tuple[float, ...],
    image_shape: tuple[int, ...],
    prompts: tuple[str, ...],
    thresholds: Thresholds,
    latencies: tuple[Latency, ...],
    layers: tuple[LayerParity, ...] | None,
    notes: tuple[str, ...],
    int8_use: Int8Use | None = None,
) -> Report:
    """Return the report on what `tally` took in: images of `image_shape` (C, H, W), sampled at `timesteps`.

    `prompts` are those of the images, none for a pipeline that takes none. `int8_use` is what the engine ran
    in int8, None where it does not say.
    """
    comparisons, fid = tally.comparisons(), tally.fid()
    recipe = subject.recipe
    return Report(
        verdict=judge(_measured(comparisons, fid, layers) | facts.int8_share(int8_use), thresholds),
        model=facts.model_facts(subject.reference, image_shape),
        settings=_settings(subject, fid),
        versions=facts.versions(),
        timesteps=timesteps,
        **comparisons,
        gallery=tally.pictures.gallery(seed=subject.settings.seed, prompts=prompts),
        fid=fid,
        layers=layers,
        sensitivity=facts.layer_sensitivities(recipe),
        groups=facts.group_figures(recipe),
        placement=facts.placement_figures(subject.reference, recipe) | facts.int8_figures(int8_use),
        sizes=facts.file_sizes(subject.folder, subject.manifest, subject.reference),
        latencies=latencies,
        notes=notes + facts.int8_notes(int8_use),
    )


def _measured(
    comparisons: Mapping[str, Comparison], fid: FidFigure | None, layers: tuple[LayerParity, ...] | None
) -> dict[str, float]:
    fidelity = comparisons["fidelity"].summary
    measured = {name: fidelity[name].median for name in ("psnr", "ssim", "cosine")}
    measured["lowering_psnr"] = comparisons["lowering"].summary["psnr"].median
    if fid:
        measured["fid"] = fid.engine
    if layers:
        measured["level_share"] = max(layer.share for layer in layers)
        measured["level_difference"] = max(layer.max_difference for layer in layers)
    return measured


def _settings(subject: Subject, fid: FidFigure | None) -> dict[str, Any]:
    return {
        **vars(subject.settings),
        "features": fid.extractor if fid else "none",
        "bits": facts.bits_of(subject.recipe),
        "lowering": subject.manifest.lowering,
        "precision": subject.manifest.precision,
        "scheduler": type(subject.reference.scheduler).__name__,
        "calibrated_steps": subject.manifest.num_inference_steps,
        "calibrated_guidance": _guidance(subject.recipe.facts.guidance),
        "machine": facts.machine(),
    }


def _guidance(calibrated: GuidanceFacts | None) -> str:
    if calibrated is None or calibrated.kind == "none":
        return "none"
    return f"{calibrated.kind}, scale {calibrated.scale:g}"
