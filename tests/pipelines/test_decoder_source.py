from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_pipelines import vae

from accuquant.calibration import CalibrationSettings, calibrate
from accuquant.decoder_calibration import LatentStarter
from accuquant.errors import SourceError
from accuquant.export.write.decoder_part import write_decoder
from accuquant.networks.decoder_network import DecoderNetwork
from accuquant.pipelines.decoder_source import decoder_source
from accuquant.pipelines.source import Source
from accuquant.runtime.engine_parts import engine_decoder


@pytest.fixture(scope="module")
def source(tiny_source: Source, tmp_path_factory: pytest.TempPathFactory) -> Source:
    """Return a source of which only the autoencoder is looked at."""
    folder = tmp_path_factory.mktemp("autoencoder")
    vae().save_pretrained(folder / "vae")
    index = {"_class_name": "DiTPipeline", "vae": ["diffusers", "AutoencoderKL"]}
    (folder / "model_index.json").write_text(json.dumps(index))
    return replace(tiny_source, name=str(folder), folder=folder, pipeline_class="DiTPipeline")


@pytest.mark.slow
def test_a_calibrated_decoder_runs_in_an_engine(source: Source, tmp_path: Path) -> None:
    torch.manual_seed(0)
    found, latents = decoder_source(source), torch.randn(2, 4, 8, 8)
    decoder = found.of_size((8, 8))
    settings = CalibrationSettings(steps=1, num_trajectories=2, batch_size=1, weight_bits=7)
    recipe = calibrate(decoder, settings, output=tmp_path / "r.safetensors", starter=LatentStarter(latents))
    assert not {"decoder.conv_in", "decoder.conv_out", "post_quant_conv"} & set(recipe.layers)
    write_decoder(source, recipe, tmp_path, opset=21)
    with torch.no_grad():
        exact = found.autoencoder.decode(latents).sample
    images = engine_decoder(tmp_path, "openvino").decode(latents).sample
    error = float((images - exact).square().mean() / exact.square().mean())
    assert 0 < error < 1e-2


def test_a_decoder_computes_what_its_autoencoder_does(source: Source) -> None:
    autoencoder, latents = vae(), torch.randn(1, 4, 4, 4)
    with torch.no_grad():
        (images,) = DecoderNetwork(autoencoder, (4, 4))(latents)
        assert torch.equal(images, autoencoder.decode(latents).sample)


def test_refuses_an_autoencoder_of_another_class() -> None:
    with pytest.raises(SourceError, match=r"autoencoder Linear: got a decoder that cannot be quantized yet"):
        DecoderNetwork(torch.nn.Linear(1, 1), (4, 4))
