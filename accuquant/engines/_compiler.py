"""Inside the compiling process: parse the graph, configure the builder, build, write the plan."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accuquant._util.files import atomic_write
from accuquant.engines._listening import make_logger, make_monitor
from accuquant.errors import EngineError, UsageError

if TYPE_CHECKING:
    # Written for both libraries, which have one API; the types are those of tensorrt.
    import tensorrt

Report = Callable[[dict[str, Any]], None]
#: TensorRT's words in the spelling of trtexec -> in the enumerations of its Python package.
_COMPATIBILITY = {"ampere+": "AMPERE_PLUS", "sameComputeCapability": "SAME_COMPUTE_CAPABILITY"}
_REMEDY = "Run `accuquant check` on the model: it names what TensorRT cannot compile"

#: Part of what the builder says -> what to do about it.
_REFUSALS = {
    "libnvinfer_lean": "Leave --versionCompatible out: this library has no lean runtime",
    "status == CUDA_SUCCESS": "Without a GPU leave --refit and --stripWeights out, or build where the GPU is",
    "driver version is insufficient": "Build on the machine that has the GPU, or give --backend tensorrt_rtx",
}


def compile_request(library: str, request: dict[str, Any], report: Report) -> None:
    """Compile request["compiled"] into request["plan"] with the package `library`.

    What is compiled is request["model"], or made from it. Raises
    EngineError where TensorRT refuses the model, UsageError for a profile that does not fit.
    """
    trt = importlib.import_module(library)
    with open(request["log"], "w", encoding="utf-8") as log:
        logger = make_logger(trt, log)
        builder: tensorrt.Builder = trt.Builder(logger)
        network, parser = parse(trt, builder, logger, request["model"], request["compiled"])
        fix_shapes(network, request)
        config = configure(trt, builder, network, request, make_monitor(trt, report), logger)
        plan = builder.build_serialized_network(network, config)
        if plan is None:
            raise refused(request["model"], logger.first_error or "without a reason")
        del parser  # owns what the network refers to until here
        if trt.__name__ == "tensorrt":
            _save_timing_cache(config, request["timing_cache"])
        with open(request["plan"], "wb") as file:
            file.write(memoryview(plan))


def parse(
    trt: Any, builder: tensorrt.Builder, logger: Any, model: str, compiled: str
) -> tuple[tensorrt.INetworkDefinition, tensorrt.OnnxParser]:
    """Return (network, parser) of a strongly typed network, read from the file `compiled`.

    Raises EngineError that names what is wrong with `model`, which `compiled` was made from.
    """
    flag = trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED
    network = builder.create_network(1 << int(flag))
    parser: tensorrt.OnnxParser = trt.OnnxParser(network, logger)
    if parser.parse_from_file(compiled):
        return network, parser
    errors = [parser.get_error(index) for index in range(parser.num_errors)]
    unsupported = {
        f"{error.node_operator()} ('{error.node_name()}')": None
        for error in errors
        if error.code() == trt.ErrorCode.UNSUPPORTED_NODE
    }
    if unsupported:
        raise EngineError(
            f"model '{model}'",
            got=f"operators that TensorRT does not have: {', '.join(unsupported)}",
            expected="operators of TensorRT's ONNX parser",
            remedy="Export the network without them, or run it with --engine openvino",
        )
    described = [f"{error.node_operator()} '{error.node_name()}': {error.desc()}" for error in errors]
    raise EngineError(
        f"model '{model}'",
        got=f"a graph that the parser refuses ({'; '.join(described)[:500] or logger.first_error})",
        expected="an ONNX model that follows TensorRT's rules",
        remedy=_REMEDY,
    )


def fix_shapes(network: tensorrt.INetworkDefinition, request: dict[str, Any]) -> None:
    """Make inputs static whose profile is one shape. Raises UsageError for a profile that does not fit."""
    profile: dict[str, list[list[int]]] = request["profile"]
    inputs = {tensor.name: tensor for tensor in map(network.get_input, range(network.num_inputs))}
    unknown = sorted(set(profile) - set(inputs))
    if unknown:
        raise _wrong_profile(f"shapes for {', '.join(unknown)}", f"shapes for {', '.join(inputs)}")
    dynamic = [name for name, tensor in inputs.items() if -1 in tuple(tensor.shape)]
    missing = [name for name in dynamic if name not in profile]
    if missing:
        raise _wrong_profile(
            f"no shapes for {', '.join(missing)}", f"shapes for {', '.join(dynamic)}, which are dynamic"
        )
    for name, (smallest, _, largest) in profile.items():
        _check_fit(name, tuple(inputs[name].shape), smallest, largest)
        if smallest == largest:
            inputs[name].shape = smallest


def configure(
    trt: Any,
    builder: tensorrt.Builder,
    network: tensorrt.INetworkDefinition,
    request: dict[str, Any],
    monitor: Any,
    logger: Any,
) -> tensorrt.IBuilderConfig:
    """Return the builder's configuration, made by Polygraphy."""
    from polygraphy.backend.tensorrt_rtx import create_config_rtx
    from polygraphy.backend.trt import Profile, create_config
    from polygraphy.logger import G_LOGGER

    G_LOGGER.module_severity = G_LOGGER.CRITICAL
    level = request["hardware_compatibility"]
    pools = {getattr(trt.MemoryPoolType, k.upper()): size for k, size in request["memory_pools"].items()}
    common = {
        "profiles": _profiles(Profile, network, request["profile"]),
        "profiling_verbosity": getattr(trt.ProfilingVerbosity, request["profiling_verbosity"].upper()),
        "memory_pool_limits": pools or None,
        "builder_optimization_level": request["builder_optimization_level"],
        "hardware_compatibility_level": (
            getattr(trt.HardwareCompatibilityLevel, _COMPATIBILITY[level]) if level != "none" else None
        ),
        "version_compatible": request["version_compatible"],
        "strip_plan": request["strip_weights"],
        "refittable": request["refit"],
        "progress_monitor": monitor,
    }
    if trt.__name__ == "tensorrt_rtx":
        digits = request["target"].removeprefix("sm")
        capability = (int(digits[:-1]), int(digits[-1]))
        config = create_config_rtx(builder, network, compute_capabilities=[capability], **common)
        if not request["tf32"]:
            config.clear_flag(trt.BuilderFlag.TF32)
        return config
    config = create_config(builder, network, tf32=request["tf32"], **common)
    load_timing_cache(config, request["timing_cache"], logger)
    return config


def refused(model: str, reason: str) -> EngineError:
    """Return the error for a network that the builder does not take, with the remedy for its `reason`."""
    remedy = _REMEDY
    for part, known in _REFUSALS.items():
        if part in reason:
            remedy = known
    return EngineError(
        f"model '{model}'",
        got=f"a refusal ({reason})",
        expected="a network and options that TensorRT can build",
        remedy=remedy,
    )


def _profiles(
    kind: Any, network: tensorrt.INetworkDefinition, ranges: dict[str, list[list[int]]]
) -> list[Any]:
    """Return one Polygraphy profile of the inputs that are still dynamic."""
    profile = kind()
    for tensor in map(network.get_input, range(network.num_inputs)):
        if -1 in tuple(tensor.shape):
            smallest, best, largest = ranges[tensor.name]
            profile.add(tensor.name, min=smallest, opt=best, max=largest)
    return [profile]


def _check_fit(name: str, shape: tuple[int, ...], smallest: list[int], largest: list[int]) -> None:
    fits = len(shape) == len(smallest) and all(
        extent in (-1, low) and extent in (-1, high)
        for extent, low, high in zip(shape, smallest, largest, strict=True)
    )
    if not fits:
        raise _wrong_profile(
            f"{'x'.join(map(str, smallest))} to {'x'.join(map(str, largest))} for '{name}'",
            f"shapes like [{', '.join('any' if extent == -1 else str(extent) for extent in shape)}]",
        )


def _wrong_profile(got: str, expected: str) -> UsageError:
    return UsageError(
        "profile",
        got=got,
        expected=expected,
        remedy="Give --minShapes, --optShapes and --maxShapes as name:1x3x32x32, or --batch-size",
    )


def load_timing_cache(config: tensorrt.IBuilderConfig, path: str | None, logger: Any) -> None:
    """Let the builder reuse the tactics that it measured before. Raises EngineError for a damaged file.

    TensorRT goes on with an empty cache where it cannot read one; only a warning in its log tells.
    """
    if path is None or not Path(path).is_file():
        return
    data = Path(path).read_bytes()
    logger.warnings.clear()
    cache = config.create_timing_cache(data)
    warned = any("timing cache" in warning.lower() for warning in logger.warnings)
    if not data or warned or cache is None or not config.set_timing_cache(cache, ignore_mismatch=False):
        raise EngineError(
            f"timing cache '{path}'",
            got="a file that TensorRT refuses" if data else "an empty file",
            expected="what this version of TensorRT wrote on this GPU",
            remedy=f"Delete it: the next build writes it anew (rm '{path}')",
        )


def _save_timing_cache(config: tensorrt.IBuilderConfig, path: str | None) -> None:
    """Keep the measured tactics."""
    if path is not None:
        with atomic_write(path) as temporary:
            temporary.write_bytes(memoryview(config.get_timing_cache().serialize()))
