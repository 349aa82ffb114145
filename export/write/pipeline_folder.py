"""Export a diffusers pipeline: a folder in Optimum's layout with the quantized network."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import onnx_ir as ir

import accuquant
from accuquant._util.files import sha256_of_file
from accuquant._util.progress import Share
from accuquant.errors import ExportError, UsageError
from accuquant.export.passes.lowering import (
    Affine,
    FloatWeights,
    Lowering,
    LoweringOptions,
    Precision,
    choose_opset,
)
from accuquant.export.read.trace import trace
from accuquant.export.write.lowered_files import write_lowered
from accuquant.export.write.pipeline_parts import check_parts, write_parts
from accuquant.export_choice import ExportChoice
from accuquant.manifest import MANIFEST_NAME, RECIPE_NAME, Manifest
from accuquant.networks.network import float_weights as weights_by_layer
from accuquant.pipelines.lora import check_loras
from accuquant.pipelines.source import Source
from accuquant.recipe import Recipe


def export_pipeline(
    source: Source,
    recipe: Recipe,
    output: Path,
    *,
    lowering: Lowering = "rescale",
    precision: Precision = "fp32",
    affine: Affine = "shift",
    float_weights: FloatWeights = "auto",
    opset: int | None = None,
    external_data: bool | None = None,
    dynamic: bool = True,
    whole_pipeline: bool = False,
    choice: ExportChoice | None = None,
    graph: ir.Model | None = None,
    progress: Share | None = None,
) -> Manifest:
    """Write `source`, quantized by `recipe`, into the folder `output`.

    The folder holds model_index.json, the network's graph(s) and configuration, the scheduler, the recipe and
    the manifest accuquant.json. It appears whole: it is built beside `output` and renamed. An earlier
    export is replaced, anything else is not touched. `external_data` None puts weights into a file of
    their own above 2 GB; `opset` None is 21, or 22 for bf16; `dynamic` lets batch and image size vary;
    `whole_pipeline` adds text encoders and autoencoder in float32, so that Optimum loads the folder.
    `choice` says why `lowering` and `precision` are what they are, for the manifest. `graph` is the network
    as `trace` gives it with the same opset and `dynamic`, where that was done before; it is changed.
    Raises RecipeError where the recipe belongs to another checkpoint, ExportError where the network cannot
    carry it.
    """
    say = progress or (lambda _text, _share: None)
    options = LoweringOptions(lowering, precision, affine, float_weights)
    opset = choose_opset(opset, precision)
    if whole_pipeline:
        _check_whole(source, lowering)
    output = Path(output)
    check_output(output)
    say("checking the recipe", 0.0)
    check_loras(recipe.calibration, source.loras)
    recipe.check_weights(weights_by_layer(source.network))
    with _staging(output) as folder:
        if graph is None:
            say("tracing the network", 0.05)
            graph = trace(source.network, source.signature, opset=opset, dynamic=dynamic)
        part = folder / source.component
        part.mkdir()
        written = write_lowered(
            graph,
            recipe,
            options,
            part,
            "model.onnx",
            external_data=external_data,
            say=lambda text, share: say(text, 0.6 + 0.4 * share),
        )
        _copy_configuration(source, folder)
        if whole_pipeline:
            write_parts(
                source, folder, opset=opset, external_data=external_data, say=lambda text: say(text, 0.9)
            )
        written.recipe.save(folder / RECIPE_NAME)
        manifest = Manifest(
            pipeline_class=source.pipeline_class,
            component=source.component,
            lowering=lowering,
            precision=precision,
            opset=opset,
            graphs=tuple(f"{source.component}/{name}" for name in written.graphs),
            groups=recipe.groups,
            signature=source.signature,
            model_hash=recipe.model_hash,
            num_inference_steps=int(recipe.calibration.get("settings", {}).get("steps", 50)),
            accuquant_version=accuquant.__version__,
            source=_name_of(source),
            files=_digests(folder),
            choice=choice,
        )
        manifest.save(folder)
    say("done", 1.0)
    return manifest


def _check_whole(source: Source, lowering: Lowering) -> None:
    if lowering == "per-group":
        raise UsageError(
            "--whole-pipeline",
            got="--lowering per-group, which writes one graph a step group",
            expected="rescale or hybrid: Optimum loads one graph",
            remedy="Leave one of the two out",
        )
    check_parts(source)


def check_output(output: Path) -> None:
    """Raise ExportError unless `output` is new, an empty folder or an earlier export, and can be replaced."""
    if output.is_dir() and (kept := _why_kept(output)):
        raise ExportError(
            f"output '{output}'",
            got=kept,
            expected="a folder that can be replaced as a whole",
            remedy=f"Give a folder inside it: -o {output / 'out'}",
        )
    if output.is_dir() and (not any(output.iterdir()) or (output / MANIFEST_NAME).is_file()):
        return
    if output.exists():
        raise ExportError(
            f"output '{output}'",
            got="a folder with other files" if output.is_dir() else "a file",
            expected="a new path, an empty folder, or an earlier export",
            remedy="Choose another path: nothing was overwritten",
        )


def _why_kept(output: Path) -> str:
    """Return what keeps the folder `output` from being renamed, "" where nothing does."""
    if os.path.ismount(output):
        return "a mount point"
    inside = Path.cwd().is_relative_to(output.resolve())
    return "the folder that you are in, or one around it" if inside else ""


@contextmanager
def _staging(output: Path) -> Iterator[Path]:
    """Yield a new folder beside `output` that takes its place if the block succeeds.

    Whatever fails, `output` is afterwards what it was.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    root = Path(tempfile.mkdtemp(prefix=f".{output.name}.", dir=output.parent))
    try:
        folder = root / "new"
        folder.mkdir()
        yield folder
        _exchange(output, folder, root / "old")
    finally:
        shutil.rmtree(root, ignore_errors=True)


def _exchange(output: Path, folder: Path, old: Path) -> None:
    """Move `output`, if there is one, to `old` and `folder` to `output`."""
    existed = output.exists()
    if existed:
        output.rename(old)
    try:
        folder.rename(output)
    except OSError:
        if existed:
            old.rename(output)
        raise


def _copy_configuration(source: Source, folder: Path) -> None:
    """Copy what describes the pipeline, without the weights that the graph replaces."""
    shutil.copyfile(source.folder / "model_index.json", folder / "model_index.json")
    shutil.copyfile(
        source.folder / source.component / "config.json", folder / source.component / "config.json"
    )
    shutil.copytree(source.folder / "scheduler", folder / "scheduler")


def _name_of(source: Source) -> str:
    """Return the source's name; that of a local folder never looks like a Hub id."""
    path = Path(source.name)
    relative = source.folder == path and not path.is_absolute() and not source.name.startswith(".")
    return f"./{source.name}" if relative else source.name


def _digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): sha256_of_file(path) for path in files}
