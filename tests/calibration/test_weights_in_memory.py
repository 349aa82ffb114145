"""How weights are held while a network is calibrated changes no byte of the recipe."""

from __future__ import annotations

import copy
import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from pretend_device import pretend_device
from safetensors.torch import load_file, save_file

from accuquant.calibration import CalibrationSettings, calibrate
from accuquant.export import write_pipeline
from accuquant.networks.device import choose_device
from accuquant.networks.network import quantizable_layers
from accuquant.networks.simulate import quantized_layers, simulate
from accuquant.networks.stored_weights import StoredLayer, is_offloaded
from accuquant.pipelines.real_pipeline import open_pipeline
from accuquant.pipelines.source import Source, load_source
from accuquant.pipelines.task import Task
from accuquant.recipe import Recipe

SETTINGS = CalibrationSettings(
    steps=2, group_size=1, num_trajectories=2, batch_size=1, iterations=1, shared_iterations=1,
    activation_bits=4, float_budget=0.02, learning_rate=0.02,
)  # fmt: skip


#: What passes every stage on the pretended device in seconds.
SHORT = dataclasses.replace(SETTINGS, float_budget=0.0, refine=False, rounding="nearest")


@pytest.fixture(
    params=[
        pytest.param(torch.bfloat16, id="bfloat16"),
        pytest.param(torch.float16, id="float16", marks=pytest.mark.slow),
    ]
)
def half_folder(request: pytest.FixtureRequest, tiny_pipeline: Path, tmp_path: Path) -> Path:
    """A pipeline whose network was saved in half precision."""
    folder = Path(shutil.copytree(tiny_pipeline, tmp_path / "pipeline"))
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    save_file({k: v.to(request.param) for k, v in load_file(path).items()}, path, {"format": "pt"})
    return folder


def test_a_recipe_made_with_weights_as_stored_is_the_float32_one_bit_for_bit(
    half_folder: Path, tmp_path: Path
) -> None:
    stored, wide = load_source(half_folder, as_stored=True), load_source(half_folder)
    layers = quantizable_layers(stored.network)
    assert layers
    assert all(isinstance(layer, StoredLayer) for layer in layers.values())
    assert not any(isinstance(layer, StoredLayer) for layer in quantizable_layers(wide.network).values())
    assert stored.model_hash == wide.model_hash
    recipe = calibrate(stored, SETTINGS, output=tmp_path / "stored.safetensors")
    calibrate(wide, SETTINGS, output=tmp_path / "wide.safetensors")
    assert (tmp_path / "stored.safetensors").read_bytes() == (tmp_path / "wide.safetensors").read_bytes()
    assert set(layers) - set(recipe.layers), "some layers stay in float"
    simulated = [simulate(source.network, recipe) for source in (stored, wide)]
    with torch.no_grad():
        outputs = [n(torch.ones(1, 1, 8, 8), torch.tensor(9)).sample for n in simulated]
    assert torch.equal(*outputs)


@pytest.mark.slow
def test_a_network_with_weights_as_stored_is_exported_as_the_float32_one(
    half_folder: Path, tmp_path: Path
) -> None:
    settings = dataclasses.replace(SETTINGS, iterations=0, shared_iterations=0, rounding="nearest")
    stored = load_source(half_folder, as_stored=True)
    recipe = calibrate(stored, settings, output=tmp_path / "recipe.safetensors")
    for name, source in (("stored", stored), ("wide", load_source(half_folder))):
        write_pipeline(source, recipe, tmp_path / name)
    graphs = [sorted((tmp_path / name).rglob("*.onnx")) for name in ("stored", "wide")]
    assert graphs[0]
    for one, other in zip(*graphs, strict=True):
        assert one.read_bytes() == other.read_bytes()


def test_weights_as_stored_are_mapped_from_their_file(tiny_pipeline: Path) -> None:
    maps = Path("/proc/self/maps")
    if not maps.is_file():
        pytest.skip("needs /proc")
    source = load_source(tiny_pipeline, as_stored=True)
    file = tiny_pipeline / "unet" / "diffusion_pytorch_model.safetensors"
    ranges = [line.split()[0] for line in maps.read_text().splitlines() if line.endswith(str(file))]
    spans = [tuple(int(end, 16) for end in text.split("-")) for text in ranges]
    for name, layer in quantizable_layers(source.network).items():
        place = layer.get_parameter("weight").data_ptr()
        assert any(start <= place < stop for start, stop in spans), name


def offloaded(source: Source, device: torch.device) -> Source:
    own = dataclasses.replace(source, network=copy.deepcopy(source.network))
    return own.to(device, offload=True)


def test_an_offloaded_network_gives_the_recipe_of_one_on_the_device(
    tiny_source: Source, tmp_path: Path
) -> None:
    with pretend_device() as device:
        source = dataclasses.replace(tiny_source, network=copy.deepcopy(tiny_source.network)).to(device)
        there = calibrate(source, SHORT, output=tmp_path / "there.safetensors")
        source = offloaded(tiny_source, device)
        layers = quantizable_layers(source.network)
        assert all(is_offloaded(layer) for layer in layers.values())
        assert {t.device.type for n, t in source.network.state_dict().items() if n.endswith("stored")} == {
            "cpu"
        }
        calibrate(source, SHORT, output=tmp_path / "offloaded.safetensors")
        levels = [q.levels.device.type for q in quantized_layers(simulate(source.network, there)).values()]
        assert set(levels) == {"cpu"}
    assert (tmp_path / "offloaded.safetensors").read_bytes() == (tmp_path / "there.safetensors").read_bytes()


def test_a_text_encoder_is_offloaded_with_its_network(tiny_text_pipeline: Callable[[str], Path]) -> None:
    source = load_source(tiny_text_pipeline("sd"))
    pipe = open_pipeline(source, Task(prompts=("a",)))
    assert not any(map(is_offloaded, pipe.text_encoder.modules()))
    plain = pipe.encode_prompt("a cat", "cpu", 1, False)[0]
    pipe = open_pipeline(source.to("cpu", offload=True), Task(prompts=("a",)))
    assert any(map(is_offloaded, pipe.text_encoder.modules()))
    assert torch.equal(pipe.encode_prompt("a cat", "cpu", 1, False)[0], plain)


@pytest.mark.gpu
def test_cuda_offloaded_gives_the_recipe_of_the_gpu_bit_for_bit_from_less_of_its_memory(
    tiny_source: Source, tmp_path: Path
) -> None:
    device = choose_device("cuda")
    source = dataclasses.replace(tiny_source, network=copy.deepcopy(tiny_source.network)).to(device)
    held = torch.cuda.memory_allocated(device)
    calibrate(source, SETTINGS, output=tmp_path / "there.safetensors")
    del source
    source = offloaded(tiny_source, device)
    assert torch.cuda.memory_allocated(device) < held
    recipe = calibrate(source, SETTINGS, output=tmp_path / "offloaded.safetensors")
    assert (tmp_path / "offloaded.safetensors").read_bytes() == (tmp_path / "there.safetensors").read_bytes()
    assert isinstance(recipe, Recipe)
