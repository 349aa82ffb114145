"""The decoder that an export brings along: what makes the images of its branches."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from accuquant.errors import VerificationError
from accuquant.manifest import RECIPE_NAME, Manifest
from accuquant.networks.device import device_of
from accuquant.networks.network import call
from accuquant.networks.simulate import simulate
from accuquant.pipelines.decoder_source import DECODER, decoder_source
from accuquant.pipelines.source import Source
from accuquant.recipe import Recipe
from accuquant.runtime.engine_parts import engine_decoder, holds_decoder
from accuquant.runtime.parts_choice import ENGINES
from accuquant.verification.measure.decoder import Decode, decode_with, preparation
from accuquant.verification.measure.subject import Subject


def exported_decoders(subject: Subject) -> dict[str, Decode]:
    """Return the decoders of the branches "simulated" and "engine"; none where the export has none."""
    engine = engine_decode(subject.folder, subject.reference, subject.settings.engine)
    if engine is None:
        return {}
    recipe = Recipe.load(subject.folder / DECODER / RECIPE_NAME)
    found = decoder_source(subject.reference)
    decoder = found.of_size((recipe.signature.sizes["height"], recipe.signature.sizes["width"]))
    simulated, device = simulate(decoder.network, recipe), device_of(decoder.network)

    def decode(latents: Tensor) -> Tensor:
        return call(simulated, latents.to(device), 0.0)

    prepare = preparation(subject.reference, found.autoencoder)
    return {"simulated": decode_with(decode, prepare), "engine": engine}


def engine_decode(folder: Path, reference: Source, engine: str) -> Decode | None:
    """Return what decodes with the export in `folder`, None where the pipeline's own decoder does.

    Raises VerificationError where its decoder is not that of `reference`.
    """
    if engine not in ENGINES or not holds_decoder(Manifest.load(folder)):
        return None
    recipe = Recipe.load(folder / DECODER / RECIPE_NAME)
    found = decoder_source(reference)
    sizes = recipe.signature.sizes
    if found.of_size((sizes["height"], sizes["width"])).model_hash != recipe.model_hash:
        raise VerificationError(
            f"reference '{reference.name}', {found.part}",
            got="weights other than those of the exported decoder",
            expected="the autoencoder that `accuquant calibrate --decoder` saw",
            remedy="Pass that pipeline as --reference, or calibrate and export its decoder again",
        )
    own = engine_decoder(folder, engine)
    return decode_with(lambda latents: own.decode(latents).sample, preparation(reference, found.autoencoder))


def decoder_notes(subject: Subject, exported: Mapping[str, Decode]) -> tuple[str, ...]:
    """Return a note on which decoder makes the images."""
    if not exported:
        return ()
    return (
        f"The export's images are decoded by its own decoder, in {subject.manifest.decoder}; those of the "
        "reference by the pipeline's, in float.",
    )
