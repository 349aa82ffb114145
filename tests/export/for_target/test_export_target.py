"""What an export is for."""

from __future__ import annotations

import pytest

from accuquant._util.gpu import Gpu
from accuquant.engines import Target
from accuquant.errors import EngineError, MissingDependencyError, UsageError
from accuquant.export.for_target import export_target as module
from accuquant.export.for_target.export_target import ExportTarget, resolve_target

HOPPER = Gpu("H100", (9, 0), (13, 0))


@pytest.fixture
def with_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "find_gpu", lambda: HOPPER)


@pytest.fixture
def without_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> Gpu:
        raise EngineError("GPU", got="no NVIDIA driver", expected="a GPU", remedy="Install the driver")

    monkeypatch.setattr(module, "find_gpu", fail)


def fail_to_find_a_library(name: str = "auto") -> None:
    raise MissingDependencyError(f"backend {name}", got="no such package", expected="one", remedy="Install")


@pytest.mark.usefixtures("with_gpu")
def test_a_usable_gpu_is_the_default_and_has_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "resolve_backend", lambda: None)
    here = ExportTarget(Target(9, 0))
    assert resolve_target(None) == resolve_target("gpu") == resolve_target("sm90") == here
    assert here.is_here
    assert resolve_target("sm89") == ExportTarget(Target(8, 9), is_here=False)
    assert resolve_target("cpu") == ExportTarget()


@pytest.mark.usefixtures("with_gpu")
def test_a_gpu_without_tensorrt_is_not_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "resolve_backend", fail_to_find_a_library)
    assert resolve_target(None).name == "cpu"


@pytest.mark.usefixtures("without_gpu")
def test_without_a_gpu_the_cpu_is_the_default() -> None:
    assert resolve_target(None).name == "cpu"
    assert resolve_target("sm120").name == "sm120"
    with pytest.raises(EngineError, match=r"--target gpu: got no NVIDIA driver.* e\.g\. --target sm89"):
        resolve_target("gpu")


@pytest.mark.usefixtures("without_gpu")
@pytest.mark.parametrize("name", ["sm90", "cuda", ""])
def test_an_unknown_target_is_refused_with_the_names(name: str) -> None:
    with pytest.raises(UsageError, match=r"expected cpu or gpu or sm75 or .* or sm121"):
        resolve_target(name)
