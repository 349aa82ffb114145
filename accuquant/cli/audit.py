"""The command `accuquant audit`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click

from accuquant.cli._command import Command
from accuquant.cli._options import Source, existing_path, new_file
from accuquant.cli._output import console_beside_json, json_option, print_table, write_json
from accuquant.errors import UsageError

if TYPE_CHECKING:
    from rich.console import Console

    from accuquant.audit.audit_model import AuditReport
    from accuquant.audit.engine_audit import EngineAudit
    from accuquant.audit.pair_fusion import PairFusion

Shapes = Mapping[str, tuple[int, ...]]
_ENGINES = ("tensorrt", "openvino", "onnxruntime")
#: Layer names that a group of unfused pairs shows before --layers is needed for the rest.
_NAMES = 6


@click.command("audit", cls=Command)
@click.argument("model", type=existing_path, metavar="MODEL.onnx|OUT")
@click.option(
    "--engine",
    type=click.Choice(_ENGINES),
    default=_ENGINES[0],
    show_default=True,
    help="tensorrt is compiled without a GPU; the others run on this machine's processor.",
)
@click.option("--target", show_default="sm89", help="GPU to compile for, e.g. sm86, sm120 (TensorRT).")
@click.option(
    "--against",
    type=Source(),
    show_default="the same network without QDQ",
    metavar="fp16|float|none|OTHER",
    help="Compare with the same network without QDQ (fp16 of TensorRT, float elsewhere), another .onnx or "
    "an exported folder.",
)
@click.option("--backend", show_default="auto", help="auto, tensorrt or tensorrt_rtx (TensorRT).")
@click.option(
    "--threads",
    "num_threads",
    type=click.IntRange(min=1),
    show_default="all cores",
    help="CPU threads (OpenVINO, ONNX Runtime).",
)
@click.option(
    "--batch-size", type=click.IntRange(min=1), help="Images at a time, where the model leaves it open."
)
@click.option(
    "--optShapes",
    "opt_shapes",
    default="",
    metavar="sample:1x3x32x32,...",
    help="Shapes of the dynamic inputs, where the model does not say them.",
)
@click.option("--layers", is_flag=True, help="List every kernel of the engine, and every pair by name.")
@json_option("everything that was found")
@click.option("--html", "html_file", type=new_file, metavar="FILE", help="Write the audit as one HTML page.")
def command(
    model: Path,
    engine: str,
    target: str | None,
    against: str | None,
    backend: str | None,
    num_threads: int | None,
    batch_size: int | None,
    opt_shapes: str,
    layers: bool,
    json_file: Path | None,
    html_file: Path | None,
) -> None:
    """Compile MODEL.onnx, or the exported folder OUT, and say what the engine made of it.

    Shows which share of the work runs in int8 or FP8, which QDQ pairs did not fuse and why, the kernels by
    kind, and the size by precision, beside the same network without QDQ, or beside the other format
    (--against): which should be faster. TensorRT needs no GPU and runs nothing;
    OpenVINO and ONNX Runtime run on this machine's processor, and say where the time goes as well.
    """
    from accuquant.engines.flags import parse_shapes

    shapes = parse_shapes("--optShapes", opt_shapes)
    if engine == _ENGINES[0]:
        _refuse(engine, {"--threads": num_threads})
        report = _compiled(model, target, against, backend, batch_size, shapes)
    else:
        _refuse(engine, {"--target": target, "--backend": backend})
        report = _run(model, engine, against, num_threads, batch_size, shapes)
    if json_file:
        write_json(json_file, json.dumps(report.to_dict(), indent=2))
    if html_file:
        from accuquant._util.files import write_text
        from accuquant.audit.audit_page import render

        write_text(html_file, render(report))
    print_report(console_beside_json(json_file), report, layers=layers)


def _compiled(
    model: Path,
    target: str | None,
    against: str | None,
    backend: str | None,
    batch_size: int | None,
    shapes: Shapes,
) -> AuditReport:
    from accuquant.audit.audit_model import FP16, audit_model
    from accuquant.cli._progress import Bars
    from accuquant.engines import parse_target

    with Bars() as progress:
        return audit_model(
            model,
            parse_target(target or "sm89"),
            against=_other(against, FP16),
            backend=backend or "auto",
            batch_size=batch_size,
            shapes=shapes,
            progress=progress,
        )


def _run(
    model: Path,
    engine: str,
    against: str | None,
    num_threads: int | None,
    batch_size: int | None,
    shapes: Shapes,
) -> AuditReport:
    from accuquant.audit.cpu_audit import FLOAT, audit_on_cpu
    from accuquant.cli._progress import Bars

    with Bars() as progress:
        return audit_on_cpu(
            model,
            "openvino" if engine == "openvino" else "onnxruntime",
            against=_other(against, FLOAT),
            batch_size=batch_size,
            shapes=shapes,
            num_threads=num_threads,
            progress=progress,
        )


def _other(against: str | None, default: str) -> str | None:
    """Return what is compared with: `default` where nothing is said, None for "none"."""
    return None if against == "none" else against or default


def _refuse(engine: str, options: dict[str, object]) -> None:
    given = [name for name, value in options.items() if value is not None]
    if given:
        raise UsageError(
            ", ".join(given),
            got=f"a choice for --engine {engine}",
            expected="none: it is an option of another engine",
            remedy="Leave it out, or choose another --engine",
        )


def print_report(console: Console, report: AuditReport, *, layers: bool) -> None:
    """Print the tables of an audit; `layers` adds every kernel and every pair."""
    subject = report.subject
    audits = [subject, *([report.reference] if report.reference else [])]
    console.print(f"{subject.name} on {subject.target}, {subject.library}", markup=False)
    print_table(console, ("", *(audit.name for audit in audits)), _summary(audits))
    if report.verdict is not None:
        console.print(str(report.verdict), markup=False)
    _print_pairs(console, subject, every=layers)
    if layers:
        print_table(console, ("kernel", "kind", "precision", "ms", "ONNX nodes"), _kernel_rows(subject))
    for audit in audits:
        for text in audit.not_understood:
            console.print(f"{audit.name}: not understood: {text}", markup=False)


def _summary(audits: list[EngineAudit]) -> Iterator[list[str]]:
    from accuquant.audit.figures import summary_rows

    for row in summary_rows(audits):
        yield [f"  [dim]{row.name}[/]" if row.indented else row.name, *row.cells]


def _print_pairs(console: Console, audit: EngineAudit, *, every: bool) -> None:
    from accuquant.audit.figures import grouped_pairs

    if not audit.pairs:
        console.print("No QDQ pair: the engine runs in float. Quantize the network with `accuquant export`.")
        return
    groups = grouped_pairs(audit)
    console.print("QDQ pairs that did not fuse:" if groups else "Every QDQ pair fused.")
    for pairs in groups:
        first = pairs[0]
        lines = (
            f"{len(pairs)} {first.outcome}: {first.reason}",
            f"  remedy: {first.remedy}",
            f"  layers: {_names(pairs, every=every)}",
        )
        for line in lines:
            console.print(f"  {line}", markup=False)
    console.print()


def _names(pairs: Iterable[PairFusion], *, every: bool) -> str:
    names = list(dict.fromkeys(pair.layer for pair in pairs))
    shown = names if every else names[:_NAMES]
    rest = f" and {len(names) - len(shown)} more (--layers)" if len(shown) < len(names) else ""
    return ", ".join(shown) + rest


def _kernel_rows(audit: EngineAudit) -> Iterator[list[str]]:
    from rich.markup import escape

    for kernel in audit.kernel_list:
        time = "" if kernel.milliseconds is None else f"{kernel.milliseconds:.3f}"
        nodes = escape(", ".join(kernel.onnx_nodes))
        yield [escape(kernel.name), kernel.implementation or kernel.kind, kernel.precision, time, nodes]
