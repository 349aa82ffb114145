"""Tests of the TensorRT runner. Those that run an engine need a GPU and are marked; nothing is simulated."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from accuquant._util.gpu import find_gpu
from accuquant.engine_manifest import EngineManifest, manifest_path
from accuquant.engines.build import build_engine
from accuquant.engines.jobs import list_jobs
from accuquant.engines.options import BuildOptions, ShapeRange
from accuquant.engines.profile import static_profile
from accuquant.engines.target import Target
from accuquant.errors import EngineError
from accuquant.manifest import Manifest
from accuquant.networks.signature import TensorSpec
from accuquant.runtime.device_memory import DeviceArray, Workspace
from accuquant.runtime.runner import ANY_EXTENT
from accuquant.runtime.runtime_cache import cache_path
from accuquant.runtime.tensorrt_library import deserialize, make_logger
from accuquant.runtime.tensorrt_runner import TensorRtRunner, check_device_feeds

MakeConv = Callable[..., Path]


def build(model: Path, target: Target, profile: dict[str, ShapeRange] | None = None) -> Path:
    """Compile `model` beside itself, by TensorRT for RTX."""
    engine = model.with_suffix(".engine")
    options = BuildOptions(target, "tensorrt_rtx", profile or static_profile(model, batch_size=2))
    build_engine(model, engine, options, rebuild=f"accuquant build {model.name} --target {target}")
    return engine


@pytest.fixture
def compiled(make_conv: MakeConv) -> Path:
    return build(make_conv(), Target(8, 9))


@pytest.mark.trt
@pytest.mark.usefixtures("no_driver")
def test_without_a_driver_activation_says_so(compiled: Path) -> None:
    with pytest.raises(EngineError, match=r"no NVIDIA driver.*--engine openvino"):
        TensorRtRunner(compiled).activate()


@pytest.mark.trt
@pytest.mark.usefixtures("no_driver")
def test_what_tensorrt_itself_says_without_a_driver_is_one_clear_error(compiled: Path) -> None:
    import tensorrt_rtx as trt

    with pytest.raises(EngineError, match=r"refusal of tensorrt_rtx.*or update the NVIDIA driver"):
        deserialize(trt, make_logger(trt), compiled, EngineManifest.load(compiled))


def test_an_engine_with_other_bytes_is_not_loaded(engine: Path) -> None:
    engine.write_bytes(engine.read_bytes()[:-1])
    with pytest.raises(EngineError, match=r"other bytes.*Do not run it"):
        TensorRtRunner(engine).activate()


def test_an_engine_without_a_manifest_is_not_loaded(engine: Path) -> None:
    manifest_path(engine).unlink()
    with pytest.raises(EngineError, match="no manifest"):
        TensorRtRunner(engine).activate()


SPECS = (TensorSpec("x", (2, ANY_EXTENT), "float32"), TensorSpec("t", (1,), "int64"))


def test_arrays_on_the_gpu_are_checked_like_those_on_the_host() -> None:
    good = {"x": DeviceArray(1, (2, 9), "float32"), "t": DeviceArray(1, (1,), "int64")}
    check_device_feeds("engine", SPECS, good)
    for wrong, match in (
        ({"x": good["x"]}, r"inputs \['x'\]"),
        ({**good, "t": DeviceArray(1, (2,), "int64")}, r"input 't': got int64 \[2\], expected int64 \[1\]"),
        ({**good, "t": DeviceArray(1, (1,), "int32")}, "got int32"),
        ({**good, "x": DeviceArray(1, (2,), "float32")}, r"\[2\], expected float32 \[2, \?\]"),
    ):
        with pytest.raises(EngineError, match=match):
            check_device_feeds("engine", SPECS, wrong)


@pytest.mark.trt
def test_the_library_has_every_name_that_a_run_uses() -> None:
    import tensorrt_rtx as trt

    for owner, names in {
        trt.Runtime: ("deserialize_cuda_engine",),
        trt.ICudaEngine: (
            "create_execution_context",
            "create_runtime_config",
            "device_memory_size_v2",
            "get_tensor_dtype",
            "get_tensor_mode",
            "get_tensor_name",
            "get_tensor_profile_shape",
            "get_tensor_shape",
            "num_io_tensors",
        ),
        trt.IExecutionContext: (
            "execute_async_v3",
            "get_tensor_shape",
            "infer_shapes",
            "set_device_memory",
            "set_input_shape",
            "set_tensor_address",
        ),
        trt.IRuntimeConfig: (
            "create_runtime_cache",
            "cuda_graph_strategy",
            "set_execution_context_allocation_strategy",
            "set_runtime_cache",
        ),
        trt.CudaGraphStrategy: ("WHOLE_GRAPH_CAPTURE",),
        trt.ExecutionContextAllocationStrategy: ("USER_MANAGED",),
        trt.TensorIOMode: ("INPUT",),
        trt: ("nptype", "ILogger", "__version__"),
    }.items():
        for name in names:
            assert hasattr(owner, name), f"{owner} {name}"


@pytest.mark.trt
def test_the_engines_of_a_folder_have_the_sizes_of_its_manifest(make_folder: Callable[..., Path]) -> None:
    folder = make_folder()
    sizes = Manifest.load(folder).signature.sizes
    (job,) = list_jobs(folder, targets="sm89", backend="tensorrt_rtx", batch_size=2)
    built = build_engine(job.model, job.engine, job.options, rebuild=job.rebuild)
    largest = built.manifest.options["profile"]["sample"][2]
    assert largest == [2, 3, sizes["height"], sizes["width"]]


# What follows runs engines.


def local() -> Target:
    return Target(*find_gpu().capability)


def expected(model: Path, x: np.ndarray) -> np.ndarray:
    """Run the graph with ONNX Runtime."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    result: np.ndarray = session.run(None, {"x": x})[0]
    return result


def images(batch: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(batch, 4, 8, 8)).astype(np.float32)


@pytest.fixture
def active(make_conv: MakeConv) -> Iterator[tuple[Path, TensorRtRunner]]:
    model = make_conv()
    with TensorRtRunner(build(model, local())) as runner:
        assert isinstance(runner, TensorRtRunner)
        yield model, runner


@pytest.mark.trt
@pytest.mark.gpu
def test_an_engine_computes_what_onnx_runtime_computes(active: tuple[Path, TensorRtRunner]) -> None:
    model, runner = active
    assert [spec.shape for spec in runner.input_specs] == [(2, 4, 8, 8)]
    for seed in range(4):  # the first call warms up, the second records, the others replay
        x = images(2, seed)
        np.testing.assert_allclose(runner.infer({"x": x})["y"], expected(model, x), atol=1e-2)


@pytest.mark.trt
@pytest.mark.gpu
def test_results_belong_to_the_caller(active: tuple[Path, TensorRtRunner]) -> None:
    _, runner = active
    first = runner.infer({"x": images(2, 0)})["y"]
    kept = first.copy()
    runner.infer({"x": images(2, 1)})
    np.testing.assert_array_equal(first, kept)


@pytest.mark.trt
@pytest.mark.gpu
def test_a_dynamic_engine_takes_its_profile_and_nothing_else(make_conv: MakeConv) -> None:
    model = make_conv()
    profile = {"x": ShapeRange((1, 4, 8, 8), (2, 4, 8, 8), (4, 4, 8, 8))}
    with TensorRtRunner(build(model, local(), profile)) as runner:
        for batch in (4, 1, 4, 3):
            x = images(batch)
            np.testing.assert_allclose(runner.infer({"x": x})["y"], expected(model, x), atol=1e-2)
        with pytest.raises(EngineError, match=r"from \[1, 4, 8, 8\] to \[4, 4, 8, 8\]"):
            runner.infer({"x": images(5)})


@pytest.mark.trt
@pytest.mark.gpu
def test_engines_that_share_a_workspace_do_not_disturb_each_other(make_conv: MakeConv) -> None:
    models = [make_conv(f"{k}.onnx", scale=0.03 + 0.02 * k) for k in range(3)]
    workspace = Workspace()
    runners = [TensorRtRunner(build(model, local()), workspace=workspace) for model in models]
    for runner in runners:
        runner.activate()
    for seed in range(3):
        for model, runner in zip(models, runners, strict=True):
            x = images(2, seed)
            np.testing.assert_allclose(runner.infer({"x": x})["y"], expected(model, x), atol=1e-2)
    for runner in runners:
        runner.deactivate()


@pytest.mark.trt
@pytest.mark.gpu
def test_torch_tensors_pass_without_the_host(active: tuple[Path, TensorRtRunner]) -> None:
    import torch

    model, runner = active
    outputs: dict[str, Any] = {}

    def allocate(name: str, shape: tuple[int, ...], dtype: str) -> DeviceArray:
        outputs[name] = torch.empty(shape, dtype=getattr(torch, dtype), device="cuda")
        return DeviceArray(outputs[name].data_ptr(), shape, dtype)

    for seed in range(4):
        x = torch.from_numpy(images(2, seed)).cuda()
        feeds = {"x": DeviceArray(x.data_ptr(), tuple(x.shape), "float32")}
        runner.infer_on_device(feeds, allocate, torch.cuda.current_stream().cuda_stream)
        np.testing.assert_allclose(outputs["y"].cpu(), expected(model, x.cpu().numpy()), atol=1e-2)


@pytest.mark.trt
@pytest.mark.gpu
def test_a_second_run_finds_the_runtime_cache(active: tuple[Path, TensorRtRunner]) -> None:
    _, runner = active
    runner.infer({"x": images(2)})
    runner.deactivate()
    assert cache_path(runner.path).is_file()
    runner.activate()
    runner.infer({"x": images(2)})


@pytest.mark.trt
@pytest.mark.gpu
@pytest.mark.parametrize("lowering", ["rescale", "per-group"])
def test_a_pipelines_network_runs_on_cuda_tensors(make_folder: Callable[..., Path], lowering: str) -> None:
    import torch

    from accuquant.runtime.engine_unet import EngineUNet

    folder = make_folder(lowering=lowering)
    for job in list_jobs(folder, backend="tensorrt_rtx", batch_size=2):
        build_engine(job.model, job.engine, job.options, rebuild=job.rebuild)
    sizes = Manifest.load(folder).signature.sizes
    sample = torch.randn(2, 3, sizes["height"], sizes["width"])
    on_gpu: Any = EngineUNet.from_pretrained(folder, "tensorrt")
    on_gpu.to("cuda")
    on_cpu = EngineUNet.from_pretrained(folder, "onnxruntime")
    for timestep in (900, 100, 900, 100, 900, 100):  # both groups: warmed up, recorded, replayed
        predicted = on_gpu(sample.cuda(), timestep).sample
        assert predicted.is_cuda
        torch.testing.assert_close(predicted.cpu(), on_cpu(sample, timestep).sample, atol=1e-2, rtol=0)


@pytest.mark.trt
@pytest.mark.gpu
def test_a_smaller_batch_is_filled_up_on_the_host_and_on_the_gpu(make_folder: Callable[..., Path]) -> None:
    import torch

    from accuquant.runtime.engine_unet import EngineUNet

    folder = make_folder()
    (job,) = list_jobs(folder, backend="tensorrt_rtx", batch_size=4)
    build_engine(job.model, job.engine, job.options, rebuild=job.rebuild)
    sizes = Manifest.load(folder).signature.sizes
    sample = torch.randn(5, 3, sizes["height"], sizes["width"])
    engine = EngineUNet.from_pretrained(folder, "tensorrt")
    on_cpu = EngineUNet.from_pretrained(folder, "onnxruntime")
    for rows in (1, 3, 4):
        expected = on_cpu(sample[:rows], 700).sample
        for device in ("cpu", "cuda"):
            predicted = engine(sample[:rows].to(device), 700).sample
            assert predicted.device.type == device
            torch.testing.assert_close(predicted.cpu(), expected, atol=1e-2, rtol=0)
    for device in ("cpu", "cuda"):
        with pytest.raises(EngineError, match=r"\[4, 3, "):
            engine(sample.to(device), 700)
