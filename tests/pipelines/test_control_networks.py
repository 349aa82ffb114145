"""What a pipeline with control networks or image adapters is told, and what is refused before it runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionControlNetPipeline
from tiny_pipelines import control_net

from accuquant.errors import CalibrationError, SourceError, UsageError
from accuquant.networks.controlled import ControlledNetwork
from accuquant.pipelines.capture import capture
from accuquant.pipelines.families import call_arguments
from accuquant.pipelines.real_pipeline import open_pipeline
from accuquant.pipelines.source import Source, load_source
from accuquant.pipelines.starts import PipelineStarter
from accuquant.pipelines.task import Task

Give = Callable[[str], Path]


@pytest.fixture(scope="module")
def source(tiny_text_pipeline: Give) -> Source:
    return load_source(tiny_text_pipeline("control"))


@pytest.fixture(scope="module")
def task(picture_folder: Path) -> Task:
    read = Task.read(control_images=[picture_folder / "images"])
    return replace(read, prompts=("a cat", "two dogs"))


def test_a_control_network_from_elsewhere_makes_the_pipeline_that_takes_it(
    tiny_text_pipeline: Give, tmp_path: Path
) -> None:
    control_net().save_pretrained(tmp_path / "edges")
    plain = tiny_text_pipeline("control-two")
    found = load_source(plain, controlnets=(str(tmp_path / "edges"),))
    assert found.pipeline_class == "StableDiffusionControlNetPipeline"
    assert isinstance(found.network, ControlledNetwork)
    assert list(found.network.parts) == ["unet", "controlnet"]


def test_several_control_networks_are_read_from_their_folders(tiny_text_pipeline: Give) -> None:
    network = load_source(tiny_text_pipeline("control-two")).network
    assert isinstance(network, ControlledNetwork)
    assert list(network.parts) == ["unet", "controlnet.nets.0", "controlnet.nets.1"]
    names = [spec.name for spec in network.signature.conditioning]
    assert names[1:] == ["controlnet_cond_0", "controlnet_cond_1", "conditioning_scale"]


def test_a_control_network_is_refused_beside_a_network_that_is_no_unet(
    tiny_text_pipeline: Give, tmp_path: Path
) -> None:
    control_net().save_pretrained(tmp_path)
    with pytest.raises(UsageError, match="--controlnet: got a PixArtSigmaPipeline"):
        load_source(tiny_text_pipeline("pixart"), controlnets=(str(tmp_path),))


def test_a_folder_without_a_control_network_is_refused(tiny_text_pipeline: Give, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"no config\.json in it"):
        load_source(tiny_text_pipeline("control"), controlnets=(str(tmp_path),))
    with pytest.raises(SourceError, match="no such folder"):
        load_source(tiny_text_pipeline("control"), controlnets=(str(tmp_path / "none"),))
    with pytest.raises(SourceError, match="got a UNet2DConditionModel"):
        load_source(tiny_text_pipeline("control"), controlnets=(str(tiny_text_pipeline("control") / "unet"),))


def test_a_pooling_control_network_is_refused(tiny_text_pipeline: Give, tmp_path: Path) -> None:
    control_net(global_pool_conditions=True).save_pretrained(tmp_path)
    with pytest.raises(SourceError, match="global_pool_conditions"):
        load_source(tiny_text_pipeline("control"), controlnets=(str(tmp_path),))


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"control_images": ()}, "got no control images"),
        ({"control_images": (("a.png",), ("b.png",))}, "--control-images: got 2 folders, expected 1"),
        ({"control_scale": (0.5, 1.0)}, "--control-scale: got 2 numbers, expected 1"),
        ({"images": ("a.png",), "control_images": ()}, "got no control images"),
    ],
)
def test_what_does_not_fit_the_control_networks_is_refused_before_anything_runs(
    source: Source, task: Task, changes: dict[str, Any], match: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = replace(task, **changes)
    pipe = open_pipeline(source, wrong)
    monkeypatch.setattr(pipe.unet, "forward", None)  # nothing may be called
    with pytest.raises(UsageError, match=match):
        call_arguments(pipe, wrong, range(1), 2)


def test_a_control_network_for_another_autoencoder_is_refused(
    tiny_text_pipeline: Give, task: Task, tmp_path: Path
) -> None:
    control_net(conditioning_embedding_out_channels=(8, 8, 8)).save_pretrained(tmp_path)
    other = load_source(tiny_text_pipeline("control"), controlnets=(str(tmp_path),))
    with pytest.raises(UsageError, match="got one that makes a latent of 4x4 pixels, expected 2x2"):
        call_arguments(open_pipeline(other, task), task, range(1), 2)


def test_sides_that_the_levels_do_not_halve_are_refused_before_calibration(
    source: Source, task: Task
) -> None:
    with pytest.raises(UsageError, match="a multiple of 2"):
        PipelineStarter(source, replace(task, image_size=18), 2)


def test_control_images_are_refused_where_nothing_reads_them(tiny_text_pipeline: Give, task: Task) -> None:
    plain = load_source(tiny_text_pipeline("sd"))
    with pytest.raises(UsageError, match="--control-images: got a choice"):
        call_arguments(open_pipeline(plain, task), task, range(1), 2)


def test_guess_mode_is_refused(source: Source, task: Task) -> None:
    pipe = open_pipeline(source, task)
    assert isinstance(pipe, StableDiffusionControlNetPipeline)
    arguments = call_arguments(pipe, task, range(1), 2) | {"guess_mode": True}
    with pytest.raises(CalibrationError, match="guess_mode"):
        capture(pipe, "unet", arguments, range(1), signature=source.signature, steps=1, real=True)


def test_a_start_holds_the_images_and_the_scale_of_the_control_network(source: Source, task: Task) -> None:
    starter = PipelineStarter(source, replace(task, control_scale=(0.5,)), 2)
    start = starter.start(range(2), seed=3)
    given = start.conditioning.arguments()
    assert given["controlnet_cond"].shape == (4, 3, 16, 16)
    assert 0 <= float(given["controlnet_cond"].min()) < float(given["controlnet_cond"].max()) <= 1
    assert torch.equal(given["controlnet_cond"][:2], given["controlnet_cond"][2:])
    assert torch.equal(given["conditioning_scale"], torch.tensor([0.5]))


def test_an_ip_adapter_adds_products_to_the_cross_attentions(tiny_text_pipeline: Give) -> None:
    pipeline = tiny_text_pipeline("ip-adapter")
    file = str(pipeline.parent / "ip_adapter.safetensors")
    network: Any = load_source(pipeline, ip_adapters=(f"{file}:0.5",)).network
    added = [name for name, _ in network.named_modules() if name.endswith("to_k_ip.0")]
    assert added
    assert all(p.scale == [0.5] for n, p in network.attn_processors.items() if "attn2" in n)


def test_what_is_no_ip_adapter_is_refused(tiny_text_pipeline: Give, tmp_path: Path) -> None:
    pipeline = tiny_text_pipeline("ip-adapter")
    weights = pipeline / "unet" / "diffusion_pytorch_model.safetensors"
    for text, match in (
        (str(tmp_path / "none.safetensors"), "no such file"),
        (str(pipeline / "model_index.json"), "does not end in .safetensors"),
        (str(weights), "without the tensors of one"),
    ):
        with pytest.raises(SourceError, match=match):
            load_source(pipeline, ip_adapters=(text,))
    with pytest.raises(UsageError, match="got the scale 'much'"):
        load_source(pipeline, ip_adapters=(f"{weights}:much",))


def test_an_ip_adapter_needs_images(tiny_text_pipeline: Give) -> None:
    pipeline = tiny_text_pipeline("ip-adapter")
    adapted = load_source(pipeline, ip_adapters=(str(pipeline.parent / "ip_adapter.safetensors"),))
    asked = Task(prompts=("a cat",))
    with pytest.raises(UsageError, match="--ip-adapter-images: got none"):
        call_arguments(open_pipeline(adapted, asked), asked, range(1), 2)
