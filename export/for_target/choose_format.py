"""Export the recipe whose format suits a target best: int8 or FP8, measured, audited, or by a rule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from accuquant._util.progress import Progress, Share, Silent
from accuquant._util.real_model import real_model
from accuquant._util.scratch import scratch_beside
from accuquant.audit.audit_model import audit_model, write_float_twin
from accuquant.audit.engine_audit import EngineAudit
from accuquant.audit.verdict import MIN_SAVING, Verdict
from accuquant.e4m3 import Format
from accuquant.engines import BuildOptions
from accuquant.engines.build import build_engine
from accuquant.engines.profile import static_profile
from accuquant.errors import AccuQuantError, UsageError
from accuquant.export.export_options import ExportOptions, Lowering, Precision, check_format
from accuquant.export.for_target.compiled import time_engines
from accuquant.export.for_target.export_target import ExportTarget, resolve_target
from accuquant.export.for_target.for_pipeline import export_pipeline
from accuquant.export.write.pipeline_folder import check_output
from accuquant.export_choice import Basis, ExportChoice
from accuquant.manifest import Manifest
from accuquant.pipelines.source import Source
from accuquant.recipe import Recipe

#: The network in float16 without QDQ pairs, which both formats are compared with.
FLOAT = "fp16"
_CLOSER = "int8 is closer to the float network wherever both were measured"


@dataclass(frozen=True)
class FormatDecision:
    """The format to take, what that rests on, why, and the figures that were compared."""

    format: Format
    basis: Basis
    reason: str
    figures: tuple[Mapping[str, Any], ...] = ()


def export_best_format(
    source: Source,
    recipes: Sequence[Recipe],
    output: Path,
    options: ExportOptions | None = None,
    *,
    decoder: Recipe | None = None,
    share: Share | None = None,
    progress: Progress | None = None,
) -> Manifest:
    """Write `source` into the folder `output` with one of `recipes`, an int8 and an FP8 one of its network.

    For the GPU of this machine both are built and timed, and float16 without QDQ pairs with them. For one
    that is not here tensorrt_rtx compiles them, and the audit compares them. A CPU, and a GPU that has no
    FP8, get int8 by a rule, as do formats that are alike. The manifest's `choice` says which, and why.
    Everything else is as in export_pipeline. Raises UsageError unless the recipes are one of each format.
    """
    by_format = check_formats(recipes)
    options, shown, output = options or ExportOptions(), progress or Silent(), Path(output)
    check_output(output)
    target = resolve_target(options.target)
    rule = _rule(options, target)
    if rule is not None:
        manifest = export_pipeline(
            source, by_format[rule.format], output, options, decoder=decoder, share=share, progress=progress
        )
        return _noted(manifest, target, rule, output)
    with scratch_beside(output) as scratch:
        folders: dict[str, Path] = {name: scratch / name for name in by_format}
        made = {
            name: export_pipeline(source, recipe, folders[name], options, progress=progress)
            for name, recipe in by_format.items()
        }
        decision = _compare(folders, target, scratch, shown)
    best = made[decision.format]
    # as it was asked for
    lowering, precision = cast(Lowering, best.lowering), cast(Precision, best.precision)
    settled = replace(options, lowering=lowering, precision=precision)
    manifest = export_pipeline(
        source, by_format[decision.format], output, settled, decoder=decoder, share=share, progress=progress
    )
    return _noted(replace(manifest, choice=best.choice), target, decision, output)


def check_formats(recipes: Sequence[Recipe]) -> dict[Format, Recipe]:
    """Return the recipes by format. Raises UsageError unless they are an int8 and an FP8 one."""
    by_format = {recipe.format: recipe for recipe in recipes}
    if len(recipes) == 2 and len(by_format) == 2:
        return by_format
    raise UsageError(
        "--recipe",
        got=f"{len(recipes)} recipes of the format {' and '.join(sorted(by_format))}",
        expected="one recipe, or an int8 and an FP8 one to choose from",
        remedy="Calibrate with --format int8 and with --format fp8",
    )


def decide_format(times: Mapping[str, float]) -> FormatDecision:
    """Return the faster of int8 and FP8 by their milliseconds, int8 where they are alike."""
    figures = tuple({"format": name, "milliseconds": value} for name, value in times.items())
    said = ", ".join(f"{name} {value:.2f} ms" for name, value in times.items())
    saved = 1 - times["fp8"] / times["int8"]
    best: Format = "fp8" if saved >= MIN_SAVING else "int8"
    why = f"{best} is faster" if abs(saved) >= MIN_SAVING else f"alike, and {_CLOSER}"
    if times[FLOAT] < times[best]:
        why += f"; {FLOAT} without QDQ pairs is faster than both"
    return FormatDecision(best, "measurement", f"{why} ({said})", figures)


def decide_by_audit(audits: Mapping[str, EngineAudit]) -> FormatDecision:
    """Return the format whose engine should be faster, int8 where they are alike."""
    verdict = Verdict.of(audits["fp8"], audits["int8"])
    best: Format = "fp8" if verdict.preferred == audits["fp8"].name else "int8"
    alike = verdict.preferred is None
    why = (
        f"alike, and {_CLOSER}" if alike else f"{best} should be faster, by {100 * abs(verdict.saving):.0f} %"
    )
    against = Verdict.of(audits[best], audits[FLOAT])
    if against.preferred == audits[FLOAT].name:
        why += f"; {FLOAT} without QDQ pairs should be faster than both"
    said = ", ".join(
        f"{name} {one.num_kernels} kernels that move {one.traffic / 1e6:.1f} MB"
        for name, one in audits.items()
    )
    figures = tuple(
        {"format": name, "kernels": one.num_kernels, "traffic": one.traffic} for name, one in audits.items()
    )
    return FormatDecision(best, "audit", f"{why} ({said})", figures)


def _rule(options: ExportOptions, target: ExportTarget) -> FormatDecision | None:
    if target.gpu is None:
        return FormatDecision("int8", "rule", "CPUs compute int8, and emulate FP8 in float")
    try:
        check_format(replace(options, target=target.name), "fp8")
    except AccuQuantError as fault:
        return FormatDecision("int8", "rule", f"{fault.subject} takes no FP8")
    return None


def _compare(
    folders: Mapping[str, Path], target: ExportTarget, scratch: Path, progress: Progress
) -> FormatDecision:
    assert target.gpu is not None, "a rule decides for CPUs"
    faults = []
    if target.is_here:
        try:
            return decide_format(_measure(folders, target, scratch, progress))
        except AccuQuantError as fault:
            faults.append(f"no measurement: {fault.subject}, {fault.got}")
    try:
        report = audit_model(folders["fp8"], target.gpu, against=str(folders["int8"]), backend="tensorrt_rtx")
        half = audit_model(_twin(folders, scratch), target.gpu, backend="tensorrt_rtx").subject
        assert report.reference is not None
        decision = decide_by_audit({"int8": report.reference, "fp8": report.subject, FLOAT: half})
    except AccuQuantError as fault:
        faults.append(f"no audit: {fault.subject}, {fault.got}")
        decision = FormatDecision("int8", "rule", _CLOSER)
    noted = f" ({'; '.join(faults)})" if faults else ""
    return replace(decision, reason=decision.reason + noted)


def _measure(
    folders: Mapping[str, Path], target: ExportTarget, scratch: Path, progress: Progress
) -> dict[str, float]:
    assert target.gpu is not None
    models = {name: _graph(folder) for name, folder in folders.items()}
    models[FLOAT] = _twin(folders, scratch)
    engines = {name: scratch / f"{name}.engine" for name in models}
    for name, model in models.items():
        build = BuildOptions(target.gpu, profile=static_profile(model))
        build_engine(model, engines[name], build, rebuild="accuquant build", progress=progress)
    return time_engines(engines, progress)


def _graph(folder: Path) -> Path:
    return real_model(Manifest.load(folder).graph_paths(folder)[0])


def _twin(folders: Mapping[str, Path], scratch: Path) -> Path:
    folder = scratch / FLOAT
    folder.mkdir(exist_ok=True)
    return write_float_twin(_graph(folders["int8"]), folder)


def _noted(manifest: Manifest, target: ExportTarget, decision: FormatDecision, output: Path) -> Manifest:
    """Write what was decided into the manifest of `output`, before why the lowering is what it is."""
    choice = manifest.choice or ExportChoice(
        target.name, manifest.precision, manifest.lowering, decision.basis, "named by the caller"
    )
    noted = replace(
        choice,
        reason=f"{decision.format} of int8 and fp8, by {decision.basis}: {decision.reason}. "
        f"{manifest.lowering}: {choice.reason}",
        candidates=(*decision.figures, *choice.candidates),
    )
    manifest = replace(manifest, choice=noted)
    manifest.save(output)
    return manifest
