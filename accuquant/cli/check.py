"""The command `accuquant check`."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import click

from accuquant.cli._command import Command
from accuquant.cli._options import existing_file
from accuquant.cli._output import console_beside_json, json_option, print_table, write_json


@click.command("check", cls=Command)
@click.argument("model", type=existing_file, metavar="MODEL.onnx")
@json_option("the violations")
@click.pass_context
def command(ctx: click.Context, model: Path, json_file: Path | None) -> None:
    """Name every node of MODEL.onnx that breaks TensorRT's int8 rules, with the remedy.

    Exits with 1 where there is a violation.
    """
    from rich.markup import escape

    from accuquant.export import check_model

    violations = check_model(model)
    if json_file:
        write_json(json_file, json.dumps([asdict(v) for v in violations], indent=2))
    console = console_beside_json(json_file)
    if violations:
        rows = [[escape(text) for text in (v.rule, v.node, v.message, v.remedy)] for v in violations]
        print_table(console, ("rule", "node", "found", "remedy"), rows)
        ctx.exit(1)
    console.print(f"{model}: no violation", markup=False)
