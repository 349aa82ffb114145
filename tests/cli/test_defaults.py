"""The command line spells out defaults so that --help stays light; here they meet the library's."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest

from accuquant.calibration import CalibrationSettings
from accuquant.calibration import calibrate as library_calibrate
from accuquant.cli import calibrate, verify
from accuquant.cli._cluster import take_cluster
from accuquant.cli._limits import LIMITS, limit
from accuquant.cli._options import ENGINES, take_weights_options
from accuquant.cli._source import take_loading
from accuquant.cli._task import take_task
from accuquant.errors import UsageError
from accuquant.pipelines.loading import Loading
from accuquant.pipelines.task import Task
from accuquant.runtime.open_runner import ENGINE_NAMES
from accuquant.verification.report.thresholds import Thresholds
from accuquant.verification.verify import verify as library_verify


def test_calibrate_has_the_defaults_of_the_library() -> None:
    given = calibrate.command.make_context("calibrate", ["source"]).params
    del given["source"], given["output"], given["dry_run"], given["json_file"], given["decoder"]
    assert take_task(given) == Task()
    assert given.pop("loras") == ()
    assert take_cluster(given) is None
    assert take_loading(given) == Loading()
    assert (given.pop("device"), given.pop("tf32")) == ("auto", False)
    assert take_weights_options(given) == {"as_stored": True, "offload": False}
    assert given.pop("checkpoint") is inspect.signature(library_calibrate).parameters["checkpoint"].default
    assert CalibrationSettings(**given) == CalibrationSettings()
    assert given == vars(CalibrationSettings())


@pytest.mark.parametrize("name", calibrate.GRADIENTS)
def test_calibrate_offers_gradients_that_exist(name: str) -> None:
    assert CalibrationSettings(gradient=name).gradient == name


@pytest.mark.parametrize("name", calibrate.OBSERVERS)
def test_calibrate_offers_observers_that_exist(name: str) -> None:
    assert CalibrationSettings(observer=name).observer == name


@pytest.mark.parametrize("name", calibrate.ROUNDINGS)
def test_calibrate_offers_roundings_that_exist(name: str) -> None:
    assert CalibrationSettings(rounding=name).rounding == name


@pytest.mark.parametrize("name", calibrate.EQUALIZERS)
def test_calibrate_offers_equalizers_that_exist(name: str) -> None:
    assert CalibrationSettings(equalize=name).equalize == name


def test_calibrate_offers_all_choices() -> None:
    with pytest.raises(UsageError, match="expected " + " or ".join(calibrate.GRADIENTS)):
        CalibrationSettings(gradient="none")
    with pytest.raises(UsageError, match="expected " + " or ".join(calibrate.OBSERVERS)):
        CalibrationSettings(observer="none")
    with pytest.raises(UsageError, match="expected " + " or ".join(calibrate.ROUNDINGS)):
        CalibrationSettings(rounding="none")
    with pytest.raises(UsageError, match="expected " + " or ".join(calibrate.EQUALIZERS)):
        CalibrationSettings(equalize="none")


def test_verify_has_the_defaults_of_the_library(tmp_path: Path) -> None:
    given = verify.command.make_context("verify", [str(tmp_path), "--reference", "source"]).params
    assert {name: given.pop(name) for name in LIMITS} == vars(Thresholds())
    assert take_task(given) == Task()
    assert given.pop("loras") == ()
    assert take_loading(given) == Loading()
    assert (given.pop("device"), given.pop("tf32")) == ("auto", False)
    assert take_weights_options(given) == {"as_stored": True, "offload": False}
    assert take_cluster(given) is None
    parameters = inspect.signature(library_verify).parameters
    for name in set(given) - {"folder", "reference", "json_file", "html_file"}:
        assert given[name] == parameters[name].default, name


def test_a_limit_is_a_number_or_none() -> None:
    assert limit("none") is None
    assert limit("0.5") == 0.5


def test_the_engines_are_those_of_the_runtime() -> None:
    assert ENGINES == ENGINE_NAMES
