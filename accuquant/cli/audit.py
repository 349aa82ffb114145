"""The command `accuquant audit`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from accuquant.cli._command import Command
from accuquant.cli._options import Source, existing_path, new_file
from accuquant.cli._output import console_beside_json, json_option, print_table, write_json

if TYPE_CHECKING:
    from rich.console import Console

    from accuquant.audit.audit_model import AuditReport
    from accuquant.audit.engine_audit import EngineAudit
    from accuquant.audit.pair_fusion import PairFusion

#: Layer names that a group of unfused pairs shows before --layers is needed for the rest.
_NAMES = 6


@click.command("audit", cls=Command)
@click.argument("model", type=existing_path, metavar="MODEL.onnx|OUT")
@click.option("--target", default="sm89", show_default=True, help="GPU to compile for, e.g. sm86, sm120.")
@click.option(
    "--against",
    type=Source(),
    default="fp16",
    show_default=True,
    metavar="fp16|none|OTHER",
    help="Compare with the same network in fp16 without QDQ, or with another .onnx or exported folder.",
)
@click.option("--backend", default="auto", show_default=True, help="auto, tensorrt or tensorrt_rtx.")
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
    target: str,
    against: str,
    backend: str,
    batch_size: int | None,
    opt_shapes: str,
    layers: bool,
    json_file: Path | None,
    html_file: Path | None,
) -> None:
    """Compile MODEL.onnx, or the exported folder OUT, and say what the compiler made of it.

    No GPU is needed. Shows which share of the work runs in int8, which QDQ pairs did not fuse and why, the
    kernels by kind, and the size by precision, beside the same network in fp16.
    """
    from accuquant.audit.audit_model import audit_model
    from accuquant.cli._progress import Bars
    from accuquant.engines import parse_target
    from accuquant.engines.flags import parse_shapes

    with Bars() as progress:
        report = audit_model(
            model,
            parse_target(target),
            against=None if against == "none" else against,
            backend=backend,
            batch_size=batch_size,
            shapes=parse_shapes("--optShapes", opt_shapes),
            progress=progress,
        )
    if json_file:
        write_json(json_file, json.dumps(report.to_dict(), indent=2))
    if html_file:
        from accuquant._util.files import write_text
        from accuquant.audit.audit_page import render

        write_text(html_file, render(report))
    print_report(console_beside_json(json_file), report, layers=layers)


def print_report(console: Console, report: AuditReport, *, layers: bool) -> None:
    """Print the tables of an audit; `layers` adds every kernel and every pair."""
    subject = report.subject
    audits = [subject, *([report.reference] if report.reference else [])]
    console.print(f"{subject.name} on {subject.target}, {subject.library}", markup=False)
    print_table(console, ("", *(audit.name for audit in audits)), _summary(audits))
    _print_pairs(console, subject, every=layers)
    if layers:
        print_table(console, ("kernel", "kind", "precision", "ONNX nodes"), _kernel_rows(subject))
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
        yield [escape(kernel.name), kernel.kind, kernel.precision, escape(", ".join(kernel.onnx_nodes))]
