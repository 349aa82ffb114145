"""Put what a rival method found into a recipe."""

from __future__ import annotations

from accuquant.calibration.preparation import calibration_of, plain_config
from accuquant.pipelines.task import Task
from accuquant.recipe import Recipe

from .method import Found, Run


def rival_recipe(run: Run, task: Task, found: Found) -> Recipe:
    """Return the recipe of `run`; `calibration.method_facts` holds what the method says of itself."""
    source, settings = run.source, run.settings
    return Recipe(
        groups=run.groups,
        layers=dict(found.layers),
        signature=source.signature,
        scheduler=plain_config(dict(source.scheduler.config)),
        model_hash=source.model_hash,
        calibration={
            **calibration_of(source, settings, task, run.process, run.placement),
            "method_facts": dict(found.facts),
        },
        correction=found.correction,
        folds=found.folds,
    )
