"""Put the result of an evaluation together: what was measured, and what describes it."""

from __future__ import annotations

from typing import Any

from accuquant.verification.measure.metrics import Curve
from accuquant.verification.measure.subject import Subject
from accuquant.verification.report import facts

from .branches import INT8, OTHER
from .evaluation_settings import EvaluationSettings
from .figures import Judge
from .gathered import Gathered
from .metrics import METRICS
from .result import Evaluation

#: Named in the settings by the folder's own name: the paths of a machine are nobody else's business.
_PATHS = ("real", "against", "keep_images")


def assemble(
    subject: Subject,
    settings: EvaluationSettings,
    judge: Judge,
    gathered: Gathered,
    *,
    image_shape: tuple[int, ...],
    features: str,
    notes: tuple[str, ...],
) -> Evaluation:
    """Return the result: every figure of `settings.metrics` on images (C, H, W) of `image_shape`."""
    metrics = settings.metrics
    single = [name for name in metrics if not METRICS[name].sets]
    figures = tuple(judge.figures(metrics))
    return Evaluation(
        model=facts.model_facts(subject.reference, image_shape),
        settings=_settings(subject, settings, features),
        versions=facts.versions(),
        figures=figures,
        differences=tuple(judge.differences(metrics)),
        counts=gathered.edges[1:],
        by_count={name: tuple(judge.curve(METRICS[name]).tolist()) for name in metrics},
        by_step=_curves(settings, gathered),
        images={
            f"{f.metric}.{f.branch}": tuple(judge.images(f.metric, f.branch).tolist())
            for f in figures
            if f.metric in single
        },
        notes=notes + _notes(settings),
    )


def _settings(subject: Subject, settings: EvaluationSettings, features: str) -> dict[str, Any]:
    given = vars(settings) | {
        name: None if getattr(settings, name) is None else getattr(settings, name).name for name in _PATHS
    }
    del given["weights"], given["trust_engines"], given["allow_other_scheduler"]
    return {
        "folder": subject.folder.name,
        **given,
        "metrics": list(settings.metrics),
        "class_labels": None if settings.class_labels is None else list(settings.class_labels),
        "features": features,
        "steps": subject.settings.steps,
        "bits": facts.bits_of(subject.recipe),
        "lowering": subject.manifest.lowering,
        "precision_around_int8": subject.manifest.precision,
        "scheduler": type(subject.reference.scheduler).__name__,
        "machine": facts.machine(),
    }


def _curves(settings: EvaluationSettings, gathered: Gathered) -> dict[str, Curve]:
    branches = (INT8,) if settings.against is None else (INT8, OTHER)
    return {branch: gathered.step_errors(branch) for branch in branches}


def _notes(settings: EvaluationSettings) -> tuple[str, ...]:
    distances = [METRICS[name].title for name in settings.metrics if METRICS[name].output is not None]
    if distances and settings.num_images < 10_000:
        return (
            f"Figures of sets ({', '.join(distances)}) depend on the number of images: "
            f"{settings.num_images} are fewer than the 10,000 to 50,000 of published figures, "
            "so compare them only with figures of as many.",
        )
    return ()
