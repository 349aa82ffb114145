"""Where units are computed is the user's choice; nothing of Ray is loaded where it was not made."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from accuquant.errors import UsageError
from accuquant.units.cluster import Cluster, engine_of
from accuquant.units.units import SERIAL


def no_job() -> Any:
    raise AssertionError


def test_without_a_cluster_this_process_computes() -> None:
    with engine_of(None, no_job, {}, print) as engine:
        assert engine is SERIAL


def test_a_cluster_without_ray_says_which_package_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "accuquant.units.ray_cluster", None)
    with pytest.raises(ModuleNotFoundError), engine_of(Cluster(2), no_job, {}, print):
        raise AssertionError


@pytest.mark.parametrize(
    ("arguments", "named"), [({}, "neither workers nor"), ({"workers": 0}, "--workers: got 0")]
)
def test_a_cluster_that_is_none_is_refused(arguments: dict[str, Any], named: str) -> None:
    with pytest.raises(UsageError, match=named):
        Cluster(**arguments)


@pytest.mark.slow
def test_calibrating_in_one_process_loads_no_ray() -> None:
    code = (
        "import sys, accuquant.calibration.calibrate, accuquant.cli.calibrate, accuquant.units.cluster;"
        "sys.exit(bool({'ray', 'cloudpickle'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=False).returncode == 0
