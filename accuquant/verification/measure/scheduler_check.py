"""Refuse to verify with a scheduler that the recipe was not calibrated for."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from accuquant.errors import VerificationError

_CLASS = "_class_name"


def scheduler_differences(calibrated: Mapping[str, Any], actual: Mapping[str, Any]) -> list[str]:
    """Return what differs between two diffusers configurations, as "name: calibrated -> actual".

    Keys that begin with an underscore (except the class name) describe the file, not the scheduler. A
    key that only one side has comes from another version of diffusers and is left out.
    """
    calibrated, actual = _plain(calibrated), _plain(actual)
    names = [n for n in calibrated if n in actual and (n == _CLASS or not n.startswith("_"))]
    return [
        f"{name.lstrip('_')}: {calibrated[name]} -> {actual[name]}"
        for name in names
        if calibrated[name] != actual[name]
    ]


def check_scheduler(
    calibrated: Mapping[str, Any], actual: Mapping[str, Any], *, allow_other: bool
) -> tuple[str, ...]:
    """Return notes on the differences; raise VerificationError for them unless `allow_other`.

    Another class, prediction type or noise schedule changes every latent, so that scales learned for
    one say nothing about the other. The number of steps may differ.
    """
    differences = scheduler_differences(calibrated, actual)
    if differences and not allow_other:
        raise VerificationError(
            "scheduler",
            got="; ".join(differences),
            expected="the scheduler that the recipe was calibrated for",
            remedy="Calibrate again with this pipeline, or pass --allow-other-scheduler to go on",
        )
    if not differences:
        return ()
    return (f"The scheduler is not the calibrated one ({'; '.join(differences)}).",)


def scheduler_config(scheduler: Any) -> dict[str, Any]:
    """Return a scheduler's configuration with its class name."""
    return {**dict(scheduler.config), _CLASS: type(scheduler).__name__}


def _plain(config: Mapping[str, Any]) -> dict[str, Any]:
    plain: dict[str, Any] = json.loads(json.dumps(dict(config), default=str))
    return plain
