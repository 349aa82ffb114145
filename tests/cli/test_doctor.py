from __future__ import annotations

import json
import sys
from collections.abc import Callable

import pytest

from accuquant import doctor
from accuquant._util.gpu import Gpu
from accuquant.cli.main import main
from accuquant.doctor import Finding
from accuquant.errors import AccuQuantError, EngineError, MissingDependencyError


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


def _answer(answer: Gpu | AccuQuantError) -> Callable[[], Gpu]:
    def find() -> Gpu:
        if isinstance(answer, AccuQuantError):
            raise answer
        return answer

    return find


@pytest.mark.parametrize(
    ("answer", "status", "detail"),
    [
        (Gpu("NVIDIA L4", (8, 9), (13, 3)), "ok", "NVIDIA L4 (sm89), driver for CUDA 13.3"),
        (
            EngineError("GPU", got="no NVIDIA driver", expected="one", remedy="x"),
            "absent",
            "no NVIDIA driver",
        ),
        (
            MissingDependencyError("CUDA", got="no package", expected="one", remedy="x"),
            "absent",
            "no package",
        ),
    ],
)
def test_asks_the_driver_for_a_gpu(
    monkeypatch: pytest.MonkeyPatch, answer: Gpu | AccuQuantError, status: str, detail: str
) -> None:
    monkeypatch.setattr(doctor, "find_gpu", _answer(answer))
    findings = {finding.subject: finding for finding in doctor.examine()}
    assert findings["NVIDIA GPU"].status == status
    assert detail in findings["NVIDIA GPU"].detail


@pytest.mark.parametrize(
    ("gpu", "tensorrt", "works"),
    [("ok", "ok", True), ("ok", "absent", False), ("absent", "ok", False), ("warning", "ok", False)],
)
def test_gpu_wants_a_gpu_and_tensorrt(gpu: doctor.Status, tensorrt: doctor.Status, works: bool) -> None:
    findings = [Finding("NVIDIA GPU", gpu, ""), Finding("TensorRT", tensorrt, "")]
    assert doctor.works(findings, gpu=True) is works
    assert doctor.works(findings)


def test_the_option_gpu_exits_with_1_without_a_gpu(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fault = EngineError("GPU", got="no NVIDIA driver", expected="one", remedy="Install it")
    monkeypatch.setattr(doctor, "find_gpu", _answer(fault))
    assert main(["doctor", "--gpu"]) == 1
    assert "TensorRT engines cannot be run here" in capsys.readouterr().out
