"""What every benchmark prints: one table, then the command, the versions and the processor."""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from accuquant._util.files import write_text
from accuquant.verification.report.facts import versions

_OTHERS = ("nncf", "nvidia-modelopt")
#: Tables are read in log files too, where a narrow terminal must not cut them.
_WIDTH = 120


def add_json_option(parser: argparse.ArgumentParser) -> None:
    """Add --json FILE."""
    parser.add_argument("--json", type=Path, metavar="FILE", help="write settings and measurements to FILE")


def print_report(
    title: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    notes: Sequence[str] = (),
    record: Mapping[str, Any],
    json_path: Path | None,
) -> None:
    """Print the table and what made it; write `record` (JSON values) and the same facts to `json_path`."""
    console = Console(highlight=False, soft_wrap=True)
    console.width = max(console.width, _WIDTH)
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    for position, column in enumerate(columns):
        table.add_column(column, justify="left" if position == 0 else "right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    console.print(table)
    for note in notes:
        console.print(note, markup=False)
    facts = {"command": command(), "versions": all_versions(), "machine": machine()}
    console.print(f"\nCommand: {facts['command']}", markup=False)
    console.print("Versions: " + ", ".join(f"{k} {v}" for k, v in all_versions().items()), markup=False)
    console.print(f"Machine: {facts['machine']}", markup=False)
    if json_path is not None:
        write_text(json_path, json.dumps({"title": title, **facts, **record}, indent=2) + "\n")


def command() -> str:
    """Return the command line of this process, as a reader would type it in the repository."""
    script = Path(sys.argv[0])
    return shlex.join(["python", f"{script.parent.name}/{script.name}", *sys.argv[1:]])


def all_versions() -> dict[str, str]:
    """Return the versions of AccuQuant and of every package that a benchmark may run."""
    found = versions()
    for package in _OTHERS:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def machine() -> str:
    """Return the processor, the cores that this process may use, and what the processor has for int8."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    name, flags = _processor()
    int8 = [flag for flag in ("amx_int8", "avx512_vnni", "avx_vnni") if flag in flags]
    # without VNNI an int8 convolution adds two products in 16 bits, which saturate for 8-bit weights
    return f"{name}, {cores} cores, {platform.system()}, {', '.join(int8) if int8 else 'no VNNI'}"


def _processor() -> tuple[str, list[str]]:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    found = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    name = found.get("model name") or platform.processor() or platform.machine()
    return name, (found.get("flags") or found.get("Features") or "").split()
