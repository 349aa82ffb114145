"""Export a diffusers pipeline: a folder in Optimum's layout with the quantized network."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

import accuquant
from accuquant._util.exchange import replace_folder
from accuquant._util.lock import only_writer
from accuquant._util.progress import Share
from accuquant._util.scratch import scratch_beside
from accuquant.errors import ExportError
from accuquant.export.export_options import ExportChoices, ExportOptions, check_format
from accuquant.export.passes.lowering import LoweringOptions
from accuquant.export.read.trace import trace
from accuquant.export.write.control_folder import denoising_part, digests_of, write_controls
from accuquant.export.write.decoder_part import check_decoder_recipe, write_decoder
from accuquant.export.write.lowered_files import write_lowered
from accuquant.export.write.pipeline_parts import check_parts, write_parts
from accuquant.export_choice import ExportChoice
from accuquant.graph.vocabulary import SIGNATURE_KEY
from accuquant.manifest import MANIFEST_NAME, RECIPE_NAME, Manifest
from accuquant.networks.fold import fold_network
from accuquant.networks.network import float_weights as weights_by_layer
from accuquant.pipelines.lora import check_loras
from accuquant.pipelines.source import Source
from accuquant.recipe import Recipe

if TYPE_CHECKING:
    from typing_extensions import Unpack


def write_pipeline(
    source: Source,
    recipe: Recipe,
    output: Path,
    options: ExportOptions | None = None,
    *,
    choice: ExportChoice | None = None,
    graph: ir.Model | None = None,
    decoder: Recipe | None = None,
    progress: Share | None = None,
    **choices: Unpack[ExportChoices],
) -> Manifest:
    """Write `source`, quantized by `recipe`, into the folder `output`.

    The folder holds model_index.json, the network's graph(s) and configuration, the scheduler, the recipe and
    the manifest accuquant.json. It appears whole: it is built beside `output` and takes its place. An earlier
    export is replaced, anything else is not touched.
    `choices` are single fields of `options`; what both leave open is as every engine takes it. `choice` says
    why they are what they are, for the manifest. `graph` is the network as `trace` gives it with the same
    opset and `dynamic`, where that was done before; it is changed. `decoder` is the recipe of the
    autoencoder's decoder, which is then written too. Raises RecipeError where the recipe
    belongs to another checkpoint, ExportError where the network cannot carry it.
    """
    say = progress or (lambda _text, _share: None)
    options = replace(options or ExportOptions(), **choices)
    check_format(options, recipe.format)
    lowering, opset = LoweringOptions.of(options), options.written_opset
    if options.whole_pipeline:
        check_parts(source.pipeline_class)
    if decoder is not None:
        check_decoder_recipe(decoder)
    output = Path(output)
    check_output(output)
    say("checking the recipe", 0.0)
    check_loras(recipe.facts.loras, source.loras)
    source = folded_source(source.called_as(recipe.signature), recipe)
    recipe.check_weights(weights_by_layer(source.network))
    network, own = denoising_part(source, recipe)
    with _staging(output) as folder:
        if graph is None:
            say("tracing the network", 0.05)
            graph = trace(network, own.signature, opset=opset, dynamic=options.dynamic)
        signature = graph.graph.meta.get(SIGNATURE_KEY, own.signature)
        part = folder / source.component
        part.mkdir()
        written = write_lowered(
            graph,
            own,
            lowering,
            part,
            "model.onnx",
            external_data=options.external_data,
            say=lambda text, share: say(text, 0.6 + 0.4 * share),
        )
        _copy_configuration(source, folder)
        if options.whole_pipeline:
            write_parts(
                source,
                folder,
                opset=opset,
                external_data=options.external_data,
                text_weights=options.text_weights,
                decoder=decoder is None,
                say=lambda text: say(text, 0.9),
            )
        if decoder is not None:
            write_decoder(
                source,
                decoder,
                folder,
                opset=opset,
                affine=lowering.affine,
                external_data=options.external_data,
                say=lambda text, _share: say(text, 0.95),
            )
        written.recipe.save(folder / RECIPE_NAME)
        common: dict[str, Any] = {
            "pipeline_class": source.pipeline_class,
            "lowering": lowering.lowering,
            "precision": lowering.precision,
            "opset": opset,
            "groups": recipe.groups,
            "model_hash": recipe.model_hash,
            "num_inference_steps": recipe.facts.settings.steps,
            "accuquant_version": accuquant.__version__,
            "source": _name_of(source),
        }
        controls = write_controls(source, recipe, folder, lowering, options, common)
        manifest = Manifest(
            component=source.component,
            graphs=tuple(f"{source.component}/{name}" for name in written.graphs),
            signature=signature,
            files=digests_of(folder),
            choice=choice,
            text_weights=options.text_weights,
            decoder="fp32" if decoder is None else decoder.format,
            controls=controls,
            **common,
        )
        manifest.save(folder)
    say("done", 1.0)
    return manifest


def folded_source(source: Source, recipe: Recipe) -> Source:
    """Return `source` with the network that the recipe describes: its folds applied, itself without any."""
    return replace(source, network=fold_network(source.network, recipe.folds)) if recipe.folds else source


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

    Whatever fails, `output` is afterwards what it was. Raises UsageError where another process writes it.
    """
    with only_writer(output), scratch_beside(output) as scratch:
        folder = scratch / "new"
        folder.mkdir()
        yield folder
        replace_folder(folder, output, scratch / "old")


def _copy_configuration(source: Source, folder: Path) -> None:
    """Copy what describes the pipeline, without the weights that the graph replaces."""
    shutil.copyfile(source.folder / "model_index.json", folder / "model_index.json")
    shutil.copyfile(
        source.folder / source.component / "config.json", folder / source.component / "config.json"
    )
    shutil.copytree(source.folder / "scheduler", folder / "scheduler")


def _name_of(source: Source) -> str:
    """Return the Hub id of the source, or where its folder lies: the export may be used from anywhere."""
    return str(source.folder.resolve()) if source.folder == Path(source.name) else source.name
