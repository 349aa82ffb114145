"""Run an ONNX model with OpenVINO on the CPU: the fast int8 engine where there is no GPU."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from accuquant.errors import MissingDependencyError
from accuquant.runtime.runner import ANY_EXTENT, Array, ModelSpecs, Runner
from accuquant.signature import TensorSpec


class OpenVinoRunner(Runner):
    """An ONNX file (with its external data) compiled for the CPU.

    What stays float runs in float32, and float activations are not quantized behind the recipe's
    back: on some processors OpenVINO would otherwise pick bfloat16, or int8 activations for layers
    with compressed weights, and the same file would give other images on other machines.
    `num_threads` None uses all cores. `cache_dir` keeps compiled models, keyed by their content.
    """

    engine = "openvino"

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        name: str | None = None,
        num_threads: int | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
    ) -> None:
        super().__init__(path, name=name)
        self.num_threads = num_threads
        self.cache_dir = cache_dir
        self._request: Any = None
        self._outputs: tuple[tuple[str, Any], ...] = ()

    def activate_impl(self) -> ModelSpecs:
        """Compile the model and keep one infer request for all calls."""
        try:
            import openvino
        except ImportError as fault:
            raise MissingDependencyError(
                "engine openvino",
                got=f"no usable openvino package ({fault})",
                expected="openvino 2025.0 or newer",
                remedy="Install it: pip install openvino",
            ) from fault
        core = openvino.Core()
        # Compiling the model object rather than its path keys the cache by content: an export that
        # replaces the file cannot meet a stale engine.
        compiled = core.compile_model(core.read_model(self.path), "CPU", self._properties())
        self._request = compiled.create_infer_request()
        self._outputs = tuple((_name(port), port) for port in compiled.outputs)
        return ModelSpecs(
            inputs=tuple(_spec(port) for port in compiled.inputs),
            outputs=tuple(_spec(port) for port in compiled.outputs),
        )

    def infer_impl(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Read the inputs in place; copy the outputs out of the request's buffers."""
        results = self._request.infer(feeds, share_inputs=True, share_outputs=False)
        return {name: results[port] for name, port in self._outputs}

    def deactivate_impl(self) -> None:
        """Release the compiled model."""
        self._request = None
        self._outputs = ()

    def _properties(self) -> dict[str, Any]:
        properties: dict[str, Any] = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "f32",
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,
        }
        if self.num_threads is not None:
            properties["INFERENCE_NUM_THREADS"] = self.num_threads
        if self.cache_dir is not None:
            properties["CACHE_DIR"] = os.fspath(self.cache_dir)
        return properties


def _spec(port: Any) -> TensorSpec:
    shape = tuple(dim.get_length() if dim.is_static else ANY_EXTENT for dim in port.partial_shape)
    return TensorSpec(_name(port), shape, str(port.get_element_type().to_dtype()))


def _name(port: Any) -> str:
    """Return the ONNX name of an input or output.

    A tensor collects the names of those that were optimized away around it (a Cast to its own type),
    and any of them may come first; the node keeps the ONNX name, with a suffix at an output.
    """
    name: str = port.get_node().get_friendly_name().partition("/sink_port_")[0]
    return name if name in port.get_names() else port.get_any_name()
