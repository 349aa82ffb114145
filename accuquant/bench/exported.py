"""The contenders that an exported folder holds: its int8 graphs, and the same network without the pairs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from accuquant._util.gpu import find_gpu
from accuquant._util.progress import Progress
from accuquant.bench.contender import Contender, Device, LeftOut, Precision, attempt
from accuquant.bench.inputs import Inputs
from accuquant.e4m3 import Format
from accuquant.engines import BuildOptions, Target
from accuquant.engines.build import build_engine
from accuquant.engines.profile import static_profile
from accuquant.manifest import RECIPE_NAME, Manifest
from accuquant.recipe import Recipe
from accuquant.runtime.engine_model import EngineModel
from accuquant.runtime.open_runner import make_runner
from accuquant.runtime.runner import Runner

#: Engine -> the device that it computes on.
_DEVICES: dict[str, Device] = {"openvino": "cpu", "onnxruntime": "cpu", "tensorrt": "cuda"}


def exported_contenders(
    folder: Path,
    inputs: Inputs,
    *,
    num_threads: int | None,
    trust_engines: bool = False,
    engine_precision: str = "auto",
    stack: ExitStack,
) -> Iterator[Contender | LeftOut]:
    """Yield the exported int8 or FP8 network in every engine; `stack` closes them."""
    levels = levels_of(folder)
    for engine, device in _DEVICES.items():

        def make(engine: str = engine, device: Device = device) -> Contender:
            options: dict[str, Any] = {} if device == "cuda" else {"num_threads": num_threads}
            if engine == "openvino":
                options["precision"] = engine_precision
            model = stack.enter_context(
                EngineModel.from_folder(folder, engine, trust_engines=trust_engines, **options)
            )
            return Contender(
                engine,
                levels,
                device,
                lambda: model(inputs.sample, inputs.timestep, inputs.conditioning),
                lambda: model.chosen,
            )

        yield attempt(f"{engine} {levels}", make)


def float_contenders(
    manifest: Manifest,
    twin: Path,
    inputs: Inputs,
    *,
    num_threads: int | None,
    progress: Progress,
    stack: ExitStack,
) -> Iterator[Contender | LeftOut]:
    """Yield the network of the folder as it costs without int8: `twin`, its graph without QDQ pairs.

    OpenVINO computes it in float32 and, where the processor can, in bfloat16; TensorRT in float16, in an
    engine that is compiled beside `twin`.
    """

    def ready(engine: str, precision: Precision, runner: Runner) -> Contender:
        stack.callback(runner.deactivate)
        runner.activate()
        feeds = feeds_of(manifest, runner, inputs)
        return Contender(engine, precision, _DEVICES[engine], lambda: runner.infer(feeds))

    def openvino(precision: Precision) -> Contender:
        runner = make_runner(twin, "openvino", num_threads=num_threads, precision=precision)
        return ready("openvino", precision, runner)

    def tensorrt() -> Contender:
        target = Target(*find_gpu().capability)
        profile = static_profile(twin, batch_size=inputs.batch_size)
        engine = twin.with_suffix(".engine")
        build_engine(twin, engine, BuildOptions(target, profile=profile), rebuild="", progress=progress)
        return ready("tensorrt", "fp16", make_runner(engine, "tensorrt"))

    yield attempt("openvino fp32", lambda: openvino("fp32"))
    yield attempt("openvino bf16", lambda: openvino("bf16"))
    yield attempt("tensorrt fp16", tensorrt)


def feeds_of(manifest: Manifest, runner: Runner, inputs: Inputs) -> dict[str, Any]:
    """Return the inputs by the graph's names, shapes and types."""
    signature = manifest.signature
    given: dict[str, Any] = {signature.sample.name: inputs.sample, **inputs.conditioning}
    feeds = {}
    for spec in runner.input_specs:
        if spec.name == signature.timestep.name:
            shape = [extent if isinstance(extent, int) else 1 for extent in spec.shape]
            value = np.full(shape, inputs.timestep / signature.timestep_divisor)
        else:
            value = given[spec.name]
        feeds[spec.name] = value.astype(spec.dtype)
    return feeds


def levels_of(folder: Path) -> Format:
    """Return what the graphs of an export are rounded to; int8 where it lies without its recipe."""
    path = folder / RECIPE_NAME
    return Recipe.load(path).format if path.is_file() else "int8"
