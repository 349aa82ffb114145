"""The metrics of an evaluation: what each is called, compares and needs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from accuquant.errors import unknown_name
from accuquant.verification.measure.feature_networks import FEATURES, LOGITS, SPATIAL


@dataclass(frozen=True)
class Metric:
    """A figure of an evaluation.

    `paired` metrics compare each image with FP32's from the same seed, others judge the images of FP32 too.
    Metrics of `sets` are one number for all images, others have a value an image and are its mean.
    """

    name: str
    title: str
    higher_is_better: bool
    unit: str = ""
    paired: bool = False
    sets: bool = False
    prompts: bool = False
    real: bool = False
    #: What of the feature network it needs.
    output: str | None = None


METRICS = {
    metric.name: metric
    for metric in (
        Metric("fid2fp32", "FID2FP32", False, paired=True, sets=True, output=FEATURES),
        Metric("psnr", "PSNR", True, "dB", paired=True),
        Metric("ssim", "SSIM", True, paired=True),
        Metric("lpips", "LPIPS", False, paired=True),
        Metric("fid", "FID", False, sets=True, real=True, output=FEATURES),
        Metric("sfid", "sFID", False, sets=True, real=True, output=SPATIAL),
        Metric("is", "Inception score", True, sets=True, output=LOGITS),
        Metric("precision", "Precision", True, real=True, output=FEATURES),
        Metric("clip", "CLIP score", True, prompts=True),
        Metric("image-reward", "ImageReward", True, prompts=True),
    )
}
#: Measured with precision, by the same neighbours.
RECALL = Metric("recall", "Recall", True, sets=True, real=True, output=FEATURES)


def metric_of(name: str) -> Metric:
    """Return the metric called `name`."""
    return RECALL if name == RECALL.name else METRICS[name]


def check_metrics(names: Iterable[str]) -> tuple[str, ...]:
    """Return the names, each once. Raises UsageError for an unknown one, and where there is none."""
    chosen = tuple(dict.fromkeys(name.strip() for name in names))
    for name in chosen or ("",):
        if name not in METRICS:
            raise unknown_name("metrics", name, METRICS)
    return chosen


def needed_outputs(names: Iterable[str]) -> tuple[str, ...]:
    """Return what the feature network has to give for the metrics."""
    outputs = (METRICS[name].output for name in names)
    return tuple(dict.fromkeys(output for output in outputs if output is not None))
