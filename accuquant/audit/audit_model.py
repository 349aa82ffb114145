"""Audit an ONNX file or an exported folder: compile it, and what it is compared with, then read both logs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir
from onnx_ir.passes.common import NameFixPass

import accuquant
from accuquant._util.progress import Progress
from accuquant._util.real_model import real_model
from accuquant._util.scratch import scratch_folder
from accuquant.audit.engine_audit import EngineAudit, audit_engine
from accuquant.audit.verdict import Verdict
from accuquant.engines import BuildOptions, ShapeRange, Target, compile_engine
from accuquant.engines.flags import make_profile
from accuquant.engines.profile import read_inputs, static_profile
from accuquant.errors import SourceError, UsageError
from accuquant.graph.roles import check_roles
from accuquant.manifest import MANIFEST_NAME, Manifest

#: --against: the same network in float16 without QDQ pairs.
FP16 = "fp16"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class AuditReport:
    """One engine, and the one that it is compared with."""

    subject: EngineAudit
    reference: EngineAudit | None

    @property
    def verdict(self) -> Verdict | None:
        """Which of the two should be faster; None where one is missing, or where they were run and timed."""
        if self.reference is None or self.subject.milliseconds is not None:
            return None
        return Verdict.of(self.subject, self.reference)

    def to_dict(self) -> dict[str, Any]:
        """Return the facts as JSON values."""
        return {
            "format_version": FORMAT_VERSION,
            "accuquant_version": accuquant.__version__,
            "subject": self.subject.to_dict(),
            "reference": self.reference.to_dict() if self.reference else None,
            "preferred": self.verdict.preferred if self.verdict else None,
        }


def audit_model(
    source: Path,
    target: Target,
    *,
    against: str | None = None,
    backend: str = "auto",
    batch_size: int | None = None,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    progress: Progress | None = None,
) -> AuditReport:
    """Compile `source` for `target`, without a GPU, and say what the compiler made of it.

    `source` is an .onnx file or a folder that `accuquant export` wrote; where the folder has one graph a
    step group, the first one stands for all. `against` is None, FP16, another .onnx file or another
    folder. Dynamic inputs have `shapes`; without any, the sizes of the model's signature and `batch_size`.
    Raises SourceError where there is no such model, UsageError for shapes that do not fit it, EngineError
    where it cannot be compiled or its log cannot be read.
    """
    model, count = find_graph(source)
    if against is not None and against != FP16:
        other, other_count = find_graph(Path(against))  # before the minutes that the first takes

    def audit(path: Path, name: str, num_engines: int) -> EngineAudit:
        options = BuildOptions(target, backend=backend, profile=_profile(path, batch_size, shapes or {}))
        with scratch_folder("audit") as scratch:
            compiled = compile_engine(path, scratch / "plan", options, progress=progress)
            return audit_engine(path, compiled, options, name=name, num_engines=num_engines)

    subject = audit(model, name_of(source), count)
    if against is None:
        return AuditReport(subject, None)
    if against == FP16:
        with scratch_folder("audit") as scratch:
            twin = write_float_twin(model, scratch)
            return AuditReport(subject, audit(twin, f"{name_of(source)} in fp16 without QDQ", 1))
    return AuditReport(subject, audit(other, name_of(Path(against)), other_count))


def shapes_of(
    model: Path, batch_size: int | None, shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, tuple[int, ...]]:
    """Return the shape of each dynamic input of `model`: from `shapes`, else its signature and the batch.

    Raises UsageError where they do not fit the model, or do not say enough.
    """
    return {name: profile.opt for name, profile in _profile(model, batch_size, shapes).items()}


def _profile(
    model: Path, batch_size: int | None, shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, ShapeRange]:
    if not shapes:
        return static_profile(model, batch_size=batch_size)
    if batch_size is not None:
        raise UsageError(
            "--batch-size",
            got="shapes as well",
            expected="a batch size or shapes",
            remedy="Write the batch into --optShapes",
        )
    return make_profile(read_inputs(model)[0], min_shapes={}, opt_shapes=dict(shapes), max_shapes={})


def find_graph(source: Path) -> tuple[Path, int]:
    """Return (.onnx file, number of graphs of its kind) for an .onnx file or an exported folder."""
    if source.is_dir():
        manifest = Manifest.load(source)
        return real_model(manifest.graph_paths(source)[0]), len(manifest.graphs)
    if not source.is_file():
        raise SourceError(
            f"'{source}'",
            got="no such file or folder",
            expected=f"an .onnx file or a folder with {MANIFEST_NAME}",
            remedy="Check the path, or run `accuquant export` first",
        )
    return real_model(source), 1


def write_float_twin(model: Path, folder: Path, *, half: bool = True) -> Path:
    """Write the float network that `model` was before it was quantized into `folder` -> its path.

    It is in float16, or with `half` False in float32.

    It has the float network's operators and shapes, so that it compiles to the engine one would have
    without int8; see RemovePairsPass for why it is not to be run.
    """
    from accuquant.export.passes.half_precision import HalfPrecisionPass
    from accuquant.export.passes.remove_pairs import RemovePairsPass
    from accuquant.export.passes.single_precision import SinglePrecisionPass
    from accuquant.export.read.onnx_source import read_model
    from accuquant.export.write.graph_files import save_graphs

    graph = read_model(model, keep_half=True)
    check_roles(graph, model)
    RemovePairsPass()(graph)
    SinglePrecisionPass()(graph)  # a bfloat16 graph has a float16 twin too
    if half and not any(value.dtype == ir.DataType.FLOAT16 for value in graph.graph.initializers.values()):
        HalfPrecisionPass()(graph)
    NameFixPass()(graph)
    name = "fp16" if half else "fp32"
    save_graphs({f"{name}.onnx": graph}, folder, f"{name}.onnx_data")
    return folder / f"{name}.onnx"


def name_of(source: Path) -> str:
    """Return what a table calls the model at `source`."""
    return source.name or str(source.resolve().name)
