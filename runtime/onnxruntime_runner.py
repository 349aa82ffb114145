"""Run an ONNX model with ONNX Runtime: the portable reference, on the CPU or by another provider."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from accuquant.errors import EngineError, MissingDependencyError, UsageError
from accuquant.networks.signature import TensorSpec
from accuquant.runtime.runner import ANY_EXTENT, Array, ModelSpecs, Runner


@dataclass(frozen=True)
class _Provider:
    """An execution provider: its name, the package that brings it, what else it needs, its options.

    Nodes that it does not take go to `others`, and at last to the CPU.
    """

    name: str
    package: str
    needs: str = ""
    options: Mapping[str, str] = field(default_factory=dict)
    others: tuple[str, ...] = ()


_PROVIDERS = {
    "cpu": _Provider("CPUExecutionProvider", "onnxruntime"),
    "cuda": _Provider("CUDAExecutionProvider", "onnxruntime-gpu", " and its CUDA libraries"),
    "tensorrt": _Provider(
        "TensorrtExecutionProvider",
        "onnxruntime-gpu",
        ", CUDA and TensorRT",
        {"trt_int8_enable": "1"},  # without it, it computes QDQ pairs in float
        ("CUDAExecutionProvider",),
    ),
    "openvino": _Provider(
        "OpenVINOExecutionProvider", "onnxruntime-openvino", options={"device_type": "CPU"}
    ),
}
_DTYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(double)": "float64",
    "tensor(int32)": "int32",
    "tensor(int64)": "int64",
    "tensor(bool)": "bool",
}


class OnnxRuntimeRunner(Runner):
    """An ONNX file (with its external data) in an InferenceSession.

    `provider` is "cpu", "cuda", "tensorrt" or "openvino". One that is missing or does not start is an error:
    ONNX Runtime alone would run on the CPU without a word. Note that CUDA runs QDQ pairs in float.
    `num_threads` None uses all cores.
    """

    engine = "onnxruntime"

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        name: str | None = None,
        provider: str = "cpu",
        num_threads: int | None = None,
    ) -> None:
        super().__init__(path, name=name)
        if provider not in _PROVIDERS:
            raise UsageError(
                "ONNX Runtime provider",
                got=repr(provider),
                expected=" or ".join(_PROVIDERS),
                remedy="Choose one of these",
            )
        self.provider = provider
        self.num_threads = num_threads
        self._session: Any = None
        self._outputs: list[str] = []

    def activate_impl(self) -> ModelSpecs:
        """Create the session on the one provider that was asked for."""
        try:
            import onnxruntime
        except ImportError as fault:
            raise MissingDependencyError(
                "engine onnxruntime",
                got=f"no usable onnxruntime package ({fault})",
                expected="onnxruntime 1.20 or newer",
                remedy=f"Install it: pip install {self._package}",
            ) from fault
        wanted = _PROVIDERS[self.provider]
        if wanted.name not in onnxruntime.get_available_providers():
            raise self._provider_missing(", ".join(onnxruntime.get_available_providers()))
        options = self.session_options(onnxruntime)
        providers = [(wanted.name, dict(wanted.options)), *((other, {}) for other in wanted.others)]
        try:
            session = onnxruntime.InferenceSession(os.fspath(self.path), options, providers=providers)
        except onnxruntime.capi.onnxruntime_pybind11_state.NotImplemented as fault:
            raise self._no_kernel(str(fault)) from fault
        if wanted.name not in session.get_providers():
            raise self._provider_missing(", ".join(session.get_providers()))
        session.disable_fallback()
        self._session = session
        self._outputs = [value.name for value in session.get_outputs()]
        return ModelSpecs(
            inputs=tuple(_spec(value) for value in session.get_inputs()),
            outputs=tuple(_spec(value) for value in session.get_outputs()),
        )

    def session_options(self, onnxruntime: Any) -> Any:
        """Return the options of the session."""
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        # a float product with int8 weights would round its activations to int8 as well, unasked
        options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
        if self.num_threads is not None:
            options.intra_op_num_threads = self.num_threads
        return options

    def infer_impl(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Run the session, which allocates its outputs anew."""
        return dict(zip(self._outputs, self._session.run(self._outputs, feeds), strict=True))

    def deactivate_impl(self) -> None:
        """Release the session."""
        self._session = None

    @property
    def _package(self) -> str:
        return _PROVIDERS[self.provider].package

    def _no_kernel(self, said: str) -> EngineError:
        """Return the error for a graph of types that ONNX Runtime does not compute, above all bfloat16."""
        missing = said.partition("Could not find an implementation for ")[2].strip() or said
        return EngineError(
            f"model '{self.path}'",
            got=f"no kernel for {' '.join(missing.split())[:150]}",
            expected=f"a graph that ONNX Runtime {self.provider} can run; it computes no bfloat16",
            remedy="Run it with --engine openvino or tensorrt, or export with --precision fp16 or fp32",
        )

    def _provider_missing(self, available: str) -> EngineError:
        return EngineError(
            f"ONNX Runtime provider {self.provider}",
            got=f"only {available}",
            expected=_PROVIDERS[self.provider].name,
            remedy=f"Install {self._package}{_PROVIDERS[self.provider].needs} in place of other onnxruntime "
            "packages, or use --engine onnxruntime (CPU)",
        )


def _spec(value: Any) -> TensorSpec:
    if value.type not in _DTYPES:
        raise EngineError(
            f"tensor '{value.name}'",
            got=value.type,
            expected=", ".join(_DTYPES),
            remedy="Export the network again with `accuquant export`",
        )
    shape = tuple(extent if isinstance(extent, int | str) else ANY_EXTENT for extent in value.shape)
    return TensorSpec(value.name, shape, _DTYPES[value.type])
