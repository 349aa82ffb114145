"""LoRAs: found, fused as diffusers does, kept by the recipe, the same from calibration to the engine."""

from __future__ import annotations

import dataclasses
import importlib.util
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from accuquant._util.progress import Silent
from accuquant.calibration import CalibrationSettings, calibrate
from accuquant.calibration_facts import LoraFacts
from accuquant.cli.main import main
from accuquant.denoising.process import seeded_generators
from accuquant.errors import CalibrationError, RecipeError, SourceError, UsageError
from accuquant.export import write_pipeline
from accuquant.networks.network import model_hash
from accuquant.networks.simulate import simulate
from accuquant.pipelines.lora import Lora, find_loras, loras_of_recipe
from accuquant.pipelines.real_pipeline import open_pipeline
from accuquant.pipelines.source import Source, load_source
from accuquant.pipelines.task import Task
from accuquant.recipe import Recipe
from accuquant.runtime.engine_unet import EngineUNet
from accuquant.sample_pipeline import sample_pipeline
from accuquant.verification.report.thresholds import Thresholds
from accuquant.verification.verify import verify

TASK = Task(prompts=("a cat", "two dogs"), guidance_scale=3.0)
OPTIONS: dict[str, Any] = {
    "steps": 3, "group-size": 2, "num-trajectories": 2, "batch-size": 2, "iterations": 1,
    "observer": "minmax", "rounding": "nearest", "weight-bits": 7,
}  # fmt: skip
SETTINGS = CalibrationSettings(**{name.replace("-", "_"): value for name, value in OPTIONS.items()})
NETWORK_LAYERS, TEXT_LAYERS = ["to_q", "to_k", "to_out.0"], ["q_proj", "v_proj", "out_proj"]


def with_adapter(model: Any, layers: list[str], seed: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Add a random adapter (rank 2, alpha 3) to `model`; return its tensors and its configuration."""
    config = peft.LoraConfig(r=2, lora_alpha=3, target_modules=layers, init_lora_weights=False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        peft.inject_adapter_in_model(config, model)
    return peft.get_peft_model_state_dict(model, adapter_name="default"), config.to_dict()


def save_lora(pipeline: Path, folder: Path, *, seed: int = 0) -> Path:
    """Make a LoRA for the UNet and the text encoder of a pipeline; return the folder that diffusers wrote."""
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(pipeline)
    unet, unet_config = with_adapter(pipe.unet, NETWORK_LAYERS, seed)
    text, text_config = with_adapter(pipe.text_encoder, TEXT_LAYERS, seed + 1)
    pipe.save_lora_weights(
        folder,
        unet_lora_layers=unet,
        text_encoder_lora_layers=text,
        unet_lora_adapter_metadata=unet_config,
        text_encoder_lora_adapter_metadata=text_config,
    )
    return folder


@pytest.fixture(scope="module")
def pipeline(tiny_text_pipeline: Callable[[str], Path]) -> Path:
    return tiny_text_pipeline("sd")


@pytest.fixture(scope="module")
def lora(pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_lora(pipeline, tmp_path_factory.mktemp("lora"))


@pytest.fixture(scope="module")
def fused(pipeline: Path, lora: Path) -> Source:
    return load_source(pipeline, find_loras([f"{lora}:0.7"]))


@dataclasses.dataclass(frozen=True)
class Exported:
    source: Source
    recipe: Recipe
    folder: Path


@pytest.fixture(scope="module")
def exported(fused: Source, pipeline: Path, lora: Path, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """Calibrate with --lora, and export without: the recipe names it."""
    folder = tmp_path_factory.mktemp("exported")
    recipe, out = folder / "recipe.safetensors", folder / "out"
    settings = [f"--{key}={value}" for key, value in OPTIONS.items()]
    prompts = ["--prompt", "a cat", "--prompt", "two dogs", "--guidance-scale", "3"]
    command = ["calibrate", str(pipeline), "-o", str(recipe), "--lora", f"{lora}:0.7", *settings, *prompts]
    assert main(command) == 0
    assert main(["export", str(pipeline), "--recipe", str(recipe), "-o", str(out)]) == 0
    return Exported(fused, Recipe.load(recipe), out)


class Killed(Silent):
    """Progress of a process that dies when it starts to record."""

    def stage(self, name: str, total: int) -> None:
        if name.startswith("full-precision"):
            raise KeyboardInterrupt


def images(pipe: Any) -> np.ndarray:
    pipe.set_progress_bar_config(disable=True)
    made: np.ndarray = pipe(
        ["a cat", "two dogs"], generator=seeded_generators([5, 6]), num_inference_steps=3,
        guidance_scale=3.0, output_type="np",
    ).images  # fmt: skip
    return made


def diffusers_fused(pipeline: Path, lora: Path, scale: float) -> Any:
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(pipeline)
    # transformers refuses a peft that is not the newest, although it works
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("transformers.integrations.peft.MIN_PEFT_VERSION", "0.15")
        pipe.load_lora_weights(lora)
    pipe.fuse_lora(lora_scale=scale)
    pipe.unload_lora_weights()
    return pipe


def test_a_layer_gets_the_scaled_product_of_its_two_matrices(
    pipeline: Path, lora: Path, fused: Source
) -> None:
    tensors = load_file(lora / "pytorch_lora_weights.safetensors")
    plain, changed = load_source(pipeline).network.state_dict(), fused.network.state_dict()
    assert list(changed) == list(plain)
    count = 0
    for name, before in plain.items():
        layer = f"unet.{name.removesuffix('.weight')}"
        if f"{layer}.lora_A.weight" not in tensors:
            assert torch.equal(changed[name], before)
            continue
        down, up = (tensors[f"{layer}.lora_{which}.weight"].numpy().astype(np.float64) for which in "AB")
        expected = before.numpy() + 0.7 * (3 / 2) * up @ down
        np.testing.assert_array_equal(changed[name].numpy(), expected.astype(np.float32))
        count += 1
    assert count == 3 * 2 * 2  # three projections of self- and of cross-attention, in two blocks


def test_the_fused_pipeline_makes_the_images_of_diffusers(pipeline: Path, lora: Path, fused: Source) -> None:
    theirs = images(diffusers_fused(pipeline, lora, 0.7))
    np.testing.assert_allclose(images(open_pipeline(fused, TASK)), theirs, atol=1e-5)
    plain = images(open_pipeline(load_source(pipeline), TASK))
    assert np.abs(plain - theirs).max() > 0.01
    without_text = images(open_pipeline(dataclasses.replace(fused, loras=()), TASK))
    assert np.abs(without_text - theirs).max() > 1e-3


def test_nothing_of_the_adapter_is_left(fused: Source) -> None:
    for model in (fused.network, open_pipeline(fused, TASK).text_encoder):
        assert not any("lora" in name for name, _ in model.named_modules())
        assert not hasattr(model, "peft_config")
        assert not any(parameter.requires_grad for parameter in model.parameters())


def test_two_loras_are_fused_one_after_the_other(pipeline: Path, lora: Path, tmp_path: Path) -> None:
    other = save_lora(pipeline, tmp_path / "other", seed=9)
    both = load_source(pipeline, find_loras([f"{lora}:0.5", str(other)])).network.state_dict()
    first = load_source(pipeline, find_loras([f"{lora}:0.5"])).network.state_dict()
    second = load_source(pipeline, find_loras([str(other)])).network.state_dict()
    plain = load_source(pipeline).network.state_dict()
    for name, weight in both.items():
        torch.testing.assert_close(weight - plain[name], first[name] + second[name] - 2 * plain[name])
    assert any(not torch.equal(both[name], first[name]) for name in both)


def test_a_lora_in_the_format_of_kohyas_trainer_is_the_same(
    pipeline: Path, lora: Path, fused: Source, tmp_path: Path
) -> None:
    tensors = load_file(lora / "pytorch_lora_weights.safetensors")
    renamed: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        layer, which, _ = name.rsplit(".", 2)
        prefix = "lora_unet" if layer.startswith("unet.") else "lora_te_text_model"
        path = layer.removeprefix("unet.").removeprefix("text_encoder.").removeprefix("text_model.")
        stem = f"{prefix}_{path.replace('.', '_')}"
        renamed[f"{stem}.{'lora_down' if which == 'lora_A' else 'lora_up'}.weight"] = tensor
        renamed[f"{stem}.alpha"] = torch.tensor(3.0)
    save_file(renamed, tmp_path / "kohya.safetensors")
    other = load_source(pipeline, find_loras([f"{tmp_path / 'kohya.safetensors'}:0.7"]))
    assert model_hash(other.network) == model_hash(fused.network) != model_hash(load_source(pipeline).network)
    np.testing.assert_allclose(
        images(open_pipeline(other, TASK)), images(open_pipeline(fused, TASK)), atol=1e-6
    )


def test_the_engine_in_a_pipeline_with_the_lora_makes_the_images_of_the_simulation(
    exported: Exported, pipeline: Path, lora: Path
) -> None:
    pipe = diffusers_fused(pipeline, lora, 0.7)
    pipe.unet = EngineUNet.from_pretrained(exported.folder)
    engine = images(pipe)
    pipe.unet = simulate(exported.source.network, exported.recipe)
    simulated = images(pipe)
    error = np.square(engine.astype(np.float64) - simulated).mean()
    assert -10 * np.log10(error) > 45
    ours = sample_pipeline(exported.folder, TASK, num_images=2, steps=3, seed=5)
    np.testing.assert_allclose(ours, engine, atol=1e-4)


def test_the_recipe_remembers_the_lora_and_finds_it_again(exported: Exported, lora: Path) -> None:
    (recorded,) = exported.recipe.calibration["loras"]
    assert (recorded["name"], recorded["scale"]) == (str(lora), 0.7)
    assert loras_of_recipe(exported.recipe.facts.loras) == exported.source.loras


def test_verify_fuses_what_the_recipe_names(
    exported: Exported, pipeline: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["verify", str(exported.folder), "--reference", str(pipeline), "--prompt", "a bird"]
    options = ["--num-images", "2", "--steps", "3", "--min-psnr", "15", "--features", "none", "--seed", "100"]
    assert main([*command, *options]) == 0
    capsys.readouterr()
    assert main([*command, *options, "--lora", f"{exported.source.loras[0].name}:0.2"]) == 1
    assert "LoRA of the recipe: got" in capsys.readouterr().err


def test_other_weights_or_another_lora_are_refused(
    exported: Exported, pipeline: Path, lora: Path, tmp_path: Path
) -> None:
    plain, other_scale = load_source(pipeline), load_source(pipeline, find_loras([f"{lora}:0.6"]))
    for source in (plain, other_scale):
        with pytest.raises(RecipeError, match=r"LoRA of the recipe: got .*expected .*scale 0.7, SHA-256"):
            write_pipeline(source, exported.recipe, tmp_path / "out")
        with pytest.raises(RecipeError, match="LoRA of the recipe"):
            verify(exported.folder, source, task=TASK, num_images=1, thresholds=Thresholds(max_fid=None))
    assert list(tmp_path.iterdir()) == []
    replaced = Path(shutil.copytree(lora, tmp_path / "lora"))
    with pytest.raises(RecipeError, match=r"LoRA of the recipe: got '.*' .scale 1"):
        loras_of_recipe(exported.recipe.facts.loras, find_loras([str(replaced)]))


def test_a_lora_that_has_moved_is_given_anew(exported: Exported, lora: Path, tmp_path: Path) -> None:
    moved = Path(shutil.copytree(lora, tmp_path / "moved"))
    (recorded,) = exported.recipe.calibration["loras"]
    gone = [LoraFacts("./gone.safetensors", recorded["scale"], recorded["sha256"])]
    with pytest.raises(SourceError, match=r"LoRA './gone.safetensors': got no such file"):
        loras_of_recipe(gone)
    assert loras_of_recipe(gone, find_loras([f"{moved}:0.7"]))[0].file == moved / next(moved.iterdir()).name


def test_an_unfinished_calibration_is_not_resumed_with_another_lora(
    pipeline: Path, lora: Path, tmp_path: Path
) -> None:
    output = tmp_path / "recipe.safetensors"
    with_text_only = tmp_path / "text.safetensors"
    tensors = load_file(lora / "pytorch_lora_weights.safetensors")
    save_file({k: v for k, v in tensors.items() if k.startswith("text_encoder.")}, with_text_only)
    source = load_source(pipeline, find_loras([str(with_text_only)]))
    assert model_hash(source.network) == model_hash(load_source(pipeline).network)
    with pytest.raises(KeyboardInterrupt):
        calibrate(source, SETTINGS, output=output, task=TASK, progress=Killed())
    with pytest.raises(CalibrationError, match=r"other settings .*loras"):
        calibrate(load_source(pipeline), SETTINGS, output=output, task=TASK)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nowhere.safetensors", "got no such file"),
        ("./nowhere/at/all", "got no such file"),
        ("README.md:0.5", "LoRA 'README.md'"),
        ("{lora}:loud", "--lora '.*loud': got the scale 'loud'"),
        ("{lora}:1e9", "got the scale '1e9'"),
        ("{lora}:nan", "got the scale 'nan'"),
        ("{empty}", "got no .safetensors file"),
        ("{two}", "got a.safetensors, b.safetensors"),
        ("{pickle}", "does not end in .safetensors"),
    ],
)
def test_what_is_no_lora_file_is_one_clear_line(text: str, message: str, lora: Path, tmp_path: Path) -> None:
    for name in ("empty", "two"):
        (tmp_path / name).mkdir()
    for name in ("two/a.safetensors", "two/b.safetensors", "lora.bin"):
        (tmp_path / name).write_bytes(b"")
    given = text.format(
        lora=lora, empty=tmp_path / "empty", two=tmp_path / "two", pickle=tmp_path / "lora.bin"
    )
    with pytest.raises((SourceError, UsageError), match=message):
        Lora.find(given)


def test_a_hub_id_is_downloaded_as_safetensors_only(lora: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    asked: list[Any] = []
    file = lora / "pytorch_lora_weights.safetensors"

    def snapshot(hub_id: str, allow_patterns: list[str]) -> str:
        asked.append((hub_id, allow_patterns))
        return str(lora)

    def download(*names: str) -> str:
        asked.append(names)
        return str(file)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    found = Lora.find("somebody/style:0.4")
    assert (found.name, found.scale, found.file) == ("somebody/style", 0.4, file)
    assert Lora.find("somebody/style/deep/one.safetensors").file == file
    assert asked == [("somebody/style", ["*.safetensors"]), ("somebody/style", "deep/one.safetensors")]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: {f"transformer.{k.removeprefix('unet.')}": v for k, v in t.items()}, "transformer"),
        (lambda t: {**t, "unet.conv_in.weight": torch.ones(1)}, "got the tensor 'unet.conv_in.weight'"),
        (lambda t: {k.replace("to_k", "to_x"): v for k, v in t.items()}, "got additions to 12 layers"),
        (lambda t: {k: v[:, :3] for k, v in t.items()}, "expected a file in a format"),
        (lambda t: {**t, "lora_unet_x.dora_scale": torch.ones(1)}, "dora_scale"),
        (lambda t: {}, "got no tensor"),
    ],
    ids=["another-network", "a-whole-weight", "unknown-layers", "other-shapes", "dora", "nothing"],
)
def test_a_lora_for_something_else_is_refused(
    change: Callable[[dict[str, Tensor]], dict[str, Tensor]],
    message: str,
    pipeline: Path,
    lora: Path,
    tmp_path: Path,
) -> None:
    tensors = load_file(lora / "pytorch_lora_weights.safetensors")
    changed = change({k: v for k, v in tensors.items() if k.startswith("unet.")})
    save_file({k: v.contiguous() for k, v in changed.items()}, tmp_path / "other.safetensors")
    with pytest.raises(SourceError, match=rf"LoRA '.*other.safetensors': .*{message}"):
        load_source(pipeline, find_loras([str(tmp_path / "other.safetensors")]))


def test_a_damaged_file_is_refused(pipeline: Path, lora: Path, tmp_path: Path) -> None:
    data = (lora / "pytorch_lora_weights.safetensors").read_bytes()
    (tmp_path / "half.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(SourceError, match=r"LoRA '.*half.safetensors': got SafetensorError"):
        load_source(pipeline, find_loras([str(tmp_path / "half.safetensors")]))


def test_a_pipeline_that_takes_no_lora_says_so(tiny_pipeline: Path, lora: Path) -> None:
    with pytest.raises(SourceError, match=r"pipeline DDIMPipeline: got --lora"):
        load_source(tiny_pipeline, find_loras([str(lora)]))


def test_without_peft_it_is_named(
    pipeline: Path, lora: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "peft" else found(name))
    assert main(["calibrate", str(pipeline), "--lora", str(lora), "--prompt", "a"]) == 1
    assert "got no package peft" in capsys.readouterr().err


def test_a_graph_takes_no_lora(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "model.onnx", "-o", str(tmp_path / "out.onnx"), "--lora", "x"]) != 0
    assert "--lora: got a choice" in capsys.readouterr().err
