"""The decoder of a pipeline's autoencoder in int8, beside the network."""

from __future__ import annotations

import shutil
from pathlib import Path

from accuquant._util.progress import Share
from accuquant.errors import ExportError
from accuquant.export.export_options import Affine
from accuquant.export.passes.lowering import LoweringOptions
from accuquant.export.read.trace import trace
from accuquant.export.write.lowered_files import write_lowered
from accuquant.manifest import RECIPE_NAME
from accuquant.networks.network import float_weights
from accuquant.pipelines.decoder_source import DECODER, decoder_source
from accuquant.pipelines.source import Source
from accuquant.recipe import Recipe

_ARCHITECTURE = "DecoderNetwork"


def check_decoder_recipe(recipe: Recipe) -> None:
    """Raise ExportError unless `recipe` is that of a decoder."""
    if recipe.signature.architecture != _ARCHITECTURE:
        raise ExportError(
            "--decoder-recipe",
            got=f"a recipe of a network {recipe.signature.architecture}",
            expected="what `accuquant calibrate --decoder` wrote",
            remedy="Give the network's recipe as --recipe, and the decoder's as --decoder-recipe",
        )


def write_decoder(
    source: Source,
    recipe: Recipe,
    folder: Path,
    *,
    opset: int,
    affine: Affine = "shift",
    external_data: bool | None = None,
    say: Share = lambda _text, _share: None,
) -> None:
    """Write the decoder of `source`, quantized by `recipe`, into `folder`/vae_decoder, named as Optimum does.

    What is not int8 stays in float32, which half precision of the network does not change: decoders overflow
    in float16. Raises RecipeError where the recipe belongs to another autoencoder.
    """
    check_decoder_recipe(recipe)
    sizes = recipe.signature.sizes
    found = decoder_source(source)
    decoder = found.of_size((sizes["height"], sizes["width"]))
    recipe.check_weights(float_weights(decoder.network))
    say("tracing the decoder", 0.0)
    graph = trace(decoder.network, decoder.signature, opset=opset)
    target = folder / DECODER
    target.mkdir()
    options = LoweringOptions("rescale", "fp32", affine, "fp32")
    write_lowered(graph, recipe, options, target, "model.onnx", external_data=external_data, say=say)
    shutil.copyfile(source.folder / found.part / "config.json", target / "config.json")
    recipe.save(target / RECIPE_NAME)
