"""A tiny pipeline of 32x32 gray images, exports of it, and engines that are the network with an error."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from diffusers import DDIMScheduler
from torch import nn

from accuquant.cli.main import main
from accuquant.groups import StepGroups
from accuquant.manifest import RECIPE_NAME, Manifest
from accuquant.networks.network import call, float_weights, model_hash, signature_of
from accuquant.pipelines.source import Source
from accuquant.qparams import WEIGHT_AXIS, LayerQParams, fingerprint
from accuquant.recipe import Recipe
from accuquant.runtime.engine_model import EngineModel

GROUPS = StepGroups((1000, 0))
STEPS = 3


class NoisyEngine:
    """Stands for an EngineModel: the float network behind numpy, with an error of its own."""

    def __init__(self, network: nn.Module, error: float) -> None:
        self.network, self.error = network, error
        self.calls = 0

    def __call__(
        self, sample: npt.NDArray[Any], timestep: float, conditioning: Mapping[str, npt.NDArray[Any]]
    ) -> npt.NDArray[Any]:
        self.calls += 1
        given = {name: torch.from_numpy(array) for name, array in conditioning.items()}
        output = call(self.network, torch.from_numpy(sample), torch.tensor(timestep), given).numpy()
        rounded: npt.NDArray[Any] = output * np.float32(1 + self.error)
        return rounded

    def activate(self) -> None:
        pass

    def __enter__(self) -> NoisyEngine:
        return self

    def __exit__(self, *fault: object) -> None:
        pass


@pytest.fixture(scope="session")
def gray_source(make_unet: Callable[..., nn.Module], tmp_path_factory: pytest.TempPathFactory) -> Source:
    """Return a pipeline of 32x32 gray images, which the bundled feature network takes."""
    network = make_unet(sample_size=32, block_out_channels=(4,), norm_num_groups=2, attention_head_dim=4)
    return source_of(network, tmp_path_factory.mktemp("gray"))


@pytest.fixture(scope="session")
def class_source(make_unet: Callable[..., nn.Module], tmp_path_factory: pytest.TempPathFactory) -> Source:
    """Return a class-conditional pipeline of 8x8 images."""
    return source_of(make_unet(num_class_embeds=4), tmp_path_factory.mktemp("classes"))


def source_of(network: nn.Module, folder: Path) -> Source:
    return Source(
        "toy",
        folder,
        "DDIMPipeline",
        "unet",
        network,
        DDIMScheduler(clip_sample=False),
        signature_of(network),
    )


@pytest.fixture(scope="session")
def tiny_source_8(make_unet: Callable[..., nn.Module], tmp_path_factory: pytest.TempPathFactory) -> Source:
    """Return a pipeline of 8x8 gray images: the fastest one."""
    return source_of(make_unet(), tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")  # the patch must not outlast the module that asks for it
def export(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Path]]:
    """Return a function that exports a pipeline, with an engine whose output errs by a share."""
    errors: dict[Path, tuple[nn.Module, float]] = {}

    def make(source: Source, name: str = "out", error: float = 0.01) -> Path:
        recipe = recipe_of(source)
        folder = tmp_path_factory.mktemp("exports") / name
        (folder / "unet").mkdir(parents=True)
        (folder / "unet" / "model.onnx").write_bytes(name.encode())
        recipe.save(folder / RECIPE_NAME)
        Manifest(
            pipeline_class="DDIMPipeline", component="unet", lowering="rescale", precision="fp32", opset=21,
            graphs=("unet/model.onnx",), groups=GROUPS, signature=source.signature,
            model_hash=recipe.model_hash, num_inference_steps=STEPS, accuquant_version="0.1.0",
        ).save(folder)  # fmt: skip
        errors[folder] = (source.network, error)
        return folder

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            EngineModel, "from_folder", lambda folder, engine, **_: NoisyEngine(*errors[Path(folder)])
        )
        yield make


@pytest.fixture(scope="session")
def real_export(tiny_pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an export of the tiny pipeline that engines run; do not write into it."""
    folder, source = tmp_path_factory.mktemp("real"), str(tiny_pipeline)
    recipe, out = folder / "recipe.safetensors", folder / "out"
    few = {"steps": 4, "group-size": 2, "num-trajectories": 4, "batch-size": 2, "weight-bits": 7}
    options = [word for name, value in few.items() for word in (f"--{name}", str(value))]
    assert main(["calibrate", source, "-o", str(recipe), *options]) == 0
    assert main(["export", source, "--recipe", str(recipe), "-o", str(out), "--target", "cpu"]) == 0
    return out


def recipe_of(source: Source) -> Recipe:
    name, weight = next(
        (k, w) for k, w in float_weights(source.network).items() if "resnets" in k and w.ndim == 4
    )
    scale = np.full(weight.shape[WEIGHT_AXIS["conv2d"]], np.abs(weight).max() / 63, np.float32)
    layer = LayerQParams(
        name, "conv2d", weight.shape, fingerprint(weight), scale, np.array([0.05], np.float32), weight_bits=7
    )
    return Recipe(
        GROUPS, {name: layer}, source.signature, dict(source.scheduler.config), model_hash(source.network)
    )
