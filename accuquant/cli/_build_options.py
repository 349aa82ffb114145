"""The options of `accuquant build`, spelled as trtexec spells them."""

from __future__ import annotations

from typing import Any

import click

from accuquant.cli._options import Function, existing_file, new_file
from accuquant.engines.backend import BACKENDS
from accuquant.engines.flags import REMOVED_OPTIONS, REMOVED_SWITCHES

_SHAPES = "name:1x3x32x32,..."


def build_options(function: Function) -> Function:
    """Add every option of the command; those that trtexec lost end up in `removed`."""
    for option in reversed([*_own(), *_trtexec(), *_removed()]):
        function = option(function)
    return function


def _own() -> list[Any]:
    return [
        click.option(
            "--target",
            "targets",
            metavar="SM,...",
            show_default="the GPU of this machine",
            help="Compute capabilities to compile for: sm75, sm80, sm86, sm89, sm120, sm121.",
        ),
        click.option(
            "--backend",
            type=click.Choice(BACKENDS),
            default="auto",
            show_default=True,
            help="The library that compiles; tensorrt_rtx needs no GPU.",
        ),
        click.option(
            "--batch-size",
            type=click.IntRange(min=1),
            show_default="the model's, else 1",
            help="Images at a time, for a static engine.",
        ),
        click.option(
            "--parts",
            default="all",
            show_default=True,
            metavar="all|network|NAME,...",
            help="Of a folder with its whole pipeline: every part, the network alone, or the parts named, "
            "such as text_encoder,vae_decoder, beside the network. Parts compute in float32.",
        ),
        click.option("--allow-float", is_flag=True, help="Compile a model without Q/DQ pairs as well."),
        click.option("--force", is_flag=True, help="Compile even where the engine is there already."),
    ]


def _trtexec() -> list[Any]:
    shape_options = [
        click.option(f"--{kind}Shapes", f"{kind}_shapes", default="", metavar=_SHAPES, help=text)
        for kind, text in (
            ("min", "Smallest shapes of the dynamic inputs."),
            ("opt", "Shapes to be fast for."),
            ("max", "Largest shapes."),
        )
    ]
    return [
        click.option("--onnx", "onnx_file", type=existing_file, help="The model, as trtexec takes it."),
        click.option(
            "--saveEngine", "save_engine", type=new_file, help="Where the engine goes, where there is one."
        ),
        *shape_options,
        click.option(
            "--timingCacheFile",
            "timing_cache",
            type=new_file,
            show_default="beside the engine",
            help="Measured tactics to reuse (tensorrt).",
        ),
        click.option(
            "--builderOptimizationLevel",
            "builder_optimization_level",
            type=click.IntRange(0, 5),
            show_default="TensorRT's",
            help="How long to search.",
        ),
        click.option(
            "--profilingVerbosity",
            "profiling_verbosity",
            type=click.Choice(("layer_names_only", "detailed", "none")),
            default="detailed",
            show_default=True,
            help="What the engine tells of its layers.",
        ),
        click.option(
            "--memPoolSize", "memory_pools", default="", metavar="POOL:SIZE,...", help="workspace:1024 (MiB)."
        ),
        click.option(
            "--hardwareCompatibilityLevel",
            "hardware_compatibility",
            type=click.Choice(("none", "ampere+", "sameComputeCapability")),
            default="none",
            show_default=True,
            help="Other GPUs that the engine should run on.",
        ),
        click.option(
            "--versionCompatible", "version_compatible", is_flag=True, help="Run with later TensorRTs too."
        ),
        click.option("--stripWeights", "strip_weights", is_flag=True, help="Leave the weights out."),
        click.option("--refit", "refit", is_flag=True, help="Let weights be replaced later."),
        click.option("--noTF32", "no_tf32", is_flag=True, help="Compute float32 layers in full float32."),
        click.option(
            "--exportLayerInfo",
            "export_layer_info",
            type=new_file,
            metavar="FILE",
            help="Write every layer of the engine as JSON.",
        ),
        click.option("--verbose", is_flag=True, help="Print the compiler's log."),
    ]


def _removed() -> list[Any]:
    """Return hidden options that accept what TensorRT 11 removed."""

    def note(ctx: click.Context, param: click.Parameter, value: object) -> None:
        if value:
            ctx.params.setdefault("removed", []).append(param.opts[0])

    common: dict[str, Any] = {"hidden": True, "expose_value": False, "callback": note}
    return [
        *(click.option(name, is_flag=True, **common) for name in REMOVED_SWITCHES),
        *(click.option(name, **common) for name in REMOVED_OPTIONS),
    ]
