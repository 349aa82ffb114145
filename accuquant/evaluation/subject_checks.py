"""Whether an export, another one, the metrics and the pipeline fit together: said before anything runs."""

from __future__ import annotations

from pathlib import Path

from accuquant.errors import UsageError, VerificationError
from accuquant.manifest import Manifest
from accuquant.pipelines.source import Source
from accuquant.pipelines.starts import from_noise_alone
from accuquant.pipelines.task import Task
from accuquant.verification.measure.feature_networks import FeatureNetwork
from accuquant.verification.measure.subject import Subject
from accuquant.verification.measure.video import is_video
from accuquant.verification.verification_settings import VerificationSettings

from .evaluation_settings import EvaluationSettings
from .metrics import METRICS, needed_outputs
from .real_images import RealImages

_CLASSES = "class_labels"
#: Metrics that compare two videos as they compare two images.
_OF_VIDEOS = ("psnr", "ssim")


def load_subject(folder: Path, reference: Source, settings: EvaluationSettings, steps: int) -> Subject:
    """Return an exported folder with what `verify` checks of it."""
    asked = VerificationSettings(
        engine=settings.engine,
        num_images=settings.num_images,
        steps=steps,
        seed=settings.seed,
        batch_size=settings.batch_size,
        features=settings.features,
        allow_other_scheduler=settings.allow_other_scheduler,
    )
    return Subject.load(folder, reference, asked)


def check_other(other: Path, manifest: Manifest) -> None:
    """Raise VerificationError for an export of another model: its images would be those of other seeds."""
    found = Manifest.load(other)
    if found.model_hash != manifest.model_hash:
        raise VerificationError(
            f"--against '{other}'",
            got=f"an export of another model ({found.source or 'unnamed'})",
            expected=f"an export of the same pipeline ({manifest.source or 'unnamed'})",
            remedy="Compare exports of one pipeline: image by image, from the same seeds",
        )


def check_task(reference: Source, task: Task, settings: EvaluationSettings) -> None:
    """Raise UsageError for metrics that need prompts where there are none, and for labels that do not fit."""
    wanted = [name for name in settings.metrics if METRICS[name].prompts]
    if wanted and not task.prompts:
        raise UsageError(
            f"--metrics {','.join(wanted)}",
            got="no prompts",
            expected="a pipeline that takes prompts, and --prompts",
            remedy="Give --prompts FILE, or leave these metrics out",
        )
    labels = settings.class_labels
    if labels is None:
        return
    names = [spec.name for spec in reference.signature.conditioning]
    classes = getattr(reference.network.config, "num_class_embeds", None)
    if not from_noise_alone(reference) or _CLASSES not in names:
        raise UsageError(
            "--class-labels",
            got="a choice",
            expected="none: this is not a class-conditional DDIM or DDPM pipeline",
            remedy="Leave it out",
        )
    wrong = [label for label in labels if not 0 <= label < int(classes or 2**31)]
    if wrong or not labels:
        raise UsageError(
            "--class-labels",
            got=f"label {wrong[0]}" if wrong else "none",
            expected=f"labels from 0 to {int(classes or 2**31) - 1}",
            remedy="Give labels that the network was trained with",
        )


def check_videos(shape: tuple[int, ...], settings: EvaluationSettings) -> None:
    """Raise UsageError for metrics of images and for kept PNG files where samples are videos [F, C, H, W]."""
    if not is_video(shape):
        return
    others = [name for name in settings.metrics if name not in _OF_VIDEOS]
    if not others and settings.keep_images is None:
        return
    raise UsageError(
        f"--metrics {','.join(others)}" if others else "--keep-images",
        got=f"videos of {shape[0]} frames",
        expected=f"images; of videos, --metrics {','.join(_OF_VIDEOS)} without --keep-images",
        remedy="Leave it out; `accuquant verify` measures FID2FP32 over frames, and `accuquant sample` saves "
        "videos",
    )


def check_features(extractor: FeatureNetwork | None, settings: EvaluationSettings) -> None:
    """Raise UsageError where the feature network does not give what the metrics need."""
    for output in needed_outputs(settings.metrics):
        names = [name for name in settings.metrics if METRICS[name].output == output]
        if extractor is None:
            raise UsageError(
                f"--metrics {','.join(names)}",
                got=f"no feature network (--features {settings.features})",
                expected="one that fits the images",
                remedy="pip install torch-fidelity for --features inception, or name a function of yours",
            )
        if output not in extractor.outputs:
            raise UsageError(
                f"--metrics {','.join(names)}",
                got=f"--features {extractor.name}, which gives {' and '.join(extractor.outputs)}",
                expected=f"a feature network that gives {output}",
                remedy="Give --features inception, or leave these metrics out",
            )


def check_real(real: RealImages, settings: EvaluationSettings) -> None:
    """Raise UsageError where what came of the real images is not enough for the metrics."""
    for name in settings.metrics:
        metric = METRICS[name]
        enough = real.count > 1 or (metric.sets and metric.output in real.statistics)
        if metric.real and not enough:
            raise UsageError(
                f"--metrics {name}",
                got=f"--real '{real.path}' without what it compares with",
                expected="real images, or statistics of the same kind (mu_s and sigma_s for sfid)",
                remedy="Give a folder of images or an .npz with images, or leave the metric out",
            )
