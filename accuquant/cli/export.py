"""The command `accuquant export`, also known as `accuquant-export`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from accuquant.cli._comfyui import COMFYUI
from accuquant.cli._comfyui import check as check_comfyui
from accuquant.cli._comfyui import write as write_comfyui
from accuquant.cli._command import Command
from accuquant.cli._first_recipe import is_graph, recipe_of, take_device
from accuquant.cli._options import Source, device_option, existing_file, lora_option, new_path
from accuquant.cli._source import LOADING, loading_options, network_option, take_loading
from accuquant.cli._task import take_options, task_options
from accuquant.errors import UsageError

if TYPE_CHECKING:
    from accuquant.cli._progress import Bars
    from accuquant.export.export_options import ExportOptions
    from accuquant.export_choice import ExportChoice
    from accuquant.recipe import Recipe


@click.command(
    "export",
    cls=Command,
    context_settings={"show_default": True},
)
@click.argument("source", type=Source())
@click.option(
    "--recipe",
    type=existing_file,
    help="What `accuquant calibrate` wrote; without it, a pipeline is calibrated first.",
)
@click.option(
    "--or-recipe",
    type=existing_file,
    metavar="FILE",
    help="A recipe of the same pipeline in the other format, int8 or fp8: the one that suits --target better "
    "is exported, by measurement where that GPU is here, else by the audit.",
)
@click.option(
    "--inputs",
    type=existing_file,
    help="An .npz of inputs to observe an .onnx with where there is no recipe, and to compare it on; random "
    "ones otherwise.",
)
@click.option(
    "--input-names",
    metavar="sample=NAME,timestep=NAME",
    show_default="by their names, or their shapes",
    help="Which inputs of an .onnx are the sample and the timestep.",
)
@click.option(
    "-o",
    "--output",
    type=new_path,
    required=True,
    help="A folder, an .onnx file where SOURCE is one, or a .safetensors file for ComfyUI.",
)
@click.option(
    "--target",
    metavar="cpu|gpu|SM|comfyui",
    show_default="the GPU of this machine if it is usable, else cpu",
    help="Where it will run, for what is `auto` below; a GPU that is not here by its compute capability: "
    "sm75, sm80, sm86, sm89, sm120, sm121. comfyui writes no graph, but one .safetensors that ComfyUI loads.",
)
@click.option(
    "--lowering",
    type=click.Choice(("auto", "rescale", "hybrid", "per-group")),
    default="auto",
    help="One graph that finds the step group itself (hybrid: one scale for all groups where TensorRT would "
    "lose a fusion and the scales are close), or one graph a step group. auto is rescale on a CPU; for a GPU "
    "it compiles them, and times or audits the engines.",
)
@click.option(
    "--precision",
    type=click.Choice(("auto", "fp32", "fp16", "bf16")),
    default="auto",
    help="What is not int8; auto is fp16 on a GPU and for ComfyUI, fp32 on a CPU.",
)
@click.option(
    "--affine",
    type=click.Choice(("auto", "shift", "zero_point")),
    default="auto",
    help="Zero-points as an addition around a symmetric QDQ pair (for every engine), or inside it, which is "
    "a little faster on a CPU without AMX, float32 on one with it, and nothing for TensorRT; auto is shift.",
)
@click.option(
    "--float-weights",
    type=click.Choice(("auto", "fp32", "fp16", "bf16")),
    default="auto",
    help="How weights of layers that stay float are stored where they compute in fp32; auto is fp16 above "
    "100 MB. bf16 keeps weights that were trained in it, and is coarser than fp16 for others.",
)
@click.option(
    "--weight-storage",
    type=click.Choice(("int8", "int4")),
    default="int8",
    help="int4 packs weights of at most 4 bits (calibrate with --weight-bits 4): half the bytes of int8, "
    "the same images.",
)
@click.option(
    "--opset",
    type=click.IntRange(min=19),
    default=None,
    show_default="21, or 22 with bf16",
    help="ONNX opset of the graph.",
)
@click.option(
    "--external-data/--inline-data",
    default=None,
    show_default="external above 2 GB",
    help="Keep weights in a file beside the graph, or inside it.",
)
@click.option(
    "--whole-pipeline",
    is_flag=True,
    help="Write text encoders and autoencoder too, in float32, so that Optimum loads OUTPUT.",
)
@click.option(
    "--text-weights",
    type=click.Choice(("fp32", "int8")),
    default="fp32",
    help="How the text encoders of --whole-pipeline store their weights; they compute in float32.",
)
@click.option(
    "--decoder-recipe",
    type=existing_file,
    help="What `accuquant calibrate --decoder` wrote: the autoencoder's decoder is exported in int8 too.",
)
@click.option(
    "--triton",
    type=new_path,
    metavar="DIR",
    help="Write a Triton Inference Server model repository too; SOURCE is a pipeline.",
)
@device_option
@lora_option("those of the recipe by default")
@network_option
@loading_options
@task_options
def command(source: str, recipe: Path | None, output: Path, triton: Path | None, **options: Any) -> None:
    """Write SOURCE as an ONNX model with int8 weights and QDQ pairs.

    SOURCE is a diffusers pipeline (a folder or a Hub id): OUTPUT becomes a folder in Optimum's layout.
    Prompts, images and guidance are for the calibration that comes first where no recipe is given.
    Or SOURCE is a float .onnx file of such a network, and OUTPUT an .onnx file. Without --recipe, its scales
    are then observed in a few calls, which is no calibration over denoising steps. --device is where that
    calibration runs, in PyTorch, or that observation, in ONNX Runtime.
    """
    of_pipelines = {"--whole-pipeline": options["whole_pipeline"], "--triton": triton}
    _check_pipeline(source, {**of_pipelines, "--decoder-recipe": options["decoder_recipe"]})
    run(source, recipe, output, options, triton)
    click.echo(f"Exported {output}")
    if triton is not None:
        from accuquant.export.write.triton_repository import write_triton_repository

        models = write_triton_repository(output, triton)
        click.echo(f"Wrote {triton}: {', '.join(models)}")


def _check_pipeline(source: str, given: dict[str, Any]) -> None:
    """Refuse what only a pipeline can have where SOURCE is an .onnx file."""
    if not is_graph(source):
        return
    for option, value in given.items():
        if value:
            raise UsageError(
                option,
                got="an .onnx file as SOURCE",
                expected="a pipeline, whose export knows its parts and its step groups",
                remedy=f"Leave {option} out, or export the pipeline",
            )


def run(
    source: str, recipe: Path | None, output: Path, options: dict[str, Any], triton: Path | None = None
) -> None:
    """Export a pipeline or an .onnx file, with progress on stderr; everything is checked before that."""
    from accuquant.cli._progress import Bars
    from accuquant.export.export_options import ExportOptions

    task = take_options(options)
    if options.get("target") == COMFYUI:
        check_comfyui(source, output, options, triton)
    inputs, loras = options.pop("inputs", None), options.pop("loras", ())
    decoder_recipe = options.pop("decoder_recipe", None)
    other = _other_recipe(options.pop("or_recipe", None), recipe, source, options.get("target"))
    loading = {name: value for name in LOADING if (value := options.pop(name, None))}
    computed = take_device(options, recipe)
    if options.get("target") == COMFYUI:
        if recipe is not None:
            _refuse_task(task)
        given = {"loras": loras, **loading}
        write_comfyui(source, recipe, output, options["precision"], {**task, **computed}, given)
        return
    graph = is_graph(source)
    graph_options = _graph_options(inputs, options.pop("input_names", None), graph)
    export = _targeted(ExportOptions(**options))
    if graph or recipe is not None:
        of_pipelines = {"lora": loras, **loading}
        _refuse_task({**task, **{k: v for k, v in of_pipelines.items() if v}} if graph else task)
    _check_outputs(source, output, export, triton, loading)
    loaded = recipe_of(source, recipe, output, graph_options, {**task, **computed, "loras": loras, **loading})
    with Bars() as progress:
        if graph:
            choice = _write_graph(source, loaded, output, export, progress, graph_options)
        else:
            given = {"loras": loras, **loading, "decoder_recipe": decoder_recipe}
            choice = _write_pipeline(source, loaded, output, export, progress, given, other)
    if choice is not None:
        click.echo(str(choice))


def _graph_options(inputs: Path | None, names: str | None, is_graph: bool) -> dict[str, Any]:
    """Return what only an .onnx takes; refuse it for a pipeline, where nothing would use it."""
    for option, value in (("--inputs", inputs), ("--input-names", names)):
        if value is not None and not is_graph:
            raise UsageError(
                option,
                got="a choice for a graph, which nothing would use",
                expected="an .onnx file as SOURCE",
                remedy=f"Leave {option} out",
            )
    if names is None:
        return {"inputs": inputs}
    from accuquant.export.read.onnx_inputs import parse_names

    return {"inputs": inputs, "input_names": parse_names(names)}


def _targeted(export: ExportOptions) -> ExportOptions:
    """Refuse a target that is not there before anything takes long; "gpu" becomes that of this machine."""
    if export.target is None:
        return export
    from accuquant.export.for_target.export_target import resolve_target

    return replace(export, target=resolve_target(export.target).name)


def _check_outputs(
    source: str, output: Path, export: ExportOptions, triton: Path | None, loading: Mapping[str, Any]
) -> None:
    """Refuse what cannot be written, before a calibration of an hour shows it."""
    if is_graph(source):
        from accuquant.export.write.onnx_file import check_output as check_graph

        check_graph(Path(source), output)
        return
    from accuquant.export.write.pipeline_folder import check_output
    from accuquant.export.write.pipeline_parts import check_parts
    from accuquant.export.write.triton_repository import check_repository
    from accuquant.pipelines.source import pipeline_class_of

    check_output(output)
    if triton is not None:
        check_repository(triton)
    if export.whole_pipeline:
        check_parts(pipeline_class_of(source, take_loading(dict(loading))))


def _write_graph(
    source: str,
    recipe: Recipe,
    output: Path,
    options: ExportOptions,
    progress: Bars,
    graph_options: dict[str, Any],
) -> ExportChoice | None:
    from accuquant.export.for_target import export_onnx

    return export_onnx(
        Path(source),
        recipe,
        output,
        options,
        compared=lambda result: click.echo(str(result)),
        share=progress.share,
        progress=progress,
        **graph_options,
    )[1]


def _write_pipeline(
    source: str,
    recipe: Recipe,
    output: Path,
    options: ExportOptions,
    progress: Bars,
    given: dict[str, Any],
    other: Recipe | None = None,
) -> ExportChoice | None:
    from accuquant.export.for_target import export_pipeline
    from accuquant.pipelines.lora import find_loras, loras_of_recipe
    from accuquant.pipelines.source import load_source
    from accuquant.recipe import Recipe

    decoder_file = given.pop("decoder_recipe")
    decoder = None if decoder_file is None else Recipe.load(decoder_file)
    fused = loras_of_recipe(recipe.facts.loras, find_loras(given.pop("loras", ())))
    loading = take_loading(given, recipe.facts.loading)
    loaded = load_source(source, fused, **vars(loading))
    if other is not None:
        from accuquant.export.for_target.choose_format import export_best_format

        recipes = (recipe, other)
        return export_best_format(
            loaded, recipes, output, options, decoder=decoder, share=progress.share, progress=progress
        ).choice
    return export_pipeline(
        loaded, recipe, output, options, decoder=decoder, share=progress.share, progress=progress
    ).choice


def _other_recipe(path: Path | None, recipe: Path | None, source: str, target: str | None) -> Recipe | None:
    """Load what --or-recipe names. Raises UsageError where there is nothing to choose between."""
    if path is None:
        return None
    if recipe is None or is_graph(source) or target == COMFYUI:
        raise UsageError(
            "--or-recipe",
            got="no --recipe" if recipe is None else "an .onnx file as SOURCE, or --target comfyui",
            expected="a pipeline, and a recipe in either format",
            remedy="Leave it out, or give --recipe int8.safetensors --or-recipe fp8.safetensors",
        )
    from accuquant.export.for_target.choose_format import check_formats
    from accuquant.recipe import Recipe

    other = Recipe.load(path)
    check_formats((Recipe.load(recipe), other))
    return other


def _refuse_task(task: dict[str, Any]) -> None:
    if task:
        raise UsageError(
            ", ".join(f"--{name.replace('_', '-')}" for name in task),
            got="a choice for a calibration that does not run",
            expected="a pipeline as SOURCE and no --recipe",
            remedy="Leave it out, or give it to `accuquant calibrate`",
        )
