from pathlib import Path

import onnxruntime
import pytest

from accuquant.errors import EngineError, UsageError
from accuquant.runtime.onnxruntime_runner import OnnxRuntimeRunner
from accuquant.runtime.open_runner import open_runner


def test_a_missing_cuda_provider_is_an_error(model_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(
        EngineError, match=r"got only CPUExecutionProvider, .*pip install|Install onnxruntime-gpu"
    ):
        open_runner(model_path, "onnxruntime-cuda")


def test_a_cuda_provider_that_does_not_start_is_an_error(
    model_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = onnxruntime.InferenceSession(model_path, providers=["CPUExecutionProvider"])
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr(onnxruntime, "InferenceSession", lambda *args, **kwargs: session)
    with pytest.raises(EngineError, match="provider cuda: got only CPUExecutionProvider"):
        OnnxRuntimeRunner(model_path, provider="cuda").activate()


def test_refuses_an_unknown_provider(model_path: Path) -> None:
    with pytest.raises(UsageError, match="got 'tpu', expected cpu or cuda"):
        OnnxRuntimeRunner(model_path, provider="tpu")
