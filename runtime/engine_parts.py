"""Open the text encoders and the autoencoder of a folder that holds its whole pipeline, in an engine."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accuquant._util.external_data import check_external_files
from accuquant._util.facts import read_facts
from accuquant._util.real_model import real_model
from accuquant.errors import EngineError, last_line
from accuquant.hub.fetch import local_folder
from accuquant.manifest import Manifest
from accuquant.runtime.engine_files import find_part_engine
from accuquant.runtime.open_runner import make_runner
from accuquant.runtime.runner import Runner
from accuquant.runtime.tensorrt_runner import TensorRtRunner

if TYPE_CHECKING:
    from accuquant.runtime.engine_autoencoder import EngineAutoencoder

_GRAPH = "model.onnx"
_ENCODER, _DECODER = "vae_encoder", "vae_decoder"
_TEXT_ENCODERS = ("text_encoder", "text_encoder_2", "text_encoder_3")


def engine_parts(
    folder: str | os.PathLike[str],
    engine: str = "openvino",
    *,
    check_hashes: bool = True,
    trust_engines: bool = False,
    **options: Any,
) -> dict[str, Any]:
    """Open the text encoders and the autoencoder of a folder -> its parts by the pipeline's names.

        unet = accuquant.EngineUNet.from_pretrained("out")
        pipe = DiffusionPipeline.from_pretrained("out", unet=unet, **accuquant.engine_parts("out"))

    `accuquant export --whole-pipeline` writes such folders; nothing else of the pipeline is needed then. The
    parts are float, but for a decoder that was calibrated. With "tensorrt" they run in the engines that
    `accuquant build` made of them; those of a download with `trust_engines` only. `options` go to the engine,
    e.g. `num_threads=4`. Raises EngineError where the folder does not hold them or they are damaged.
    """
    from accuquant.runtime.engine_autoencoder import EngineAutoencoder
    from accuquant.runtime.engine_text_encoder import EngineTextEncoder

    root = local_folder(folder)
    manifest = Manifest.load(root)
    if not holds_parts(manifest):
        raise EngineError(
            f"folder '{root}'",
            got="the network alone",
            expected="text encoders and autoencoder too",
            remedy="Export again with --whole-pipeline",
        )
    if check_hashes:
        manifest.check_files(root)

    def runner(part: str) -> Runner:
        if engine == TensorRtRunner.engine:
            built = find_part_engine(root, manifest, part, trust=trust_engines)
            return make_runner(built, engine, name=part, **options)
        path = root / part / _GRAPH
        check_external_files(path)
        return make_runner(real_model(path), engine, **options)

    parts: dict[str, Any] = {
        name: EngineTextEncoder(runner(name), _text_config(root / name))
        for name in _TEXT_ENCODERS
        if f"{name}/{_GRAPH}" in manifest.files
    }
    config = read_facts(root / _DECODER / "config.json", dict[str, Any])
    return parts | {"vae": EngineAutoencoder(runner(_DECODER), runner(_ENCODER), config)}


def engine_decoder(folder: Path, engine: str = "openvino", **options: Any) -> EngineAutoencoder:
    """Open the decoder of a folder by itself: an autoencoder that decodes and cannot encode.

    The files are taken as they are: `EngineModel.from_folder` has checked them.
    """
    from accuquant.runtime.engine_autoencoder import EngineAutoencoder

    path = folder / _DECODER / _GRAPH
    check_external_files(path)
    config = read_facts(folder / _DECODER / "config.json", dict[str, Any])
    return EngineAutoencoder(make_runner(real_model(path), engine, **options), None, config)


def holds_parts(manifest: Manifest) -> bool:
    """Say whether a folder holds the parts around its network too."""
    return f"{_ENCODER}/{_GRAPH}" in manifest.files


def holds_decoder(manifest: Manifest) -> bool:
    """Say whether a folder holds a decoder that was calibrated."""
    return manifest.decoder != "fp32" and f"{_DECODER}/{_GRAPH}" in manifest.files


def _text_config(folder: Path) -> Any:
    import transformers

    path = folder / "config.json"
    try:
        return transformers.AutoConfig.for_model(**read_facts(path, dict[str, Any]))
    except Exception as fault:  # transformers raises many unrelated kinds
        raise EngineError(
            f"configuration '{path}'",
            got=f"{type(fault).__name__}: {last_line(fault)}",
            expected="the JSON that transformers writes",
            remedy="Copy the whole exported folder, or run `accuquant export` again",
        ) from fault
