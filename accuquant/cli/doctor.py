"""The command `accuquant doctor`."""

from __future__ import annotations

import json
from pathlib import Path

import click

from accuquant.cli._command import Command
from accuquant.cli._output import console_beside_json, json_option, print_table, write_json

_COLOURS = {"ok": "green", "absent": "dim", "warning": "yellow", "broken": "bold red"}


@click.command("doctor", cls=Command)
@json_option("the findings")
@click.option("--gpu", is_flag=True, help="Exit with 1 also where TensorRT or an NVIDIA GPU is missing.")
@click.pass_context
def command(ctx: click.Context, json_file: Path | None, gpu: bool) -> None:
    """Say what is installed, what works (by trying it), and what to install.

    Exits with 1 where exported models cannot be run on this machine.
    """
    from rich.markup import escape

    from accuquant.doctor import examine, works

    findings = examine()
    if json_file:
        write_json(json_file, json.dumps([vars(finding) for finding in findings], indent=2))
    console = console_beside_json(json_file)
    rows = [
        (f"[{_COLOURS[f.status]}]{f.status}[/]", f.subject, escape(f.detail), escape(f.remedy))
        for f in findings
    ]
    print_table(console, ("", "what", "found", "to do"), rows)
    if not works(findings):
        console.print("[bold red]Exported models cannot be run here: see the lines marked broken.[/bold red]")
        ctx.exit(1)
    if not works(findings, gpu=gpu):
        console.print(
            "[bold red]TensorRT engines cannot be run here: see NVIDIA GPU and TensorRT.[/bold red]"
        )
        ctx.exit(1)
    console.print("AccuQuant works here.")
