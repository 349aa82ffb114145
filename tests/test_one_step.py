"""A generator and a decoder the whole way: calibrate, export, sample, verify."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import diffusers
import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from accuquant import AccuQuantError, feed_forward_source, sample, write_html
from accuquant._util.progress import Silent
from accuquant.calibration import CalibrationSettings, calibrate
from accuquant.cli.main import main
from accuquant.decoder_calibration import calibrate_decoder, last_latents
from accuquant.denoising.process import seeded_generators
from accuquant.errors import ExportError, SourceError
from accuquant.export import write_pipeline
from accuquant.manifest import Manifest
from accuquant.networks.simulate import simulate
from accuquant.pipelines.decoder_source import decoder_source
from accuquant.pipelines.source import Source, load_source
from accuquant.pipelines.task import Task
from accuquant.recipe import Recipe
from accuquant.runtime.engine_parts import engine_decoder
from accuquant.verification.verify import verify

# 7-bit weights: OpenVINO's sums of 8-bit ones saturate where a processor has no VNNI
ONE = CalibrationSettings(steps=1, num_trajectories=4, batch_size=2, weight_bits=7)


class Generator(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.main = nn.Sequential(
            nn.ConvTranspose2d(6, 8, 4, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True),
            nn.ConvTranspose2d(8, 8, 4, 2, 1), nn.LeakyReLU(0.2),
            nn.Upsample(scale_factor=2), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(),
            nn.Conv2d(8, 1, 3, padding=1), nn.Tanh(),
        )  # fmt: skip

    def forward(self, noise: Tensor) -> Tensor:
        images: Tensor = self.main(noise)
        return images


@dataclass(frozen=True)
class Exported:
    source: Source
    recipe: Recipe
    folder: Path


@pytest.fixture(scope="module")
def gan(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    folder = tmp_path_factory.mktemp("gan")
    source = feed_forward_source(Generator(), (6, 1, 1), folder / "gan")
    recipe = calibrate(source, ONE, output=folder / "recipe.safetensors")
    write_pipeline(source, recipe, folder / "out")
    return Exported(source, recipe, folder / "out")


def test_the_ends_of_a_generator_stay_float_and_transposed_convolutions_are_quantized(gan: Exported) -> None:
    assert list(gan.recipe.layers) == ["main.3", "main.6"]
    assert gan.recipe.layers["main.3"].kind == "conv_transpose2d"
    model = onnx.load(gan.folder / "generator" / "model.onnx")
    made_by = {name: node.op_type for node in model.graph.node for name in node.output}
    convolutions = [node for node in model.graph.node if "Conv" in node.op_type]
    quantized = [node for node in convolutions if made_by.get(node.input[1]) == "DequantizeLinear"]
    assert [node.op_type for node in quantized] == ["ConvTranspose", "Conv"]
    assert all(made_by[node.input[0]] == "DequantizeLinear" for node in quantized)
    assert [value.name for value in model.graph.input] == ["sample"]


@pytest.mark.parametrize("engine", ["openvino", "onnxruntime"])
def test_an_engine_makes_the_images_of_the_simulation_from_seeds_alone(gan: Exported, engine: str) -> None:
    simulated = simulate(gan.source.network, gan.recipe)
    noise = torch.cat([torch.randn(1, 6, 1, 1, generator=g) for g in seeded_generators(range(5, 8))])
    expected = (simulated(noise, timestep=torch.tensor(0.0))[0] / 2 + 0.5).permute(0, 2, 3, 1)
    images = sample(gan.folder, engine=engine, num_images=3, seed=5, batch_size=2)
    assert images.shape == (3, 16, 16, 1)
    assert float(np.square(images - expected.numpy()).mean()) < 1e-5
    original = (gan.source.network(noise)[0] / 2 + 0.5).permute(0, 2, 3, 1).numpy()
    assert 10 * np.log10(1 / np.square(images - original).mean()) > 35


def test_the_command_sample_writes_pictures(gan: Exported, tmp_path: Path) -> None:
    assert main(["sample", str(gan.folder), "--output-dir", str(tmp_path), "--num-images", "2"]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["00000.png", "00001.png", "grid.png"]


def test_a_generator_is_verified(gan: Exported) -> None:
    report = verify(gan.folder, gan.source, num_images=4, batch_size=2, features="none", layers=True)
    assert report.fidelity.summary["psnr"].median > 35
    assert report.model["image_shape"] == [1, 16, 16]
    write_html(report, gan.folder.parent / "report.html")
    page = (gan.folder.parent / "report.html").read_text()
    assert "with 1 step," in page
    assert "How the error accumulates" not in page, "there is one step"


@pytest.mark.slow
def test_the_commands_take_the_folder(gan: Exported, tmp_path: Path) -> None:
    recipe, out = tmp_path / "recipe.safetensors", tmp_path / "out"
    given = ["--num-trajectories", "2", "--weight-bits", "4", "--iterations", "2", "--shared-iterations", "2"]
    assert main(["calibrate", str(gan.source.folder), "-o", str(recipe), *given]) == 0
    assert Recipe.load(recipe).facts.settings.steps == 1
    assert main(["calibrate", str(gan.source.folder), "--dry-run", "--num-trajectories", "2"]) == 0
    assert (
        main(["export", str(gan.source.folder), "--recipe", str(recipe), "-o", str(out), "--target", "cpu"])
        == 0
    )
    assert main(["check", str(out / "generator" / "model.onnx")]) == 0


def test_a_generator_is_sampled_in_one_step(gan: Exported) -> None:
    with pytest.raises(AccuQuantError, match=r"--steps 2: got a choice for a loop of denoising steps"):
        sample(gan.folder, num_images=1, steps=2)


PROMPTS = Task(prompts=("a cat", "a boat"), guidance_scale=4.0)


@pytest.fixture(scope="module")
def decoded(tiny_text_pipeline: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Exported:
    source, folder = load_source(tiny_text_pipeline("sd")), tmp_path_factory.mktemp("decoded")
    settings = CalibrationSettings(steps=2, num_trajectories=2, batch_size=1, weight_bits=7)
    recipe = calibrate(source, settings, output=folder / "recipe.safetensors", task=PROMPTS)
    decoder = calibrate_decoder(source, settings, output=folder / "decoder.safetensors", task=PROMPTS)
    write_pipeline(source, recipe, folder / "out", decoder=decoder)
    return Exported(source, decoder, folder / "out")


@pytest.mark.slow
def test_the_latents_to_decode_are_those_that_the_pipeline_ends_with(decoded: Exported) -> None:
    pipe = diffusers.DiffusionPipeline.from_pretrained(decoded.source.folder)
    pipe.set_progress_bar_config(disable=True)
    settings = CalibrationSettings(steps=2, num_trajectories=2, batch_size=2)
    theirs = pipe(
        list(PROMPTS.prompts), num_inference_steps=2, guidance_scale=4.0, output_type="latent",
        generator=seeded_generators(range(2)),
    ).images  # fmt: skip
    ours = last_latents(decoded.source, settings, PROMPTS, Silent())
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_the_decoder_of_an_export_decodes_as_the_float_one(decoded: Exported) -> None:
    vae = decoder_source(decoded.source).autoencoder
    latents = torch.randn(2, 4, 4, 4)
    model = onnx.load(decoded.folder / "vae_decoder" / "model.onnx")
    assert [value.name for value in model.graph.input] == ["latent_sample"]
    assert sum(node.op_type == "QuantizeLinear" for node in model.graph.node) >= len(
        {tuple(layer.activation_scale) for layer in decoded.recipe.layers.values()}
    )
    assert not {"decoder.conv_in", "decoder.conv_out", "post_quant_conv"} & set(decoded.recipe.layers)
    for engine in ("openvino", "onnxruntime"):
        own = engine_decoder(decoded.folder, engine).decode(latents).sample
        exact = vae.decode(latents).sample
        assert float((own - exact).square().mean() / exact.square().mean()) < 1e-2
        simulated = simulate(decoder_source(decoded.source).of_size((4, 4)).network, decoded.recipe)
        torch.testing.assert_close(
            own, simulated(latents, timestep=torch.tensor(0.0))[0], rtol=0.1, atol=0.02
        )


@pytest.mark.slow
def test_images_are_sampled_and_verified_through_the_exported_decoder(
    decoded: Exported, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert Manifest.load(decoded.folder).decoder == "int8"
    report = verify(decoded.folder, decoded.source, num_images=2, features="none", task=PROMPTS)
    assert any("its own decoder, in int8" in note for note in report.notes)
    own = sample(decoded.folder, PROMPTS, num_images=2, seed=3)
    floats = sample(decoded.folder, PROMPTS, num_images=2, seed=3, parts="torch")
    assert 0 < float(np.abs(own - floats).max()) < 0.2, "int8 by default, float where torch decodes"


@pytest.mark.slow
def test_a_whole_pipeline_has_the_calibrated_decoder_and_its_encoder(
    decoded: Exported, tmp_path: Path
) -> None:
    network = Recipe.load(decoded.folder / "recipe.safetensors")
    write_pipeline(decoded.source, network, tmp_path / "out", decoder=decoded.recipe, whole_pipeline=True)
    own = (tmp_path / "out" / "vae_decoder" / "model.onnx").read_bytes()
    assert own == (decoded.folder / "vae_decoder" / "model.onnx").read_bytes()
    assert (tmp_path / "out" / "vae_encoder" / "model.onnx").is_file()
    assert sample(tmp_path / "out", PROMPTS, num_images=1, parts="engine").shape[0] == 1


@pytest.mark.slow
def test_refuses_the_recipe_of_another_network(decoded: Exported, tmp_path: Path) -> None:
    network = Recipe.load(decoded.folder / "recipe.safetensors")
    with pytest.raises(
        ExportError, match=r"--decoder-recipe: got a recipe of a network UNet2DConditionModel"
    ):
        write_pipeline(decoded.source, network, tmp_path / "out", decoder=network)


def test_a_pixel_pipeline_has_no_decoder(tiny_source: Source, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"got no autoencoder"):
        calibrate_decoder(tiny_source, ONE, output=tmp_path / "decoder.safetensors")
