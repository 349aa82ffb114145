"""Choose the lowering for a target: by measurement, by the audit, or by a rule, in this order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import onnx_ir as ir

from accuquant._util.progress import Progress, Silent
from accuquant.errors import AccuQuantError
from accuquant.export.export_options import Lowering, Precision
from accuquant.export.for_target.candidates import Candidate, FloatGraph, list_candidates
from accuquant.export.for_target.compiled import CompiledCandidate, Compiler, audited, timed
from accuquant.export.for_target.decide import Decision, EngineFigures, decide, decide_by_rule
from accuquant.export.for_target.export_target import ExportTarget
from accuquant.export.passes.lowering import LoweringOptions
from accuquant.export_choice import Basis, ExportChoice
from accuquant.recipe import Recipe

#: Bytes of a float graph above which engines are not compiled only to choose: the compiler takes about
#: three times as much memory (10.8 GB for the 3.4 GB of Stable Diffusion 1.5's UNet), and minutes.
MAX_FLOAT_BYTES = 6e9
_ON_CPU = "one graph that rounds as calibrated"
_IN_FLOAT32 = ", and float32 around int8, which engines for CPUs compute in"
_IN_PAIRS = (
    "and zero-points inside QDQ pairs, which TensorRT does not take and CPUs with AMX compute in float32"
)
_ALIKE = "no other lowering would make another graph of this recipe"


@dataclass(frozen=True)
class Chosen:
    """What was chosen and why, and its engine (of the first step group) where one was compiled for it."""

    lowering: Lowering
    choice: ExportChoice
    engine: CompiledCandidate | None = None


def default_precision(target: ExportTarget) -> Precision:
    """Return what is not int8 on `target`: float16 on a GPU; float32 on a CPU, where engines compute so."""
    return "fp16" if target.gpu else "fp32"


def choose_lowering(
    graph: FloatGraph,
    recipe: Recipe,
    target: ExportTarget,
    options: LoweringOptions,
    scratch: Path,
    *,
    progress: Progress | None = None,
) -> Chosen:
    """Choose the lowering of `recipe` for `target`; `options` say the rest, their own lowering is not read.

    For the GPU of this machine the candidates' engines are timed. For one that is not here tensorrt_rtx
    compiles them, and the audit reads them. Where neither works, or the network exceeds MAX_FLOAT_BYTES, a
    rule decides and the reason says so. Graphs and engines are left in the folder `scratch`. Raises
    ExportError where the graph cannot carry the recipe.
    """
    if target.gpu is None:
        pairs = f", {_IN_PAIRS}" if options.affine == "zero_point" else ""
        around = _IN_FLOAT32 if options.precision == "fp32" else ""
        return _by_rule(target, options, Decision("rescale", _ON_CPU + around + pairs))
    candidates = list_candidates(graph, recipe)
    if len(candidates) == 1:
        return _by_rule(target, options, Decision("rescale", _ALIKE))
    size = _float_bytes(graph.make())
    if size > MAX_FLOAT_BYTES:
        why = f"{size / 1e9:.1f} GB of float weights are too many to compile only to choose"
        return _by_rule(target, options, decide_by_rule(candidates, why))
    compiler = Compiler(graph, recipe, target.gpu, options, scratch, progress or Silent())
    faults = []
    for basis, compare in _ways(target):
        try:
            engines, figures = compare(compiler, candidates)
        except AccuQuantError as fault:
            faults.append(f"no {basis}: {fault.subject}, {fault.got}")
            continue
        decision = _noted(decide(figures, compiler.too_large), faults)
        choice = _choice(target, options, decision, basis, figures)
        engine = next(one for one in engines if one.candidate.lowering == decision.lowering)
        return Chosen(decision.lowering, choice, engine)
    return _by_rule(target, options, decide_by_rule(candidates, "; ".join(faults)))


_Compare = Callable[
    [Compiler, Sequence[Candidate]], tuple[Sequence[CompiledCandidate], Sequence[EngineFigures]]
]


def _ways(target: ExportTarget) -> list[tuple[Basis, _Compare]]:
    return [("measurement", _measure), ("audit", _audit)] if target.is_here else [("audit", _audit)]


def _noted(decision: Decision, faults: Sequence[str]) -> Decision:
    """Return `decision` with what failed before it, which the user would rather have had."""
    return replace(decision, reason=f"{decision.reason} ({'; '.join(faults)})") if faults else decision


def _measure(
    compiler: Compiler, candidates: Sequence[Candidate]
) -> tuple[Sequence[CompiledCandidate], Sequence[EngineFigures]]:
    engines = compiler.compile(candidates, backend="auto")
    return engines, timed(engines, compiler.progress)


def _audit(
    compiler: Compiler, candidates: Sequence[Candidate]
) -> tuple[Sequence[CompiledCandidate], Sequence[EngineFigures]]:
    engines = compiler.compile(candidates, backend="tensorrt_rtx")
    return engines, [audited(engine) for engine in engines]


def _by_rule(target: ExportTarget, options: LoweringOptions, decision: Decision) -> Chosen:
    return Chosen(decision.lowering, _choice(target, options, decision, "rule"))


def _choice(
    target: ExportTarget,
    options: LoweringOptions,
    decision: Decision,
    basis: Basis,
    figures: Sequence[EngineFigures] = (),
) -> ExportChoice:
    return ExportChoice(
        target.name,
        options.precision,
        decision.lowering,
        basis,
        decision.reason,
        tuple(one.to_dict() for one in figures),
    )


def _float_bytes(model: ir.Model) -> int:
    tensors = [value.const_value for value in model.graph.initializers.values()]
    return sum(tensor.nbytes for tensor in tensors if tensor is not None)
