"""A real Triton server loads the repository; skipped without nvidia-pytriton, whose wheel contains one.

The wheel has the Python backend alone, so a few lines of Python stand in for the OpenVINO and ONNX Runtime
backends: what is tested is that the server accepts each config.pbtxt and routes tensors by it.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
import sysconfig
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
import pytest

from accuquant.calibration import CalibrationSettings, calibrate
from accuquant.export import write_pipeline
from accuquant.export.write.triton_repository import write_triton_repository
from accuquant.pipelines.source import load_source
from accuquant.pipelines.task import Task

pytestmark = pytest.mark.slow
SETTINGS = CalibrationSettings(
    steps=2, group_size=1, num_trajectories=1, batch_size=1, iterations=0, shared_iterations=0,
    observer="minmax",
    rounding="nearest", refine=False,
)  # fmt: skip
# DLPack instead of as_numpy, because the wheel's stub was built for numpy 1
BACKEND = """
import json, os, sys
sys.path[:0] = {path!r}
import numpy as np, {engine}
import triton_python_backend_utils as triton

class TritonPythonModel:
    def initialize(self, args):
        config = json.loads(args["model_config"])
        path = os.path.join(args["model_repository"], args["model_version"], config["default_model_filename"])
        self.run = {load}
        self.inputs = [tensor["name"] for tensor in config["input"]]
        self.output = config["output"][0]["name"]

    def execute(self, requests):
        read = lambda request, name: np.from_dlpack(triton.get_input_tensor_by_name(request, name))
        results = [self.run({{name: read(request, name) for name in self.inputs}}) for request in requests]
        tensors = [triton.Tensor.from_dlpack(self.output, np.array(result)) for result in results]
        return [triton.InferenceResponse([tensor]) for tensor in tensors]
"""
LOAD = {
    "onnxruntime": "(lambda s: lambda feeds: s.run(None, feeds)[0])(onnxruntime.InferenceSession(path))",
    "openvino": (
        "(lambda m: lambda feeds: m(feeds)[0])"
        '(openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"}))'
    ),
}


@pytest.fixture(scope="module")
def repository(tiny_text_pipeline: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    if importlib.util.find_spec("pytriton") is None:
        pytest.skip("nvidia-pytriton is not installed")
    source, folder = load_source(tiny_text_pipeline("sd")), tmp_path_factory.mktemp("triton")
    task = Task(prompts=("a cat",), guidance_scale=1.0)
    recipe = calibrate(source, SETTINGS, output=folder / "recipe.safetensors", task=task)
    write_pipeline(source, recipe, folder / "out")
    write_triton_repository(folder / "out", folder / "repository")
    return folder / "repository"


@pytest.fixture(scope="module")
def server(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Start the server on the repository and return its address."""
    spec = importlib.util.find_spec("pytriton")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    package = Path(spec.submodule_search_locations[0])
    folder = tmp_path_factory.mktemp("server")
    backends = folder / "backends"
    shutil.copytree(package / "tritonserver" / "backends", backends)
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    stub = package / "tritonserver" / "python_backend_stubs" / version / "triton_python_backend_stub"
    (backends / "python" / stub.name).symlink_to(stub)
    for engine, load in LOAD.items():
        (backends / engine).mkdir()
        code = BACKEND.format(path=[p for p in sys.path if p], engine=engine, load=load)
        (backends / engine / "model.py").write_text(code)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    libraries = [str(package.parent / "nvidia_pytriton.libs"), str(sysconfig.get_config_var("LIBDIR"))]
    command: list[str | Path] = [
        package / "tritonserver" / "bin" / "tritonserver", f"--model-repository={repository}",
        f"--backend-directory={backends}", f"--http-port={port}", "--allow-grpc=false",
        "--allow-metrics=false", "--exit-on-error=false", "--disable-auto-complete-config",
    ]  # fmt: skip
    environment = os.environ | {"LD_LIBRARY_PATH": ":".join(libraries)}
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    try:
        for model in ("unet-onnxruntime", "unet-openvino"):
            wait_for(f"http://localhost:{port}/v2/models/{model}/ready", process, folder / "log")
        yield f"http://localhost:{port}/v2"
    finally:
        process.terminate()
        process.wait(60)


def wait_for(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(240):
        try:
            urllib.request.urlopen(address, timeout=5).close()
            return
        except OSError:
            if process.poll() is not None:
                break
            time.sleep(0.5)
    pytest.fail(log.read_text(errors="replace")[-3000:])


def infer(server: str, model: str, feeds: dict[str, npt.NDArray[np.float32]]) -> dict[str, Any]:
    inputs = [
        {"name": name, "shape": array.shape, "datatype": "FP32", "data": array.ravel().tolist()}
        for name, array in feeds.items()
    ]
    request = urllib.request.Request(
        f"{server}/models/{model}/infer", data=json.dumps({"inputs": inputs}).encode()
    )
    with urllib.request.urlopen(request, timeout=60) as response:
        answer: dict[str, Any] = json.load(response)
    return answer["outputs"][0]


@pytest.fixture
def feeds() -> dict[str, npt.NDArray[np.float32]]:
    rng = np.random.default_rng(0)
    return {
        "sample": rng.normal(size=(2, 4, 8, 8)).astype(np.float32),
        "timestep": np.array([700], np.float32),
        "encoder_hidden_states": rng.normal(size=(2, 5, 16)).astype(np.float32),
    }


@pytest.mark.parametrize("engine", LOAD)
def test_the_server_answers_what_the_graph_computes(
    engine: str, server: str, repository: Path, feeds: dict[str, npt.NDArray[np.float32]]
) -> None:
    session = onnxruntime.InferenceSession(repository / "unet-onnxruntime" / "1" / "model.onnx")
    expected = session.run(None, feeds)[0]
    output = infer(server, f"unet-{engine}", feeds)
    assert (output["name"], output["datatype"], output["shape"]) == ("out_sample", "FP32", [2, 4, 8, 8])
    found = np.array(output["data"], np.float32).reshape(output["shape"])
    np.testing.assert_allclose(found, expected, atol=0 if engine == "onnxruntime" else 1e-5)


def test_the_server_refuses_another_shape_by_the_configuration(
    server: str, feeds: dict[str, npt.NDArray[np.float32]]
) -> None:
    with pytest.raises(urllib.error.HTTPError) as refusal:
        infer(server, "unet-onnxruntime", feeds | {"sample": feeds["sample"][:, :3]})
    assert "Expected [-1,4,-1,-1], got [2,3,8,8]" in refusal.value.read().decode()
