"""Export released transformers at their full size, with random weights: seconds, peak memory, size.

    python benchmarks/full_size_export.py --models wan-2.1-1.3b sana-1.6b
    python benchmarks/full_size_export.py --models chroma --blocks 1,1 2,1 1,2

The published configuration is written with random weights in bfloat16, beside its scheduler. How it is called
is captured from its real pipeline around one block of it (tiny text encoders and decoder, a small image).
The recipe has the default layers in int8, min-max weights and made-up activation scales of two step groups:
what an export takes does not depend on their values. Then `accuquant export` runs as a process of its own.
With `--blocks` so many blocks of each kind are exported instead, and what all of them would take is
extrapolated, where blocks of a kind are alike: linear in their numbers.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
from full_size import run
from large_families import FAMILIES, Family
from large_networks import folder_bytes
from report import add_json_option, print_report

_GB = 1e9
_HEADER = ("network, blocks", "weights GB in bf16", "s", "peak GB", "anonymous GB", "files GB")
_COMPONENT = "transformer"


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", choices=tuple(FAMILIES), required=True)
    parser.add_argument("--blocks", nargs="+", metavar="N[,N]", help="export so many blocks, not all")
    parser.add_argument("--work", type=Path, help="keep the last network and its export in this folder")
    parser.add_argument("--prepare", nargs=2, metavar=("FOLDER", "BLOCKS"), help=argparse.SUPPRESS)
    add_json_option(parser)
    return parser.parse_args()


def prepare(family: Family, folder: Path, blocks: dict[str, int]) -> None:
    """Write the network with `blocks`, its scheduler and its recipe into `folder`."""
    import torch
    from large_networks import made_up_recipe, write_network

    from accuquant.pipelines.source import load_source

    with tempfile.TemporaryDirectory() as temporary:
        signature = _signature(family, Path(temporary))
    write_network(family.network, family.configuration | blocks, folder / _COMPONENT, torch.bfloat16)
    _write_parts(family, folder, {"scheduler": family.parts()["scheduler"]})
    source = load_source(folder, as_stored=True, signature=signature)
    made_up_recipe(source, num_groups=2).save(folder.with_name(f"{folder.name}.safetensors"))


def _signature(family: Family, folder: Path) -> Any:
    """Return how the pipeline calls its network, seen around a network of one block."""
    import torch
    from large_networks import write_network

    from accuquant.pipelines.called_source import called_source
    from accuquant.pipelines.source import load_source
    from accuquant.pipelines.task import Task

    one = dict.fromkeys(family.blocks, 1)
    write_network(family.network, family.configuration | one, folder / _COMPONENT, torch.bfloat16)
    _write_parts(family, folder, family.parts())
    source = load_source(folder, as_stored=True)
    return called_source(source, Task(prompts=("a b c",), **family.task), 2).signature


def _write_parts(family: Family, folder: Path, parts: dict[str, Any]) -> None:
    entries: dict[str, Any] = {
        "_class_name": family.pipeline,
        "_diffusers_version": diffusers.__version__,
        _COMPONENT: ["diffusers", family.network.__name__],
    }
    for part, value in parts.items():
        value.save_pretrained(folder / part)
        entries[part] = [type(value).__module__.split(".")[0], type(value).__name__]
    (folder / "model_index.json").write_text(json.dumps(entries))


def measure(name: str, blocks: dict[str, int], folder: Path) -> dict[str, Any]:
    """Export one network, in processes of their own -> what it took."""
    counts = ",".join(map(str, blocks.values()))
    command = [sys.executable, __file__, "--models", name, "--prepare", str(folder), counts]
    subprocess.run(command, check=True)
    output = folder.with_name(f"{folder.name}-int8")
    recipe = folder.with_name(f"{folder.name}.safetensors")
    stages = run(["export", str(folder), "--recipe", str(recipe), "-o", str(output)])
    return {
        "model": name,
        "blocks": list(blocks.values()),
        "weights": sum(path.stat().st_size for path in (folder / _COMPONENT).glob("*.safetensors")),
        "seconds": stages[-1].began - stages[0].began,
        "peak": max(stage.peak for stage in stages),
        "anonymous": max(stage.anonymous for stage in stages),
        "files": sum(size for _, size in folder_bytes(output / _COMPONENT)),
    }


def extrapolated(found: list[dict[str, Any]], all_blocks: dict[str, int]) -> dict[str, Any]:
    """Return what all blocks would take: least squares, linear in the numbers of blocks of each kind."""
    rows = np.array([[1, *one["blocks"]] for one in found], float)
    wanted = np.array([1, *all_blocks.values()], float)
    keys = ("weights", "seconds", "peak", "anonymous", "files")
    solved = {
        key: float(wanted @ np.linalg.lstsq(rows, [one[key] for one in found], rcond=None)[0]) for key in keys
    }
    return {"model": found[0]["model"], "blocks": list(all_blocks.values()), "extrapolated": True, **solved}


def _counts(family: Family, text: str) -> dict[str, int]:
    numbers = [int(word) for word in text.split(",")]
    return dict(zip(family.blocks, numbers, strict=True))


def main() -> None:
    """Export the networks and print what it took."""
    arguments = parse_arguments()
    if arguments.prepare:
        family = FAMILIES[arguments.models[0]]
        return prepare(family, Path(arguments.prepare[0]), _counts(family, arguments.prepare[1]))
    results: list[dict[str, Any]] = []
    for name in arguments.models:
        family = FAMILIES[name]
        chosen = [_counts(family, text) for text in arguments.blocks or ()] or [family.blocks]
        found = []
        for blocks in chosen:
            with tempfile.TemporaryDirectory(dir=arguments.work) as temporary:
                found.append(measure(name, blocks, Path(temporary) / name))
            print(*_row(found[-1]), sep="  ", file=sys.stderr)  # a run that is stopped has told so much
        results += found
        if family.alike and len(found) > len(family.blocks):
            results.append(extrapolated(found, family.blocks))
    print_report(
        "Exports of full-size networks, random weights in bfloat16",
        _HEADER,
        [_row(one) for one in results],
        notes=["peak is VmHWM, pages of the weights' files included; without them it is anonymous"],
        record={"results": results},
        json_path=arguments.json,
    )
    return None


def _row(one: dict[str, Any]) -> list[str]:
    blocks = "+".join(map(str, one["blocks"]))
    note = ", extrapolated" if one.get("extrapolated") else ""
    figures = (one["weights"] / _GB, one["seconds"], one["peak"] / _GB, one["anonymous"] / _GB)
    weights, seconds, peak, anonymous = figures
    return [
        f"{one['model']}, {blocks}{note}", f"{weights:.2f}", f"{seconds:.0f}", f"{peak:.2f}",
        f"{anonymous:.2f}", f"{one['files'] / _GB:.2f}",
    ]  # fmt: skip


if __name__ == "__main__":
    main()
