from __future__ import annotations

import json
import sys

import pytest

from accuquant import doctor
from accuquant.cli.main import main
from accuquant.doctor import Finding


def test_finds_a_working_installation_here(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json", "-"]) == 0
    captured = capsys.readouterr()
    findings = {item["subject"]: item for item in json.loads(captured.out)}
    assert findings["OpenVINO engine"]["status"] == "ok"
    assert "CPU" in findings["OpenVINO engine"]["detail"]
    assert findings["ONNX Runtime engine"]["status"] == "ok"
    assert "AccuQuant works here." in captured.err


def test_exits_with_1_when_openvino_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    assert main(["doctor"]) == 1
    assert "cannot be run here" in capsys.readouterr().out


def test_a_broken_optional_package_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    def crash() -> str:
        raise OSError("libcudart.so.13: cannot open shared object file")

    monkeypatch.setattr(doctor, "_TRIALS", (("TensorRT", "tensorrt", crash),))
    last = doctor.examine()[-1]
    assert (last.subject, last.status) == ("TensorRT", "warning")
    assert "libcudart.so.13" in last.detail
    assert "force-reinstall tensorrt" in last.remedy
    assert doctor.works([last])


def test_an_engine_that_computes_nonsense_is_not_ok(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_OUTPUT", doctor._OUTPUT + 1)
    findings = {finding.subject: finding for finding in doctor.examine()}
    assert findings["OpenVINO engine"].status == "broken"
    assert findings["ONNX Runtime engine"].status == "warning"


def test_a_missing_package_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_PACKAGES", {"no-such-package": "gpu"})
    assert (
        Finding("no-such-package", "absent", "not installed", "pip install 'accuquant[gpu]'")
        in doctor.examine()
    )


def test_low_disk_space_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_ROOMY", 2**80)
    findings = {finding.subject: finding for finding in doctor.examine()}
    assert findings["disk"].status == "warning"
    assert "free some space" in findings["disk"].remedy
