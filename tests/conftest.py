"""Fixtures that more than one test module needs: a tiny pipeline and its parts, small QDQ graphs."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile

# The tensors of these tests are tiny: a second thread costs more than it gives, most of all under xdist.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# What a run measures and keeps on a machine is none of a test's business.
if "ACCUQUANT_CACHE" not in os.environ:
    os.environ["ACCUQUANT_CACHE"] = tempfile.mkdtemp(prefix="accuquant-tests-")
    atexit.register(shutil.rmtree, os.environ["ACCUQUANT_CACHE"], ignore_errors=True)
# What is printed must not depend on the terminal that the tests run in.
os.environ["COLUMNS"] = "80"

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import collected
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

if TYPE_CHECKING:
    from torch import nn

    from accuquant.pipelines.source import Source


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep the names of all tests, before marks and -k take some away."""
    config.stash[collected.NAMES] = frozenset(item.nodeid for item in items)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what needs TensorRT or a GPU where there is none, test by test."""
    if item.get_closest_marker("trt") is not None:
        pytest.importorskip("tensorrt_rtx")
        pytest.importorskip("cuda.bindings.runtime")
    if item.get_closest_marker("gpu") is None:
        return
    from accuquant._util.gpu import find_gpu
    from accuquant.errors import AccuQuantError

    try:
        find_gpu()
    except AccuQuantError as fault:
        pytest.skip(str(fault))


@pytest.fixture(scope="session")
def make_unet() -> Callable[..., nn.Module]:
    """Return a function that builds a UNet2DModel of 8x8 images with 14 quantizable layers or so."""

    def make(seed: int = 0, **changes: Any) -> nn.Module:
        import torch
        from diffusers import UNet2DModel

        config = {
            "sample_size": 8,
            "in_channels": 1,
            "out_channels": 1,
            "layers_per_block": 1,
            "block_out_channels": (8,),
            "norm_num_groups": 4,
            "attention_head_dim": 8,
            "down_block_types": ("AttnDownBlock2D",),
            "up_block_types": ("UpBlock2D",),
            "add_attention": False,
        }
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return UNet2DModel(**(config | changes)).eval()

    return make


@pytest.fixture(scope="session")
def tiny_pipeline(tmp_path_factory: pytest.TempPathFactory, make_unet: Callable[..., nn.Module]) -> Path:
    """Return a folder with a DDIM pipeline around the tiny UNet; do not write into it."""
    from diffusers import DDIMPipeline, DDIMScheduler

    folder = tmp_path_factory.mktemp("tiny-ddpm")
    DDIMPipeline(make_unet(), DDIMScheduler()).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_source(tiny_pipeline: Path) -> Source:
    """Return the tiny pipeline as load_source reads it; do not change its network."""
    from accuquant.pipelines.source import load_source

    return load_source(tiny_pipeline)


@pytest.fixture(scope="session")
def make_text_unet() -> Callable[..., nn.Module]:
    """Return a function that builds a UNet2DConditionModel as in Stable Diffusion, 8x8 latents, random."""
    from tiny_pipelines import text_unet

    return text_unet


@pytest.fixture(scope="session")
def tiny_text_pipeline(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a function that gives the folder of a pipeline of `tiny_pipelines`; do not write into it."""
    from tiny_pipelines import save_pipeline

    made: dict[str, Path] = {}

    def give(kind: str) -> Path:
        if kind not in made:
            made[kind] = save_pipeline(kind, tmp_path_factory.mktemp(kind))
        return made[kind]

    return give


@pytest.fixture(scope="session")
def picture_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with images/ (three PNG files of other shapes) and masks/ (two)."""
    import numpy as np
    from PIL import Image

    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for name in ("images", "masks"):
        (folder / name).mkdir()
    for k in range(3):
        pixels = rng.integers(0, 256, (20 + k, 24, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"{k}.png")
    for k in range(2):
        painted = np.tile(np.arange(24) > 8 + 4 * k, (20 + k, 1))
        Image.fromarray(np.uint8(255) * painted.astype(np.uint8)).save(folder / "masks" / f"{k}.png")
    return folder


def build_conv(
    path: Path,
    *,
    scale: float = 0.05,
    batch: int | str = "batch",
    size: int | str = 8,
    dynamic_scale: bool = False,
) -> Path:
    """Write `x [batch, 4, size, size] -> QDQ -> int8 Conv -> y`, and return the path.

    `dynamic_scale` makes the activation scale a graph input.
    """
    rng = np.random.default_rng(0)
    constants = {
        "scale": np.float32(scale),
        "zero": np.int8(0),
        "levels": rng.integers(-127, 128, (4, 4, 3, 3)).astype(np.int8),
        "weight_scale": np.full(4, 0.01, np.float32),
        "weight_zero": np.zeros(4, np.int8),
        "bias": np.zeros(4, np.float32),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["x_q"], "quantize"),
        helper.make_node("DequantizeLinear", ["x_q", "scale", "zero"], ["x_dq"], "dequantize"),
        helper.make_node(
            "DequantizeLinear", ["levels", "weight_scale", "weight_zero"], ["w"], "weight", axis=0
        ),
        helper.make_node("Conv", ["x_dq", "w", "bias"], ["y"], "conv", pads=[1, 1, 1, 1]),
    ]
    inputs: dict[str, list[int | str]] = {}
    if dynamic_scale:
        del constants["scale"]
        inputs["scale"] = []
    return save(path, nodes, constants, [batch, 4, size, size], inputs)


def save(
    path: Path,
    nodes: list[onnx.NodeProto],
    constants: dict[str, np.ndarray],
    shape: list[int | str],
    inputs: dict[str, list[int | str]] | None = None,
) -> Path:
    """Write a graph from x (and further float `inputs`) to y."""
    values = {"x": shape, **(inputs or {})}
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, s) for name, s in values.items()],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [f"y{axis}" for axis in range(len(shape))])],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.save(model, path)
    return path


@pytest.fixture
def make_conv(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes the convolution into the test's folder."""

    def make(name: str = "conv.onnx", **changes: object) -> Path:
        return build_conv(tmp_path / name, **changes)  # type: ignore[arg-type]

    return make


@pytest.fixture
def rtx_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let TensorRT for RTX look installed, for code that asks for its name and version alone."""
    from types import SimpleNamespace

    from accuquant.engines import backend

    names = SimpleNamespace(find_spec=lambda name: name if name == "tensorrt_rtx" else None)
    monkeypatch.setattr(backend, "importlib", SimpleNamespace(util=names))
    monkeypatch.setattr(backend, "_installed_version", lambda library: "1.7.1")


@pytest.fixture
def in_float(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let OpenVINO leave every pair in float, as a processor does whose kernels do not take it."""
    from accuquant.runtime.openvino_runner import OpenVinoRunner

    original = OpenVinoRunner._properties
    monkeypatch.setattr(
        OpenVinoRunner,
        "_properties",
        lambda self, form: {**original(self, form), "LP_TRANSFORMS_MODE": False},
    )


@pytest.fixture
def no_driver() -> None:
    """Skip where there is an NVIDIA driver."""
    if pytest.importorskip("cuda.bindings.runtime").cudaDriverGetVersion()[1]:
        pytest.skip("there is a driver")


@pytest.fixture(scope="session")
def save_graph() -> Callable[..., Path]:
    """Return `save`."""
    return save


@pytest.fixture
def small_disk() -> Iterator[Callable[[int], None]]:
    """Return a function after which no file grows beyond so many bytes: what a full disk is like."""
    if sys.platform == "win32":
        pytest.skip("limits of POSIX")
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
