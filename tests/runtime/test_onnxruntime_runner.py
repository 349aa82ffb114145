from pathlib import Path
from typing import Any

import numpy as np
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
    with pytest.raises(UsageError, match="got 'tpu', expected cpu or cuda or tensorrt or openvino"):
        OnnxRuntimeRunner(model_path, provider="tpu")


@pytest.mark.parametrize(
    ("engine", "package"),
    [
        ("onnxruntime-tensorrt", "onnxruntime-gpu, CUDA and TensorRT"),
        ("onnxruntime-openvino", "onnxruntime-openvino"),
    ],
)
def test_a_provider_of_another_package_is_named_with_it(
    model_path: Path, monkeypatch: pytest.MonkeyPatch, engine: str, package: str
) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(EngineError, match=f"got only CPUExecutionProvider, .*Install {package} in place of"):
        open_runner(model_path, engine)


def test_tensorrt_is_asked_for_int8_and_hands_on_to_cuda(
    model_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def session(path: str, options: Any, providers: list[Any]) -> Any:
        asked.extend(providers)
        return plain

    plain = onnxruntime.InferenceSession(model_path, providers=["CPUExecutionProvider"])
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["TensorrtExecutionProvider"])
    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    with pytest.raises(EngineError, match="provider tensorrt: got only CPUExecutionProvider"):
        OnnxRuntimeRunner(model_path, provider="tensorrt").activate()
    assert asked == [("TensorrtExecutionProvider", {"trt_int8_enable": "1"}), ("CUDAExecutionProvider", {})]


@pytest.mark.skipif(
    "OpenVINOExecutionProvider" not in onnxruntime.get_available_providers(),
    reason="pip install onnxruntime-openvino in place of onnxruntime",
)
def test_openvino_as_a_provider_computes_what_onnx_runtime_computes(model_path: Path) -> None:
    results = []
    for provider in ("cpu", "openvino"):
        with OnnxRuntimeRunner(model_path, provider=provider) as runner:
            rng = np.random.default_rng(0)
            feeds = {
                spec.name: rng.normal(size=[n if isinstance(n, int) else 2 for n in spec.shape]).astype(
                    spec.dtype
                )
                for spec in runner.input_specs
            }
            results.append(runner.infer(feeds))
    for name, expected in results[0].items():
        np.testing.assert_allclose(results[1][name], expected, rtol=1e-3, atol=1e-3)
