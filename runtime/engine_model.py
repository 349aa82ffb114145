"""An exported folder as a function: sample, timestep and conditioning in, prediction out."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from accuquant._util.external_data import check_external_files
from accuquant._util.real_model import real_model
from accuquant.errors import EngineError, UsageError
from accuquant.manifest import Manifest
from accuquant.networks.signature import TensorSpec
from accuquant.runtime.device_memory import DeviceArray, Workspace
from accuquant.runtime.engine_files import find_engines
from accuquant.runtime.int8_use import Int8Use
from accuquant.runtime.loop_profile import LoopProfile, counted
from accuquant.runtime.open_runner import make_runner
from accuquant.runtime.openvino_runner import OpenVinoRunner
from accuquant.runtime.runner import Array, Runner
from accuquant.runtime.static_batch import batched_names, fixed_batch, missing_rows, pad_rows
from accuquant.runtime.tensorrt_runner import Allocate, TensorRtRunner


class EngineModel:
    """The denoising network of an exported folder, in an engine.

    The lowering "per-group" is one graph a step group, every other one graph; each is loaded
    when a timestep first needs it (`activate` loads all). Close it, or use it in a with statement.
    """

    def __init__(self, manifest: Manifest, runners: tuple[Runner, ...]) -> None:
        if len(runners) not in (1, len(manifest.groups)):
            raise EngineError(
                "manifest",
                got=f"{len(runners)} graphs for {len(manifest.groups)} step groups",
                expected="one graph, or one for each step group",
                remedy="Run `accuquant export` again",
            )
        self.manifest = manifest
        self._runners = runners
        #: What the engine takes is counted here, where it is set: compiling as "loading", calls as "network".
        self.profile: LoopProfile | None = None

    @classmethod
    def from_folder(
        cls,
        folder: str | os.PathLike[str],
        engine: str = "openvino",
        *,
        check_hashes: bool = True,
        trust_engines: bool = False,
        **options: Any,
    ) -> EngineModel:
        """Open the folder that `accuquant export` wrote; nothing is compiled yet.

        `options` go to the engine, e.g. `num_threads=4`; `precision` "fp32" or "bf16" is what OpenVINO
        computes in around int8, "auto" by default (OpenVinoRunner). With `check_hashes` every file must have
        the bytes that were exported. A TensorRT engine is executable code: one that came with a download is
        run with `trust_engines` only, and else one that `accuquant build` made here. Raises UsageError for an
        unknown engine or option, EngineError where a file is missing, damaged, or would make the engine read
        outside the folder.
        """
        root = Path(folder)
        manifest = Manifest.load(root)
        paths = list(manifest.graph_paths(root))
        if engine == TensorRtRunner.engine:
            loaded = list(find_engines(root, manifest, trust=trust_engines))
            options.setdefault("workspace", Workspace())
        else:
            loaded = [real_model(path) for path in paths]
        if engine == OpenVinoRunner.engine:
            options.setdefault("precision", "auto")
        runners = tuple(make_runner(path, engine, **options) for path in loaded)
        for path in paths:
            check_external_files(path)
        if check_hashes:
            manifest.check_files(root)
        return cls(manifest, runners)

    def __call__(
        self, sample: Array, timestep: float, conditioning: Mapping[str, Array] | None = None
    ) -> Array:
        """Predict for sample [B, C, H, W] at one of the scheduler's timesteps, shared by the batch.

        `conditioning` maps the names in the manifest's signature to arrays. Values are converted to the
        graph's types. Where the engine was built for a larger batch, the rest of it repeats the last image
        and is cut off again; a larger one than the engine's is refused. The result is a new array. Raises
        UsageError outside the calibrated timesteps.
        """
        return self._output_of(self.outputs(sample, timestep, conditioning))

    def outputs(
        self, sample: Array, timestep: float, conditioning: Mapping[str, Array] | None = None
    ) -> dict[str, Array]:
        """Return every output of the graph by its name, as a call returns the one of the signature."""
        runner = self._active(timestep)
        signature = self.manifest.signature
        given = {signature.sample.name: sample, **(conditioning or {})}
        feeds: dict[str, Array] = {}
        for spec in runner.input_specs:
            if spec.name == signature.timestep.name:
                feeds[spec.name] = _timestep_array(spec, timestep / signature.timestep_divisor)
            elif spec.name in given:
                feeds[spec.name] = _converted(spec, given.pop(spec.name))
        feeds.update(given)  # what no input takes: the runner refuses it with the names it has
        missing = missing_rows(signature, runner.input_specs, np.shape(sample))
        if not missing:
            return self._infer(runner, feeds)
        padded = self._infer(runner, pad_rows(feeds, batched_names(signature), missing))
        return {name: array[: len(sample)] for name, array in padded.items()}

    @property
    def runs_on_device(self) -> bool:
        """Whether `predict_on_device` works: whether the engine takes arrays that are on the GPU."""
        return isinstance(self._runners[0], TensorRtRunner)

    @property
    def int8_use(self) -> Int8Use | None:
        """What became of the calibrated layers in the graphs that ran; None where the engine is silent."""
        uses = [use for use in (runner.int8_use for runner in self._runners) if use is not None]
        return Int8Use.merged(uses) if uses else None

    @property
    def fixed_batch(self) -> int | None:
        """The batch that the engine was built for, or None where it takes any; loads the first graph."""
        with counted(self.profile, "loading"):
            self._runners[0].activate()
        return fixed_batch(self.manifest.signature, self._runners[0].input_specs)

    def missing_rows(self, shape: Sequence[int], timestep: float) -> int:
        """Return how many rows a sample lacks whose batch is smaller than the engine's; loads the graph."""
        runner = self._active(timestep)
        return missing_rows(self.manifest.signature, runner.input_specs, shape)

    def timestep_array(self, timestep: float) -> Array:
        """Return the graph's input for the scheduler's `timestep`; loads the graph. Raises UsageError."""
        runner, signature = self._active(timestep), self.manifest.signature
        spec = next((s for s in runner.input_specs if s.name == signature.timestep.name), signature.timestep)
        return _timestep_array(spec, timestep / signature.timestep_divisor)

    def predict_on_device(
        self,
        feeds: Mapping[str, DeviceArray],
        timestep: float,
        allocate: Allocate,
        caller_stream: int,
    ) -> None:
        """Predict from arrays on the GPU, the timestep among them, into what `allocate` returns.

        `timestep` is the scheduler's value, which finds the step group. The host neither waits nor sees a
        value; see TensorRtRunner.infer_on_device. Raises UsageError outside the calibrated timesteps.
        """
        runner = self._active(timestep)
        assert isinstance(runner, TensorRtRunner), "runs_on_device"
        taken = {spec.name for spec in runner.input_specs}
        known = {spec.name for spec in self.manifest.signature.inputs}
        passed = {name: array for name, array in feeds.items() if name in taken or name not in known}
        with counted(self.profile, "network"):
            runner.infer_on_device(passed, allocate, caller_stream)

    @property
    def chosen(self) -> tuple[str, ...]:
        """What the engine chose by itself for the graphs that are loaded, one line each, for reports."""
        return tuple(runner.chosen for runner in self._runners if runner.is_active and runner.chosen)

    def activate(self) -> None:
        """Load every graph now, so that no step of a timed run has to."""
        for runner in self._runners:
            runner.activate()

    def close(self) -> None:
        """Release every loaded graph."""
        for runner in self._runners:
            runner.deactivate()

    def __enter__(self) -> EngineModel:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _output_of(self, outputs: Mapping[str, Array]) -> Array:
        name = self.manifest.signature.output.name
        if name not in outputs:
            raise EngineError(
                "graph",
                got=f"the outputs {', '.join(outputs)}",
                expected=f"'{name}', as the manifest says",
                remedy="Run `accuquant export` again",
            )
        return outputs[name]

    def _active(self, timestep: float) -> Runner:
        runner = self._runner(timestep)
        if not runner.is_active:
            with counted(self.profile, "loading"):
                runner.activate()
        return runner

    def _infer(self, runner: Runner, feeds: Mapping[str, Array]) -> dict[str, Array]:
        if self.profile is None:
            return runner.infer(feeds)
        with counted(self.profile, "loading"):
            runner.prepare(feeds)
        with counted(self.profile, "network"):
            return runner.infer(feeds)

    def _runner(self, timestep: float) -> Runner:
        group = self.manifest.groups.find(timestep)  # also with one graph: refuses what was not calibrated
        return self._runners[group if len(self._runners) > 1 else 0]


def _timestep_array(spec: TensorSpec, timestep: float) -> Array:
    dtype = np.dtype(spec.dtype)
    if dtype.kind in "iu" and timestep != int(timestep):
        raise UsageError(
            f"timestep {timestep:g}",
            got="a fraction",
            expected=f"a whole number: the graph takes {spec.dtype}",
            remedy="Use a scheduler with whole timesteps, or export with float timesteps",
        )
    return np.full([n if isinstance(n, int) else 1 for n in spec.shape], timestep, dtype)


def _converted(spec: TensorSpec, value: Array) -> Array:
    array = np.asarray(value)
    if not np.can_cast(array.dtype, spec.dtype, "same_kind"):
        raise UsageError(
            f"input '{spec.name}'",
            got=f"values of type {array.dtype}",
            expected=f"values that convert to {spec.dtype} without loss of kind",
            remedy=f"Pass an array of {spec.dtype}",
        )
    return array.astype(spec.dtype, copy=False)
