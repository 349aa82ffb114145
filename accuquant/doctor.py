"""Examine an installation: what is there, what works when tried, what to install."""

from __future__ import annotations

import importlib
import importlib.util
import os
import platform
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from accuquant._util.gpu import find_gpu
from accuquant._util.processor import cpu_flags, int8_instructions
from accuquant._util.scratch import scratch_folder
from accuquant.errors import EngineError, MissingDependencyError
from accuquant.pipelines.diffusers_internals import BEFORE, OLDEST, installed, moved, supported_range

Status = Literal["ok", "absent", "warning", "broken"]

#: Distribution -> the extra that installs it; "" is the base installation.
_PACKAGES = {
    "numpy": "",
    "safetensors": "",
    "onnx": "",
    "openvino": "",
    "pillow": "",
    "torch": "calibrate",
    "diffusers": "calibrate",
    "onnx-ir": "",
    "onnxscript": "calibrate",
    "jinja2": "calibrate",
    "psutil": "calibrate",
    "onnxruntime": "onnxruntime",
    "onnxruntime-gpu": "gpu",
    "tensorrt": "gpu",
    "polygraphy": "gpu",
    "tensorrt-rtx": "tensorrt-rtx",
    "cuda-bindings": "gpu",
}
#: Free bytes below which an export of a large model is likely to fail.
_ROOMY = 10 * 1024**3


@dataclass(frozen=True)
class Finding:
    """One line of the examination.

    `status` is "ok", "absent" (an optional part is not installed), "warning" (an optional part does
    not work, or slowly), or "broken" (exported models cannot run); `remedy` is "" where all is well.
    """

    subject: str
    status: Status
    detail: str
    remedy: str = ""


def examine() -> list[Finding]:
    """Look at the machine and the packages, then try every engine."""
    return [
        Finding("Python", "ok", f"{platform.python_version()} on {platform.system()} {platform.machine()}"),
        _processor(),
        _disk(),
        _gpu(),
        *(_package(name, extra) for name, extra in _PACKAGES.items()),
        *_diffusers(),
        *(_attempt(subject, module, try_it) for subject, module, try_it in _TRIALS),
    ]


def works(findings: list[Finding], *, gpu: bool = False) -> bool:
    """Return whether nothing is broken and, if `gpu`, whether TensorRT imports and a GPU answers."""
    fine = {finding.subject for finding in findings if finding.status == "ok"}
    on_gpu = "NVIDIA GPU" in fine and not fine.isdisjoint({"TensorRT", "TensorRT for RTX"})
    return all(finding.status != "broken" for finding in findings) and (on_gpu or not gpu)


def _processor() -> Finding:
    flags = cpu_flags()
    found = int8_instructions(flags)
    cores = f"{os.cpu_count()} cores"
    if found:
        return Finding("processor", "ok", f"{cores}, int8 instructions: {', '.join(found)}")
    if flags:
        return Finding(
            "processor",
            "warning",
            f"{cores}, no int8 instructions",
            "Expect less than 2x from int8 on this processor, and calibrate with --weight-bits 7: OpenVINO "
            "saturates 8-bit weights here",
        )
    return Finding("processor", "ok", f"{cores}, instruction sets unknown on {platform.system()}")


def _disk() -> Finding:
    free = shutil.disk_usage(Path.cwd()).free
    detail = f"{free / 1024**3:.1f} GiB free here"
    if free < _ROOMY:
        return Finding(
            "disk", "warning", detail, "Large models need about three times their size; free some space"
        )
    return Finding("disk", "ok", detail)


def _gpu() -> Finding:
    try:
        gpu = find_gpu()
    except MissingDependencyError as fault:
        return Finding("NVIDIA GPU", "absent", f"not looked for: {fault.got}", fault.remedy)
    except EngineError as fault:
        remedy = f"{fault.remedy}. In a container: docker run --gpus all"
        return Finding("NVIDIA GPU", "absent", fault.got, remedy)
    driver = ".".join(map(str, gpu.driver))
    return Finding("NVIDIA GPU", "ok", f"{gpu.name} ({gpu.target}), driver for CUDA {driver}")


def _package(name: str, extra: str) -> Finding:
    try:
        return Finding(name, "ok", version(name))
    except PackageNotFoundError:
        target = f"accuquant[{extra}]" if extra else "accuquant"
        status: Status = "absent" if extra else "broken"
        return Finding(name, status, "not installed", f"pip install '{target}'")


def _diffusers() -> list[Finding]:
    """Return what to say of a diffusers outside of the range that AccuQuant is written for."""
    if importlib.util.find_spec("diffusers") is None:
        return []
    release, wanted = version("diffusers"), supported_range()
    if OLDEST <= installed() < BEFORE:
        return []
    remedy = f"pip install 'diffusers{wanted}'"
    if installed() < OLDEST:
        detail = f"{release} runs Python files that a pipeline's folder names; AccuQuant needs {wanted}"
        return [Finding("diffusers' release", "warning", detail, remedy)]
    gone = moved()
    detail = f"{release} is newer than AccuQuant knows ({wanted})"
    if gone:
        return [Finding("diffusers' release", "warning", f"{detail}. {' '.join(gone)}", remedy)]
    return [
        Finding(
            "diffusers' release", "warning", f"{detail}; what it relies on is there", f"If it fails: {remedy}"
        )
    ]


def _attempt(subject: str, module: str, try_it: Callable[[], str]) -> Finding:
    """Run one trial. Only the engine of the main path can be "broken"; others are warnings."""
    required = module == _MAIN_ENGINE
    try:
        return Finding(subject, "ok", try_it())
    except Exception as fault:  # whatever a package raises is what the user has to see
        missing = isinstance(fault, ModuleNotFoundError) and fault.name == module
        if missing and not required:
            return Finding(subject, "absent", f"{module} is not installed")
        detail = " ".join(f"{type(fault).__name__}: {fault}".split())[:200]
        remedy = f"Install {module} again: pip install --force-reinstall {module.replace('_', '-')}"
        return Finding(subject, "broken" if required else "warning", detail, remedy)


def _try_openvino() -> str:
    import openvino

    core = openvino.Core()
    compiled = core.compile_model(core.read_model(_tiny_model()), "CPU")
    _expect_quantized(compiled([_INPUT])[0])
    return f"a QDQ model compiles and runs; devices: {', '.join(core.available_devices)}"


def _try_onnxruntime() -> str:
    import onnxruntime

    session = onnxruntime.InferenceSession(_tiny_model(), providers=["CPUExecutionProvider"])
    _expect_quantized(session.run(None, {"x": _INPUT})[0])
    names = [name.removesuffix("ExecutionProvider") for name in onnxruntime.get_available_providers()]
    return f"a QDQ model runs; providers: {', '.join(names)}"


def _try_torch() -> str:
    import torch

    total = float(torch.ones(8).sum())
    if total != 8:
        raise RuntimeError(f"the sum of eight ones is {total}")
    if not torch.cuda.is_available():
        return f"works on the CPU ({torch.get_num_threads()} threads), no CUDA device"
    device = torch.cuda.get_device_name()
    float(torch.ones(8, device="cuda").sum())
    return f"works on the CPU and on {device}"


def _try_tensorrt(module: str) -> str:
    """Compile a tiny engine: for a GPU that need not be here, or for that of this machine."""
    from accuquant.engines import BuildOptions, Target, compile_engine

    found = importlib.import_module(module)
    target = Target(8, 9)
    if module == "tensorrt":
        try:
            target = Target(*find_gpu().capability)
        except (EngineError, MissingDependencyError):
            return f"{module} {found.__version__} imports; it compiles engines where a GPU is"
    with scratch_folder("doctor") as folder:
        model, plan = folder / "tiny.onnx", folder / "tiny.engine"
        model.write_bytes(_tiny_model())
        compiled = compile_engine(model, plan, BuildOptions(target, module))
    return f"{module} {found.__version__} compiles a QDQ model for {target} in {compiled.seconds:.1f} s"


def _tiny_model() -> bytes:
    """Return an ONNX model that rounds x [3] to multiples of 0.5 by a QDQ pair."""
    from onnx import TensorProto, helper

    scale = helper.make_tensor("scale", TensorProto.FLOAT, [], [0.5])
    zero = helper.make_tensor("zero", TensorProto.INT8, [], [0])
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["y"]),
    ]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [3]) for name in "xy")
    graph = helper.make_graph(nodes, "tiny", [x], [y], [scale, zero])
    opset = helper.make_opsetid("", 21)
    model: bytes = helper.make_model(graph, opset_imports=[opset], ir_version=10).SerializeToString()
    return model


def _expect_quantized(output: npt.NDArray[np.float32]) -> None:
    if not np.array_equal(output, _OUTPUT):
        raise RuntimeError(f"a tiny model gives {output.tolist()}, expected {_OUTPUT.tolist()}")


_MAIN_ENGINE = "openvino"
_INPUT = np.array([0.3, -1.1, 2.0], np.float32)
_OUTPUT = np.array([0.5, -1.0, 2.0], np.float32)
#: (what is tried, the module it needs, the trial)
_TRIALS: tuple[tuple[str, str, Callable[[], str]], ...] = (
    ("OpenVINO engine", "openvino", _try_openvino),
    ("ONNX Runtime engine", "onnxruntime", _try_onnxruntime),
    ("PyTorch", "torch", _try_torch),
    ("TensorRT", "tensorrt", partial(_try_tensorrt, "tensorrt")),
    ("TensorRT for RTX", "tensorrt_rtx", partial(_try_tensorrt, "tensorrt_rtx")),
)
