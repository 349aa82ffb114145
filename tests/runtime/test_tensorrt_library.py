"""Tests of whether an engine fits this machine, and of what TensorRT's refusals mean, without a library."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from accuquant._util.gpu import Gpu
from accuquant.engine_manifest import EngineManifest
from accuquant.errors import EngineError, MissingDependencyError
from accuquant.runtime.tensorrt_library import (
    check_gpu,
    check_version,
    deserialize,
    import_library,
    make_logger,
    refusal,
)  # fmt: skip

ADA = Gpu("RTX 4090", (8, 9), (13, 0))


@pytest.mark.parametrize(
    ("message", "remedy"),
    [
        ("cudaError 35: CUDA driver version is insufficient", "Install or update the NVIDIA driver"),
        ("cudaError 100: no CUDA-capable device is detected", "--engine openvino"),
        ("cudaError 2: out of memory", "build a smaller batch"),
        ("Serialization assertion magic number failed", "Build it again: accuquant build conv.onnx"),
    ],
)
def test_each_refusal_has_its_remedy(
    engine: Path, manifest: EngineManifest, message: str, remedy: str
) -> None:
    error = refusal(engine, [message], manifest)
    assert message in error.got
    assert remedy in error.remedy


def test_an_engine_for_another_gpu_is_refused_with_the_command(
    engine: Path, manifest: EngineManifest
) -> None:
    check_gpu(manifest, ADA, engine)
    with pytest.raises(EngineError, match=r"engine for sm89, expected one for sm86.*--target sm86"):
        check_gpu(manifest, Gpu("RTX 3090", (8, 6), (13, 0)), engine)


@pytest.mark.parametrize(("capability", "runs"), [((8, 6), True), ((12, 0), True), ((7, 5), False)])
def test_a_compatible_engine_runs_on_ampere_and_later(
    engine: Path, manifest: EngineManifest, capability: tuple[int, int], runs: bool
) -> None:
    options = {**manifest.options, "hardware_compatibility": "ampere+"}
    compatible, gpu = replace(manifest, options=options), Gpu("some", capability, (13, 0))
    if runs:
        check_gpu(compatible, gpu, engine)
    else:
        with pytest.raises(EngineError, match="for sm75"):
            check_gpu(compatible, gpu, engine)


def test_an_engine_of_another_version_is_refused_with_the_command(
    engine: Path, manifest: EngineManifest
) -> None:
    check_version(manifest, manifest.version, engine)
    with pytest.raises(EngineError, match=r"expected one of version 9.0, .*accuquant build conv.onnx"):
        check_version(manifest, "9.0", engine)
    check_version(replace(manifest, options={"version_compatible": True}), "9.0", engine)


class Logger:
    """The part of trt.ILogger that a subclass uses."""

    ERROR, INTERNAL_ERROR, WARNING = "error", "internal error", "warning"


class Runtime:
    """A runtime that says `words` and gives `engine`."""

    def __init__(self, logger: Any, words: str, engine: object) -> None:
        self.logger, self.words, self.engine = logger, words, engine

    def deserialize_cuda_engine(self, plan: bytes) -> object:
        self.logger.log(Logger.WARNING, "a plan of " + plan.decode())
        if self.words:
            self.logger.log(Logger.ERROR, self.words)
        return self.engine


def library(words: str, engine: object) -> Any:
    """A stand-in for the module tensorrt."""
    return SimpleNamespace(ILogger=Logger, Runtime=lambda logger: Runtime(logger, words, engine))


def test_an_engine_that_loads_comes_with_its_runtime(engine: Path, manifest: EngineManifest) -> None:
    trt, loaded = library("", object()), None
    runtime, loaded = deserialize(trt, make_logger(trt), engine, manifest)
    assert isinstance(runtime, Runtime)
    assert loaded is runtime.engine
    assert runtime.logger.errors == [], "a warning is no error"


def test_what_tensorrt_says_of_an_engine_that_does_not_load_is_in_the_error(
    engine: Path, manifest: EngineManifest
) -> None:
    trt = library("cudaError 2:\n  out of  memory", None)
    with pytest.raises(EngineError, match=r"\(cudaError 2: out of memory\).*a smaller batch"):
        deserialize(trt, make_logger(trt), engine, manifest)
    silent = SimpleNamespace(ILogger=Logger, Runtime=lambda logger: None)
    with pytest.raises(EngineError, match=r"refusal of tensorrt_rtx \(no reason\).*Build it again"):
        deserialize(silent, make_logger(silent), engine, manifest)


def test_a_library_that_is_missing_or_unknown_is_named_with_its_remedy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "tensorrt_rtx", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'accuquant\[tensorrt-rtx\]'"):
        import_library("tensorrt_rtx")
    with pytest.raises(EngineError, match="library 'os', expected tensorrt or tensorrt_rtx"):
        import_library("os")
