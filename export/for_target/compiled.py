"""Compile the candidates' engines, and read or time what they cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from accuquant._util.interleave import time_interleaved
from accuquant._util.progress import Progress
from accuquant.audit.engine_audit import audit_engine
from accuquant.bench.inputs import noise
from accuquant.engines import BuildOptions, CompiledEngine, Target
from accuquant.engines.backend import resolve_backend
from accuquant.engines.build import BuiltEngine, build_engine
from accuquant.engines.profile import static_profile
from accuquant.errors import AccuQuantError
from accuquant.export.export_options import Lowering
from accuquant.export.for_target.candidates import Candidate, FloatGraph, write_candidate
from accuquant.export.for_target.decide import MAX_GROUP_BYTES, EngineFigures
from accuquant.export.passes.lowering import LoweringOptions
from accuquant.recipe import Recipe
from accuquant.runtime.open_runner import make_runner
from accuquant.runtime.runner import Runner

#: Enough for a median whose error is far below what a lowering has to save.
_ROUNDS, _WARM_UP = 50, 10
#: What an estimated size has to exceed the limit by before it is taken for certain.
_BY_FAR = 1.5


@dataclass(frozen=True)
class CompiledCandidate:
    """The engine of a candidate (that of the first step group), and what it was compiled from."""

    candidate: Candidate
    model: Path
    options: BuildOptions
    built: BuiltEngine


class Compiler:
    """Writes the candidates of one float graph into folders of `scratch`, and compiles them for one GPU.

    `too_large` says of lowerings that were not compiled why not.
    """

    def __init__(
        self,
        graph: FloatGraph,
        recipe: Recipe,
        target: Target,
        options: LoweringOptions,
        scratch: Path,
        progress: Progress,
    ) -> None:
        self.progress = progress
        self.too_large: dict[Lowering, str] = {}
        self._graph, self._recipe, self._target = graph, recipe, target
        self._options, self._scratch = options, scratch
        self._compiled: dict[str, list[CompiledCandidate] | AccuQuantError] = {}

    def compile(self, candidates: Sequence[Candidate], *, backend: str) -> list[CompiledCandidate]:
        """Compile the engine of each candidate, static at a batch of 1, as `accuquant build` does by default.

        A lowering of several engines is left out where the first candidate's size says that they would exceed
        MAX_GROUP_BYTES by far. A library compiles once, even where it fails. Raises what write_candidate and
        build_engine raise.
        """
        backend = resolve_backend(backend).name
        if backend not in self._compiled:
            try:
                self._compiled[backend] = self._compile(candidates, backend)
            except AccuQuantError as fault:
                self._compiled[backend] = fault
        compiled = self._compiled[backend]
        if isinstance(compiled, AccuQuantError):
            raise compiled
        return compiled

    def _compile(self, candidates: Sequence[Candidate], backend: str) -> list[CompiledCandidate]:
        compiled: list[CompiledCandidate] = []
        for candidate in candidates:
            if compiled and self._exceeds(candidate, compiled[0].built.manifest.engine_bytes):
                continue
            options = replace(self._options, lowering=candidate.lowering)
            folder = self._scratch / backend / candidate.lowering
            model = write_candidate(self._graph, self._recipe, options, folder)
            build = BuildOptions(self._target, backend=backend, profile=static_profile(model))
            engine = model.with_suffix(".engine")
            self.progress.message(f"Lowering {candidate.lowering}, to compare:")
            built = build_engine(model, engine, build, rebuild="accuquant build", progress=self.progress)
            compiled.append(CompiledCandidate(candidate, model, build, built))
        return compiled

    def _exceeds(self, candidate: Candidate, engine_bytes: int) -> bool:
        # An engine with constant scales has other kernels than one with factors, but the same weights.
        if candidate.engines == 1 or candidate.engines * engine_bytes < _BY_FAR * MAX_GROUP_BYTES:
            return False
        text = f"{candidate.engines} engines of about {engine_bytes / 1e6:.0f} MB"
        self.too_large[candidate.lowering] = text
        return True


def audited(compiled: CompiledCandidate) -> EngineFigures:
    """Return what the compiler's log says of the engine. Raises EngineError for a log that cannot be read."""
    built, candidate = compiled.built, compiled.candidate
    made = CompiledEngine(
        built.path, built.log, built.manifest.seconds, built.manifest.library, built.manifest.version
    )
    audit = audit_engine(compiled.model, made, compiled.options, name=candidate.lowering)
    return EngineFigures(
        candidate.lowering,
        candidate.engines,
        audit.plan_bytes,
        audit.num_kernels,
        audit.kernels["reformat"] + audit.kernels["quantize"],
        audit.traffic,
        noise_db=candidate.noise_db,
    )


def timed(compiled: Sequence[CompiledCandidate], progress: Progress) -> list[EngineFigures]:
    """Run every engine on the GPU of this machine, in turn, and return the median times.

    Raises EngineError where an engine cannot be run here.
    """
    times = time_engines({one.candidate.lowering: one.built.path for one in compiled}, progress)
    return [
        EngineFigures(
            one.candidate.lowering,
            one.candidate.engines,
            one.built.manifest.engine_bytes,
            milliseconds=times[one.candidate.lowering],
            noise_db=one.candidate.noise_db,
        )
        for one in compiled
    ]


def time_engines(engines: Mapping[str, Path], progress: Progress) -> dict[str, float]:
    """Run the engine of each name on the GPU of this machine, in turn -> the median of its milliseconds.

    Raises EngineError where an engine cannot be run here.
    """
    with ExitStack() as stack:
        runners = {name: _activated(engine, stack) for name, engine in engines.items()}
        rng = np.random.default_rng(0)
        feeds = {
            name: {spec.name: noise(spec, {}, rng) for spec in runner.input_specs}
            for name, runner in runners.items()
        }
        progress.stage(f"timing {', '.join(engines)}", _ROUNDS + _WARM_UP)
        times = time_interleaved(
            {name: lambda n=name: runners[n].infer(feeds[n]) for name in runners},  # type: ignore[misc]
            rounds=_ROUNDS,
            warm_up=_WARM_UP,
            after_round=progress.advance,
        )
    return {name: found.median for name, found in times.items()}


def _activated(engine: Path, stack: ExitStack) -> Runner:
    runner = make_runner(engine, "tensorrt")
    stack.callback(runner.deactivate)
    runner.activate()
    return runner


def keep_engine(compiled: CompiledCandidate, engine: Path, rebuild: str) -> None:
    """Move the engine to where `accuquant build` looks for it, `engine`, with `rebuild` in its manifest.

    The manifest goes last: an engine without one is not used.
    """
    engine.parent.mkdir(parents=True, exist_ok=True)
    compiled.built.path.replace(engine)
    replace(compiled.built.manifest, rebuild=rebuild).save(engine)
