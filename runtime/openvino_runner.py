"""Run an ONNX model with OpenVINO: on the CPU, the fast int8 engine where there is no GPU, or elsewhere."""

from __future__ import annotations

import logging
import os
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from accuquant.errors import EngineError, MissingDependencyError, unknown_name
from accuquant.networks.signature import TensorSpec
from accuquant.runtime.cpu_forms.form import AS_WRITTEN, CpuForm, FloatPrecision
from accuquant.runtime.cpu_forms.form_choice import FormChoice
from accuquant.runtime.executed_nodes import ExecutedNode, executed_nodes
from accuquant.runtime.int8_use import Int8Use, int8_use, warn_once
from accuquant.runtime.runner import ANY_EXTENT, Array, ModelSpecs, Runner

#: Sets of input shapes that stay compiled where calls alternate between them.
_SHAPES_KEPT = 2
_PRECISIONS = ("auto", "fp32", "bf16")
_CPU = "CPU"
#: Devices that choose among others.
_META = ("AUTO", "HETERO", "MULTI", "BATCH")
_logger = logging.getLogger(__name__)


class OpenVinoRunner(Runner):
    """An ONNX file (with its external data) compiled for a `device`, by default the CPU.

    What stays float runs in float32, and float activations are not quantized behind the recipe's
    back: on some processors OpenVINO would otherwise pick bfloat16, or int8 activations for layers
    with compressed weights, and the same file would give other images on other machines.

    A model with dynamic extents is compiled for the shapes of a call, at the first call with them:
    OpenVINO computes the same with extents that it knows in fewer and faster kernels. What was compiled
    for the shapes before is released; once shapes come back, the two latest sets stay. `num_threads` None
    uses all cores. `cache_dir` keeps compiled models, keyed by their content and shapes. `profile` measures
    what each kernel takes, for `executed` and `profiled`; a run without it is faster. `num_streams` calls of
    `compiled` run side by side, with an equal part of the threads each; None gives one call all threads.

    A file that `accuquant export` wrote is rewritten in memory into the `form` that suits this processor,
    which computes the same function; None chooses it at the first call (cpu_forms.select). Without
    `rewriting` it is run operator by operator; a form that is named is taken all the same. `choice` says
    what was taken and why.

    On a `device` that is not the CPU ("GPU", "GPU.1", "NPU", "AUTO", ...) the file is run as it is written,
    and what stays float in the precision that the plugin prefers, float16 on Intel's GPUs and NPUs.

    `precision` "bf16" lets what is float run in bfloat16: activate() raises EngineError on a processor
    without it. "auto" does where `accuquant verify` found here that it is faster and that images keep.
    """

    engine = "openvino"

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        name: str | None = None,
        num_threads: int | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        precision: FloatPrecision | Literal["auto"] = "fp32",
        form: CpuForm | None = None,
        profile: bool = False,
        num_streams: int | None = None,
        rewriting: bool = True,
        device: str = "CPU",
    ) -> None:
        super().__init__(path, name=name)
        if precision not in _PRECISIONS:
            raise unknown_name("OpenVINO precision", str(precision), _PRECISIONS)
        self.num_threads = num_threads
        self.cache_dir = cache_dir
        self.precision = precision
        self.profile = profile
        self.num_streams = num_streams
        self.form = form
        self.rewriting = rewriting and device == _CPU
        self.device = device
        self.choice: FormChoice | None = None
        self._core: Any = None
        self._model: Any = None
        self._file: tuple[int, int] | None = None
        self._requests: OrderedDict[tuple[tuple[int, ...], ...], Any] = OrderedDict()
        self._released: set[tuple[tuple[int, ...], ...]] = set()
        self._shapes_kept = 1
        self._use: Int8Use | None = None

    @property
    def int8_use(self) -> Int8Use | None:
        """What became of the calibrated layers in what was compiled last; None before, and without pairs."""
        return self._use

    def compiled(self, feeds: Mapping[str, Array]) -> Any:
        """Return the openvino.CompiledModel for the shapes of `feeds`, for calls that overlap."""
        self.prepare(feeds)
        return self._last_request().get_compiled_model()

    def executed(self) -> tuple[ExecutedNode, ...]:
        """Return what the model that ran last consists of. Raises EngineError before the first call."""
        return executed_nodes(self._last_request().get_compiled_model())

    def profiled(self) -> dict[str, float]:
        """Return the mean milliseconds of each node over all calls since it was compiled; needs `profile`."""
        return {
            entry.node_name: entry.real_time.total_seconds() * 1e3
            for entry in self._last_request().profiling_info
            if entry.status == entry.Status.EXECUTED
        }

    def _last_request(self) -> Any:
        if not self._requests:
            raise EngineError(
                self.name,
                got="no call yet",
                expected="a model that is compiled for the shapes of a call",
                remedy="Call infer() first",
            )
        return next(reversed(self._requests.values()))

    def activate_impl(self) -> ModelSpecs:
        """Read the model; compile it where its shapes are known."""
        try:
            import openvino
        except ImportError as fault:
            raise MissingDependencyError(
                "engine openvino",
                got=f"no usable openvino package ({fault})",
                expected="openvino 2025.0 or newer",
                remedy="Install it: pip install openvino",
            ) from fault
        self._core = openvino.Core()
        self._require_device()
        if "bf16" in (self.precision, self.form and self.form.precision):
            self._require_bfloat16()
        self._file = _stamp(self.path)
        # Compiling the model object rather than its path keys the cache by content: an export that
        # replaces the file cannot meet a stale engine.
        self._model = self._core.read_model(self.path)
        specs = ModelSpecs(
            inputs=tuple(_spec(port) for port in self._model.inputs),
            outputs=tuple(_spec(port) for port in self._model.outputs),
        )
        if not self._model.is_dynamic():
            self._request_for(tuple(tuple(port.shape) for port in self._model.inputs))
        return specs

    def prepare_impl(self, feeds: Mapping[str, Array]) -> None:
        """Compile for the shapes of `feeds`."""
        self._request_for(tuple(feeds[spec.name].shape for spec in self.input_specs))

    def infer_impl(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Read the inputs in place; copy the outputs out of the request's buffers."""
        names = [spec.name for spec in self.input_specs]
        request = self._request_for(tuple(feeds[name].shape for name in names))
        results = request.infer(
            {index: feeds[name] for index, name in enumerate(names)}, share_inputs=True, share_outputs=False
        )
        return {spec.name: results[index] for index, spec in enumerate(self.output_specs)}

    @property
    def chosen(self) -> str | None:
        """The form that the model runs in, and why; None as written, and before it is compiled."""
        if self.choice is None or self.choice.form == AS_WRITTEN:
            return None
        return f"{self.name}: {self.choice}"

    def deactivate_impl(self) -> None:
        """Release the model and what was compiled from it."""
        self._requests.clear()
        self._core = self._model = self.choice = None

    def _check_int8(self, compiled: Any) -> None:
        """Say which calibrated layers the processor runs in float: OpenVINO alone does so without a word."""
        if self.path.suffix != ".onnx" or self.device != _CPU:  # kernels of others have other names
            return
        from accuquant.graph.calibrated import calibrated_layers  # not above: engines load without it

        layers = calibrated_layers(self.path, error=EngineError)
        if layers:
            self._use = int8_use(layers, executed_nodes(compiled))
            warn_once(self.path, self._use)

    def _request_for(self, shapes: tuple[tuple[int, ...], ...]) -> Any:
        """Return the infer request of the model compiled for inputs of `shapes`."""
        request = self._requests.get(shapes)
        if request is None:
            # A run of images has one set of shapes, and often a smaller last batch, in turn.
            kept = _SHAPES_KEPT if shapes in self._released else 1
            self._shapes_kept = max(self._shapes_kept, kept)
            while len(self._requests) >= self._shapes_kept:
                self._released.add(self._requests.popitem(last=False)[0])
            if self._model is None:
                self._model = self._read_again()
            self._model.reshape(dict(enumerate(shapes)))
            request = self._requests[shapes] = self._chosen_request()
            self._check_int8(request.get_compiled_model())
            # What was compiled has its own weights: the model's would be a second copy of the file.
            self._model = None
        self._requests.move_to_end(shapes)
        return request

    def _read_again(self) -> Any:
        """Return the model for other shapes. Raises EngineError where the file is another one by now."""
        if _stamp(self.path) != self._file:
            raise EngineError(
                f"model '{self.path}'",
                got="a file that changed since it was loaded",
                expected="the same file, to compile it for other shapes",
                remedy="Close the engine and load it again",
            )
        return self._core.read_model(self.path)

    def _chosen_request(self) -> Any:
        """Return an infer request of the model, whose shapes are set; the first call chooses its form."""
        made: dict[CpuForm, Any] = {}

        def release(form: CpuForm) -> None:
            made.pop(form, None)

        def compile_form(form: CpuForm) -> Any:
            made[form] = self._compile(form)
            return made[form]

        if self.choice is None:
            from accuquant.runtime.cpu_forms.select import select_form

            self.choice = select_form(
                self.path,
                self._core,
                self._model,
                compile_form,
                release,
                form=self.form,
                rewriting=self.rewriting,
                precision=self.precision,
                threads=self.num_threads,
            )
            _logger.info("%s: %s", self.name, self.choice)
        return made.get(self.choice.form) or self._compile(self.choice.form)

    def _compile(self, form: CpuForm) -> Any:
        """Return an infer request of the model, whose shapes are set, in `form`."""
        from accuquant.runtime.cpu_forms.rewrite import rewrite

        model = rewrite(self._model, form)
        return self._core.compile_model(model, self.device, self._properties(form)).create_infer_request()

    def _require_device(self) -> None:
        """Raise EngineError where no plugin finds such a device here."""
        kind = self.device.partition(":")[0].partition(".")[0]
        found = self._core.available_devices
        if kind in _META or self.device in found or kind in {name.partition(".")[0] for name in found}:
            return
        raise EngineError(
            f"OpenVINO device {self.device}",
            got=f"only {', '.join(found)}",
            expected="a device that OpenVINO's plugins find on this machine",
            remedy="Install its driver (Intel's compute runtime for a GPU, the NPU driver for an NPU), or "
            "use --engine openvino (CPU)",
        )

    def _require_bfloat16(self) -> None:
        """Raise EngineError where OpenVINO has no kernels for bfloat16: it would go on in float32."""
        capabilities = self._core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        if "BF16" not in capabilities:
            raise EngineError(
                self.name,
                got=f"a processor with {', '.join(capabilities)}",
                expected="one that computes in bfloat16",
                remedy="Use fp32 here",
            )

    def _properties(self, form: CpuForm) -> dict[str, Any]:
        if self.device != _CPU:
            cached = {} if self.cache_dir is None else {"CACHE_DIR": os.fspath(self.cache_dir)}
            return {"PERFORMANCE_HINT": "LATENCY", **cached}
        properties: dict[str, Any] = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "bf16" if form.precision == "bf16" else "f32",
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,
        }
        if self.profile:
            properties["PERF_COUNT"] = True
        if self.num_streams is not None:
            properties |= {"PERFORMANCE_HINT": "THROUGHPUT", "NUM_STREAMS": self.num_streams}
        if self.num_threads is not None:
            properties["INFERENCE_NUM_THREADS"] = self.num_threads
        if self.cache_dir is not None:
            properties["CACHE_DIR"] = os.fspath(self.cache_dir)
        return properties


def _stamp(path: Path) -> tuple[int, int]:
    """Return what changes when a file is replaced: its time and its size."""
    found = path.stat()
    return found.st_mtime_ns, found.st_size


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
