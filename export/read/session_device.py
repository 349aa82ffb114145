"""The device that ONNX Runtime computes on, by the names that --device has everywhere."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from accuquant._util.device_name import check_device_name, no_tf32, unusable_device
from accuquant.errors import last_line

_CPU, _CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"


@dataclass(frozen=True)
class SessionDevice:
    """A device by its name: "cpu", "cuda", "cuda:1", or "auto", a GPU where ONNX Runtime starts on one.

    Products are full float32 unless `tf32` lets an NVIDIA GPU round them. Raises UsageError for a name that
    is unknown or that ONNX Runtime has no provider for, and for TF32 on the CPU.
    """

    name: str = "cpu"
    tf32: bool = False

    def __post_init__(self) -> None:
        check_device_name(self.name)
        if self.name == "mps":
            raise unusable_device(
                self.name, "a device that ONNX Runtime does not observe on", "auto, cpu, cuda, cuda:N"
            )
        if self.name == "cpu" and self.tf32:
            raise no_tf32(self.name)

    def open(self, onnxruntime: Any, model: bytes, options: Any) -> Any:
        """Return an InferenceSession of the serialized `model`.

        Raises UsageError where the device was named and ONNX Runtime does not start on it; it would go on
        with the CPU without a word. What is wrong with the graph, ONNX Runtime raises.
        """
        if self.name == "cpu":
            return onnxruntime.InferenceSession(model, options, providers=[_CPU])
        available = onnxruntime.get_available_providers()
        session, fault = None, f"an ONNX Runtime without {_CUDA} (pip install onnxruntime-gpu)"
        if _CUDA in available:
            session, fault = self._on_cuda(onnxruntime, model, options)
        if session is not None:
            return session
        if self.name != "auto":
            raise unusable_device(self.name, fault, "cpu")
        if self.tf32:
            raise no_tf32("cpu")
        return onnxruntime.InferenceSession(model, options, providers=[_CPU])

    def _on_cuda(self, onnxruntime: Any, model: bytes, options: Any) -> tuple[Any, str]:
        """Return the session, or None and why there is none."""
        settings = {
            "device_id": self.name.partition(":")[2] or "0",
            "use_tf32": str(int(self.tf32)),
            "cudnn_conv_algo_search": "HEURISTIC",  # "EXHAUSTIVE", the default, chooses by times
        }
        options.use_deterministic_compute = True
        try:
            # operators that CUDA lacks run on the CPU
            session = onnxruntime.InferenceSession(
                model, options, providers=[(_CUDA, settings), _CPU], enable_fallback=0
            )
        except Exception as fault:  # ONNX Runtime has exception classes of its own
            return None, f"a device that fails: {last_line(fault)}"
        if _CUDA not in session.get_providers():
            return None, "a CUDA provider that does not start: no driver, no GPU, or other CUDA libraries"
        return session, ""


CPU_SESSION = SessionDevice()
