"""`accuquant export --target comfyui`: one .safetensors, for which nothing is lowered."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from accuquant.cli._first_recipe import is_graph, recipe_of
from accuquant.errors import UsageError

COMFYUI = "comfyui"
#: Choices for an ONNX graph, and what they are where nobody chose.
_OF_GRAPHS: dict[str, Any] = {
    "inputs": None,
    "input_names": None,
    "lowering": "auto",
    "affine": "auto",
    "float_weights": "auto",
    "weight_storage": "int8",
    "opset": None,
    "external_data": None,
    "whole_pipeline": False,
    "text_weights": "fp32",
    "decoder_recipe": None,
    "triton": None,
}


def check(source: str, output: Path, options: dict[str, Any], triton: Path | None) -> None:
    """Refuse what a file of weights has no use for. Raises UsageError."""
    from accuquant.export.comfyui.write_comfyui import check_output

    given = {**options, "triton": triton}
    chosen = [name for name, default in _OF_GRAPHS.items() if given.get(name, default) != default]
    if chosen:
        raise UsageError(
            ", ".join(f"--{name.replace('_', '-')}" for name in sorted(chosen)),
            got="a choice for a graph, which --target comfyui does not write",
            expected="--precision at most: fp16, bf16 or fp32 for what is not in 8 bits",
            remedy="Leave it out",
        )
    if is_graph(source):
        raise UsageError(
            "--target comfyui",
            got="an .onnx file as SOURCE",
            expected="a pipeline, whose weights have names",
            remedy="Give the pipeline's folder or Hub id",
        )
    check_output(output)


def write(
    source: str,
    recipe: Path | None,
    output: Path,
    precision: str,
    task: dict[str, Any],
    given: dict[str, Any],
) -> None:
    """Write the file, calibrating first where there is no recipe, and say what is in it.

    `task` and `given` (LoRAs, and how weights are loaded) are as for any export.
    """
    from accuquant.cli._progress import Bars
    from accuquant.cli._source import take_loading
    from accuquant.export.comfyui.write_comfyui import FloatType, check_recipe, write_comfyui
    from accuquant.pipelines.lora import find_loras, loras_of_recipe
    from accuquant.pipelines.source import load_source

    loaded = recipe_of(source, recipe, output, {}, {**task, **given})
    check_recipe(loaded)
    floats: FloatType = "fp16" if precision == "auto" else precision  # type: ignore[assignment]  # of a Choice
    fused = loras_of_recipe(loaded.facts.loras, find_loras(given.pop("loras", ())))
    loading = take_loading(given, loaded.facts.loading)
    with Bars() as progress:
        progress.stage(f"exporting {source}", 100)
        pipeline = load_source(source, fused, **vars(loading))
        result = write_comfyui(pipeline, loaded, output, floats=floats, progress=progress.share)
    click.echo(str(result))
