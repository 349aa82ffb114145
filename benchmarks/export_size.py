"""Measure the time, memory and file size of exporting a full-size UNet with random weights.

    python benchmarks/export_size.py --models sd15
    python benchmarks/export_size.py --models sdxl
    python benchmarks/export_size.py --models sd15 --weight-bits 4 --weight-storage int4
    python benchmarks/export_size.py --models sd15 --format fp8 --precision fp16

The pipeline (float32 safetensors) and a recipe are made first, in processes of their own. Then a fresh
process loads the pipeline, exports it and ends: its largest resident memory (ru_maxrss, with Python, torch
and the mapped weights in it) and its time from start to end are what the table shows.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path

from report import add_json_option, print_report

_CHOICES = ("tiny", "sd15", "sdxl")
_GB = 1e9


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", choices=_CHOICES, default=["sd15"])
    parser.add_argument("--groups", type=int, default=10, help="step groups (default: %(default)s)")
    parser.add_argument("--precision", choices=("fp32", "fp16"), default="fp32")
    parser.add_argument("--weight-bits", type=int, default=8, help="default: %(default)s")
    parser.add_argument("--format", choices=("int8", "fp8"), default="int8")
    parser.add_argument("--weight-storage", choices=("int8", "int4"), default="int8")
    parser.add_argument(
        "--whole-pipeline",
        action="store_true",
        help="with sd15: text encoder and autoencoder in full size, exported too",
    )
    parser.add_argument("--work", type=Path, help="keep pipelines and exports in this folder")
    parser.add_argument("--child", nargs=2, metavar=("ACTION", "MODEL"), help=argparse.SUPPRESS)
    add_json_option(parser)
    return parser.parse_args()


def make_recipe(folder: Path, arguments: argparse.Namespace) -> None:
    """Write the pipeline's recipe beside it."""
    from large_networks import small_recipe

    from accuquant.pipelines.source import load_source

    recipe = small_recipe(
        load_source(folder),
        num_groups=arguments.groups,
        weight_bits=arguments.weight_bits,
        levels_of=arguments.format,
    )
    recipe.save(recipe_path(folder, arguments))


def export(folder: Path, output: Path, arguments: argparse.Namespace) -> dict[str, float]:
    """Export in this process -> its peak memory, and the bytes of the float weights and of the files."""
    from large_networks import folder_bytes, weight_bytes

    from accuquant.export.write.pipeline_folder import write_pipeline
    from accuquant.pipelines.source import load_source
    from accuquant.recipe import Recipe

    steps: list[tuple[str, float]] = [("loading", time.monotonic())]
    source = load_source(folder)
    recipe = Recipe.load(recipe_path(folder, arguments))
    write_pipeline(
        source,
        recipe,
        output,
        precision=arguments.precision,
        weight_storage=arguments.weight_storage,
        whole_pipeline=arguments.whole_pipeline,
        progress=lambda text, _: steps.append((text, time.monotonic())),
    )
    for (text, start), (_, end) in pairwise(steps):
        print(f"{text}: {end - start:.1f} s", file=sys.stderr)
    usage = resource.getrusage(resource.RUSAGE_SELF)
    size = sum(size for _, size in folder_bytes(output / "unet"))
    return {
        "peak": usage.ru_maxrss * 1024.0,
        "weights": float(weight_bytes(source.network)),
        "file": float(size),
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
    }


def recipe_path(folder: Path, arguments: argparse.Namespace) -> Path:
    """Return where the recipe of the pipeline in `folder` lies."""
    bits = f"w{arguments.weight_bits}" if arguments.format == "int8" else arguments.format
    return folder.with_name(f"{folder.name}-{bits}.safetensors")


def run_child(arguments: argparse.Namespace, action: str, model: str, work: Path) -> dict[str, float]:
    """Do one action in a fresh process -> what it printed last, and its seconds."""
    command = [
        sys.executable, __file__, "--child", action, model, "--work", str(work),
        "--groups", str(arguments.groups), "--precision", arguments.precision,
        "--weight-bits", str(arguments.weight_bits), "--weight-storage", arguments.weight_storage,
        "--format", arguments.format,
        *(["--whole-pipeline"] if arguments.whole_pipeline else []),
    ]  # fmt: skip
    start = time.monotonic()
    result = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, float] = json.loads(result.stdout.splitlines()[-1])
    return {**found, "seconds": time.monotonic() - start}


def do_child(arguments: argparse.Namespace) -> dict[str, float]:
    """Do the action that this process was started for."""
    from large_networks import write_pipeline

    action, model = arguments.child
    folder = arguments.work / model
    if action == "write":
        write_pipeline(model, folder, full_parts=arguments.whole_pipeline)
    elif action == "recipe":
        make_recipe(folder, arguments)
    else:
        return export(folder, arguments.work / f"{model}-{arguments.format}", arguments)
    return {}


def main() -> None:
    """Prepare and export each model, and print what it took."""
    arguments = parse_arguments()
    if arguments.child:
        print(json.dumps(do_child(arguments)))
        return
    results: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        work = arguments.work or Path(temporary)
        for model in arguments.models:
            folder = work / model
            if not folder.is_dir():
                run_child(arguments, "write", model, work)
            if not recipe_path(folder, arguments).is_file():
                run_child(arguments, "recipe", model, work)
            results[model] = run_child(arguments, "export", model, work)
    print_report(
        f"Export of a whole UNet, {_stored(arguments)}, "
        f"{arguments.groups} step groups, {arguments.precision}, fresh process",
        ("", "weights fp32 GB", "peak GB", "peak / weights", "file GB", "file / weights", "s", "CPU s"),
        [_row(name, found) for name, found in results.items()],
        notes=[
            "Random weights; peak is ru_maxrss; s from the start of Python to its end, CPU s in all threads."
        ],
        record={
            "precision": arguments.precision,
            "weight_bits": arguments.weight_bits,
            "format": arguments.format,
            "groups": arguments.groups,
            "results": results,
        },
        json_path=arguments.json,
    )


def _stored(arguments: argparse.Namespace) -> str:
    if arguments.format == "fp8":
        return "FP8"
    return f"W{arguments.weight_bits}A8 stored as {arguments.weight_storage}"


def _row(name: str, found: dict[str, float]) -> list[str]:
    weights = found["weights"]
    return [
        name, f"{weights / _GB:.2f}", f"{found['peak'] / _GB:.2f}", f"{found['peak'] / weights:.2f}",
        f"{found['file'] / _GB:.2f}", f"{found['file'] / weights:.3f}", f"{found['seconds']:.0f}",
        f"{found['cpu_seconds']:.0f}",
    ]  # fmt: skip


if __name__ == "__main__":
    main()
