"""The device of ONNX Runtime, with a CUDA provider that is pretended: it computes on the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from foreign_graphs import save, tiny_network

from accuquant.errors import UsageError
from accuquant.export.read import float_session
from accuquant.export.read.session_device import SessionDevice
from accuquant.observation.observe_onnx import observe_onnx

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"


class Pretended:
    """An onnxruntime whose CUDA provider starts, or does not; `asked` is what sessions were made with."""

    def __init__(self, *, starts: bool = True, fault: str = "") -> None:
        self.starts, self.fault = starts, fault
        self.asked: list[tuple[Any, bool]] = []
        self.SessionOptions = onnxruntime.SessionOptions
        self.GraphOptimizationLevel = onnxruntime.GraphOptimizationLevel

    def get_available_providers(self) -> list[str]:
        return [CUDA, CPU]

    def InferenceSession(  # noqa: N802
        self, model: bytes, options: Any, *, providers: Any, enable_fallback: int = 1
    ) -> Any:
        self.asked.append((providers[0], options.use_deterministic_compute))
        on_cuda = providers[0] != CPU
        assert not (on_cuda and enable_fallback), "it would print, and go on with the CPU"
        if on_cuda and self.fault:
            raise RuntimeError(self.fault)
        session = onnxruntime.InferenceSession(model, options, providers=[CPU])
        if on_cuda and self.starts:
            session.get_providers = lambda: [CUDA, CPU]
        return session


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    return save(tiny_network(), tmp_path / "float.onnx")


def pretend(monkeypatch: pytest.MonkeyPatch, **changes: Any) -> Pretended:
    pretended = Pretended(**changes)
    monkeypatch.setattr(float_session, "load_onnxruntime", lambda: pretended)
    return pretended


@pytest.mark.parametrize(("name", "number"), [("auto", "0"), ("cuda", "0"), ("cuda:1", "1")])
def test_scales_are_observed_on_the_gpu_and_are_the_cpus(
    graph: Path, monkeypatch: pytest.MonkeyPatch, name: str, number: str
) -> None:
    wanted = observe_onnx(graph)
    pretended = pretend(monkeypatch)
    recipe = observe_onnx(graph, device=name)
    (((provider, settings), deterministic),) = pretended.asked
    assert (provider, settings["device_id"], settings["use_tf32"]) == (CUDA, number, "0")
    assert deterministic
    for name, layer in wanted.layers.items():
        np.testing.assert_array_equal(recipe.layers[name].activation_scale, layer.activation_scale)


def test_tf32_is_told_to_the_provider(graph: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretended = pretend(monkeypatch)
    observe_onnx(graph, device="cuda", tf32=True)
    assert pretended.asked[0][0][1]["use_tf32"] == "1"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"starts": False}, "a CUDA provider that does not start"),
        (
            {"fault": "CUDA failure 100: no CUDA-capable device is detected"},
            "a device that fails: CUDA failure 100",
        ),
    ],
)
def test_a_gpu_that_fails_is_an_error_where_it_was_named_and_not_taken_by_auto(
    graph: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], reason: str
) -> None:
    pretended = pretend(monkeypatch, **changes)
    with pytest.raises(UsageError, match=rf"--device cuda: got {reason}.*Give --device cpu"):
        observe_onnx(graph, device="cuda")
    observe_onnx(graph, device="auto")
    assert pretended.asked[-1][0] == CPU
    with pytest.raises(UsageError, match=r"--tf32: got the device cpu"):
        observe_onnx(graph, device="auto", tf32=True)


@pytest.mark.skipif(CUDA in onnxruntime.get_available_providers(), reason="there is a CUDA provider")
def test_an_onnx_runtime_without_cuda_is_named(graph: Path) -> None:
    with pytest.raises(
        UsageError, match=r"--device cuda:1: got an ONNX Runtime without CUDA.*onnxruntime-gpu"
    ):
        observe_onnx(graph, device="cuda:1")


def test_names_that_cannot_be_are_refused_before_anything_is_read() -> None:
    with pytest.raises(UsageError, match=r"--device tpu: got an unknown name, expected auto, cpu"):
        SessionDevice("tpu")
    with pytest.raises(UsageError, match=r"--device mps: got a device that ONNX Runtime"):
        SessionDevice("mps")
    with pytest.raises(UsageError, match=r"--tf32: got the device cpu, expected an NVIDIA GPU"):
        SessionDevice("cpu", tf32=True)


def test_memory_that_runs_out_names_the_inputs_and_the_device(
    graph: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(*_: object) -> None:
        raise RuntimeError("bfc_arena.cc:359: Failed to allocate memory for requested buffer of size 9")

    monkeypatch.setattr(float_session.FloatSession, "run", run)
    with pytest.raises(
        UsageError, match=r"no memory left for .* on the device cpu.* smaller batch, or --device"
    ):
        observe_onnx(graph)


@pytest.mark.gpu
def test_scales_observed_on_cuda_are_the_cpus_within_float_rounding(graph: Path) -> None:
    if CUDA not in onnxruntime.get_available_providers():
        pytest.skip("an onnxruntime without CUDA")
    there, here = observe_onnx(graph, device="cuda"), observe_onnx(graph)
    for name, layer in here.layers.items():
        np.testing.assert_allclose(there.layers[name].activation_scale, layer.activation_scale, rtol=0.05)
