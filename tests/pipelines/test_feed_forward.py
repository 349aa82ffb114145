from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from accuquant.calibration.trajectory import bound
from accuquant.denoising.conditioning import Conditioning
from accuquant.denoising.process import DenoisingProcess
from accuquant.errors import CalibrationError, SourceError
from accuquant.pipelines.source import feed_forward_source, load_source

SHAPE = (4,)


class Generator(nn.Module):
    def __init__(self, after: Callable[[Tensor], Any] = torch.tanh) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.expand, self.paint, self.after = nn.Linear(4, 16), nn.ConvTranspose2d(4, 1, 4, 2, 1), after

    def forward(self, latents: Tensor) -> Any:
        return self.after(self.paint(torch.relu(self.expand(latents)).reshape(-1, 4, 2, 2)))


class TwoInputs(Generator):
    def forward(self, latents: Tensor, label: Tensor) -> Any:  # type: ignore[override]
        return super().forward(latents) + label


class Counting(Generator):
    calls = 0

    def forward(self, latents: Tensor) -> Any:
        Counting.calls += 1
        return super().forward(latents) + Counting.calls * 0.01


class Branching(Generator):
    def forward(self, latents: Tensor) -> Any:
        images = super().forward(latents)
        return images if images.sum() < 1e9 else -images


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a generator; do not write into it."""
    path = tmp_path_factory.mktemp("generator") / "gan"
    feed_forward_source(Generator(), SHAPE, path)
    return path


@torch.no_grad()
def test_a_folder_makes_the_images_of_the_module_and_holds_no_class(folder: Path) -> None:
    module, latents, source = Generator(), torch.randn(3, *SHAPE), load_source(folder)
    predict = bound(source.network, Conditioning())
    torch.testing.assert_close(
        DenoisingProcess(source.scheduler, 1).sample(predict, latents), module(latents)
    )
    assert source.signature.output.shape == ("batch", 1, 4, 4)
    assert {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} == {
        "model_index.json",
        "generator/config.json",
        "generator/diffusion_pytorch_model.safetensors",
        "scheduler/scheduler_config.json",
    }


@pytest.mark.parametrize(
    ("module", "fault"),
    [
        (TwoInputs(), r"needs latents, label, expected one input, the latents"),
        (Generator(lambda x: (x,)), r"returns a tuple, expected one tensor of images"),
        (Generator(lambda x: x.flatten(1)), r"output \[3, 16\] of float32, expected images"),
        (Generator(lambda x: x.expand(-1, 2, -1, -1)), r"output \[3, 2, 4, 4\]"),
        (Generator(lambda x: 100 * torch.ones_like(x)), r"expected images in \[-1, 1\]"),
        (Generator(lambda x: x + 0.1 * torch.randn_like(x)), r"image depends on the others|called again"),
        (Counting(), r"image depends on the others|called again"),
        (Generator(lambda x: x + x.mean()), r"depends on the others of its batch"),
        (Generator(lambda x: x.transpose(0, 1)), r"output \[1, 3, 4, 4\] for latents \[3, 4\]"),
        (Branching(), r"expected a forward that torch.export can read"),
    ],
)
def test_refuses_what_is_no_generator_before_anything_is_written(
    module: nn.Module, fault: str, tmp_path: Path
) -> None:
    with pytest.raises(SourceError, match=fault):
        feed_forward_source(module, SHAPE, tmp_path / "gan")
    assert not (tmp_path / "gan").exists()


def test_random_noise_of_every_call_is_named_as_such(tmp_path: Path) -> None:
    def noisy(images: Tensor) -> Tensor:
        return images + 0.1 * torch.randn(1, 1, 4, 4, generator=generator)

    generator = torch.Generator().manual_seed(0)
    with pytest.raises(SourceError, match=r"depends on the others|an engine draws no random numbers"):
        feed_forward_source(Generator(noisy), SHAPE, tmp_path / "gan")


def test_refuses_a_latent_of_another_shape(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"takes latents \[3, 5\]"):
        feed_forward_source(Generator(), (5,), tmp_path / "gan")


def test_nothing_of_somebody_else_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(SourceError, match=r"a folder with other files"):
        feed_forward_source(Generator(), SHAPE, tmp_path)


def test_an_earlier_generator_is_replaced_and_the_module_is_left_as_it_was(
    folder: Path, tmp_path: Path
) -> None:
    module = Generator().half()
    shutil.copytree(folder, tmp_path / "gan")
    source = feed_forward_source(module, SHAPE, tmp_path / "gan")
    assert module.training
    assert module.paint.weight.dtype == torch.float16
    assert {weight.dtype for weight in source.network.state_dict().values()} == {torch.float32}
    assert torch.equal(source.network.state_dict()["paint.weight"], module.paint.weight.float())


def test_a_folder_cannot_ask_for_an_operation_that_reads_files(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "generator" / "config.json"
    config = json.loads(path.read_text())
    config["program"]["steps"][0] = {
        "name": config["program"]["steps"][0]["name"],
        "operation": "aten.from_file.default",
        "arguments": ["/etc/passwd"],
    }
    path.write_text(json.dumps(config))
    with pytest.raises(SourceError, match=r"operation 'aten.from_file.default'"):
        load_source(tmp_path)


def test_a_generator_takes_one_step_and_no_variant(folder: Path) -> None:
    source = load_source(folder)
    with pytest.raises(CalibrationError, match=r"number of steps: got 2, expected 1 to 1"):
        DenoisingProcess(source.scheduler, 2)
    with pytest.raises(SourceError, match=r"got --variant"):
        load_source(folder, variant="fp16")
