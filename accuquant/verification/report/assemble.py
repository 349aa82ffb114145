"""Turn rollouts into the figures of a report."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from accuquant.calibration_facts import GuidanceFacts
from accuquant.pipelines.source import Source
from accuquant.runtime.int8_use import Int8Use
from accuquant.verification.measure.features import FeatureExtractor, fid_to_fp32
from accuquant.verification.measure.latency import Latency
from accuquant.verification.measure.metrics import Curve, cosine, psnr, ssim
from accuquant.verification.measure.parity import LayerParity
from accuquant.verification.measure.rollout import Rollouts
from accuquant.verification.measure.subject import Subject
from accuquant.verification.report import facts
from accuquant.verification.report.pictures import make_gallery
from accuquant.verification.report.report import Comparison, FidFigure, Report
from accuquant.verification.report.thresholds import Thresholds, judge


def assemble(
    subject: Subject,
    rollouts: Rollouts,
    images: Mapping[str, Tensor],
    *,
    prompts: tuple[str, ...],
    extractor: FeatureExtractor | None,
    thresholds: Thresholds,
    latencies: tuple[Latency, ...],
    layers: tuple[LayerParity, ...] | None,
    notes: tuple[str, ...],
    int8_use: Int8Use | None = None,
) -> Report:
    """Return the report on `rollouts`, whose final latents became `images` [N, C, H, W] by branch.

    `prompts` are those of the images, none for a pipeline that takes none. `int8_use` is what the engine ran
    in int8, None where it does not say.
    """
    comparisons = compare(rollouts, images)
    fid = _fid(extractor, images) if extractor else None
    psnr_values = torch.tensor(comparisons["fidelity"].psnr)
    recipe = subject.recipe
    return Report(
        verdict=judge(_measured(comparisons, fid, layers) | facts.int8_share(int8_use), thresholds),
        model=_model(subject.reference, tuple(images["reference"].shape[1:])),
        settings=_settings(subject, fid),
        versions=facts.versions(),
        timesteps=rollouts.timesteps,
        **comparisons,
        gallery=make_gallery(
            images["reference"],
            images["engine"],
            psnr_values,
            seed=subject.settings.seed,
            prompts=prompts,
        ),
        fid=fid,
        layers=layers,
        sensitivity=facts.layer_sensitivities(recipe),
        groups=facts.group_figures(recipe),
        placement=facts.placement_figures(subject.reference, recipe) | facts.int8_figures(int8_use),
        sizes=facts.file_sizes(subject.folder, subject.manifest, subject.reference),
        latencies=latencies,
        notes=notes + facts.int8_notes(int8_use),
    )


def compare(rollouts: Rollouts, images: Mapping[str, Tensor]) -> dict[str, Comparison]:
    """Return "fidelity", "quantization" and "lowering": which pair is compared says `Report`."""

    def comparison(errors: str, name: str, other: str) -> Comparison:
        step_errors = rollouts.step_errors.get(errors)
        return Comparison(
            psnr=_floats(psnr(images[name], images[other])),
            ssim=_floats(ssim(images[name], images[other])),
            cosine=_floats(cosine(rollouts.final[name], rollouts.final[other])),
            latent_mse=_floats(rollouts.errors[errors][-1]),
            by_step=Curve.of(rollouts.errors[errors].numpy()),
            step_error=Curve.of(step_errors.numpy()) if step_errors is not None else None,
        )

    return {
        "fidelity": comparison("engine", "engine", "reference"),
        "quantization": comparison("simulated", "simulated", "reference"),
        "lowering": comparison("lowering", "engine", "simulated"),
    }


def _floats(values: Tensor) -> tuple[float, ...]:
    return tuple(values.double().tolist())


def _fid(extractor: FeatureExtractor, images: Mapping[str, Tensor]) -> FidFigure:
    distances = {
        name: fid_to_fp32(extractor, images[name], images["reference"]) for name in ("engine", "simulated")
    }
    return FidFigure(extractor.name, **distances)


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


def _model(reference: Source, image_shape: tuple[int, ...]) -> dict[str, Any]:
    return {
        "name": Path(reference.name).name or reference.name,
        "pipeline_class": reference.pipeline_class,
        "component": reference.component,
        "parameters": sum(p.numel() for p in reference.network.parameters()),
        "image_shape": list(image_shape),
    }


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
