"""Export a diffusers pipeline: a folder in Optimum's layout with the quantized network."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import accuquant
from accuquant._files import sha256_of_file
from accuquant.errors import ExportError
from accuquant.export.float_graph import trace
from accuquant.export.graph_files import save_graphs
from accuquant.export.lowering import (
    Affine,
    FloatWeights,
    Lowering,
    LoweringOptions,
    Precision,
    Progress,
    choose_opset,
    lower,
)
from accuquant.export.shared_scales import share_scales
from accuquant.manifest import MANIFEST_NAME, RECIPE_NAME, Manifest
from accuquant.network import float_weights as weights_by_layer
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
    progress: Progress | None = None,
) -> Manifest:
    """Write `source`, quantized by `recipe`, into the folder `output`.

    The folder holds model_index.json, the network's graph(s) and configuration, the scheduler, the recipe and
    the manifest accuquant.json. It appears whole: it is built beside `output` and renamed. An earlier
    export is replaced, anything else is not touched. `external_data` None puts weights into a file of
    their own above 2 GB; `opset` None is 21, or 22 for bf16; `dynamic` lets batch and image size vary.
    Raises RecipeError where the recipe belongs to another checkpoint, ExportError where the network cannot
    carry it.
    """
    say = progress or (lambda _text, _share: None)
    options = LoweringOptions(lowering, precision, affine, float_weights)
    opset = choose_opset(opset, precision)
    output = Path(output)
    _check_output(output)
    say("checking the recipe", 0.0)
    recipe.check_weights(weights_by_layer(source.network))
    with _staging(output) as folder:
        say("tracing the network", 0.05)
        model = trace(source.network, source.signature, opset=opset, dynamic=dynamic)
        say("placing QDQ pairs", 0.6)
        if lowering == "hybrid":
            recipe = share_scales(model, recipe)
        graphs = lower(model, recipe, options, recipe.sha256())
        say("writing", 0.8)
        part = folder / source.component
        part.mkdir()
        names = _graph_names(lowering, len(graphs))
        save_graphs(
            dict(zip(names, graphs, strict=True)), part, "model.onnx_data", external_data=external_data
        )
        _copy_configuration(source, folder)
        recipe.save(folder / RECIPE_NAME)
        manifest = Manifest(
            pipeline_class=source.pipeline_class,
            component=source.component,
            lowering=lowering,
            precision=precision,
            opset=opset,
            graphs=tuple(f"{source.component}/{name}" for name in names),
            groups=recipe.groups,
            signature=source.signature,
            model_hash=recipe.model_hash,
            num_inference_steps=int(recipe.calibration.get("settings", {}).get("steps", 50)),
            accuquant_version=accuquant.__version__,
            source=source.name,
            files=_digests(folder),
        )
        manifest.save(folder)
    say("done", 1.0)
    return manifest


def _check_output(output: Path) -> None:
    if output.is_dir() and (not any(output.iterdir()) or (output / MANIFEST_NAME).is_file()):
        return
    if output.exists():
        raise ExportError(
            f"output '{output}'",
            got="a folder with other files" if output.is_dir() else "a file",
            expected="a new path, an empty folder, or an earlier export",
            remedy="Choose another path: nothing was overwritten",
        )


@contextmanager
def _staging(output: Path) -> Iterator[Path]:
    """Yield a new folder beside `output` that takes its place if the block succeeds."""
    output.parent.mkdir(parents=True, exist_ok=True)
    root = Path(tempfile.mkdtemp(prefix=f".{output.name}.", dir=output.parent))
    try:
        folder = root / "new"
        folder.mkdir()
        yield folder
        if output.exists():
            output.rename(root / "old")
        folder.rename(output)
    finally:
        shutil.rmtree(root, ignore_errors=True)


def _graph_names(lowering: str, count: int) -> list[str]:
    if lowering != "per-group":
        return ["model.onnx"]
    return [f"group_{group:02d}.onnx" for group in range(count)]


def _copy_configuration(source: Source, folder: Path) -> None:
    """Copy what describes the pipeline, without the weights that the graph replaces."""
    shutil.copyfile(source.folder / "model_index.json", folder / "model_index.json")
    shutil.copyfile(
        source.folder / source.component / "config.json", folder / source.component / "config.json"
    )
    shutil.copytree(source.folder / "scheduler", folder / "scheduler")


def _digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): sha256_of_file(path) for path in files}
