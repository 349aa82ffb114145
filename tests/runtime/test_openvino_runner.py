import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from accuquant.errors import EngineError
from accuquant.runtime.cpu_forms.form import CpuForm
from accuquant.runtime.open_runner import open_runner
from accuquant.runtime.openvino_runner import OpenVinoRunner
from accuquant.runtime.runner import Runner

FEEDS: dict[str, np.ndarray] = {
    "sample": np.ones((1, 3, 8, 8), np.float32),
    "timestep": np.zeros(1, np.int64),
}


def test_floats_stay_float32_on_every_processor(model_path: Path) -> None:
    with OpenVinoRunner(model_path, num_threads=1) as runner:
        runner.infer(FEEDS)
        (compiled,) = compiled_models(runner)
        assert compiled.get_property("INFERENCE_PRECISION_HINT").to_string() == "f32"
        assert compiled.get_property("DYNAMIC_QUANTIZATION_GROUP_SIZE") == 0
        assert compiled.get_property("INFERENCE_NUM_THREADS") == 1


def test_bfloat16_is_used_or_refused(model_path: Path) -> None:
    import openvino

    runner = OpenVinoRunner(model_path, precision="bf16")
    if "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        with runner:
            runner.infer(FEEDS)
            (compiled,) = compiled_models(runner)
            assert compiled.get_property("INFERENCE_PRECISION_HINT").to_string() == "bf16"
    else:
        with pytest.raises(EngineError, match="bfloat16"):
            runner.activate()


def test_bfloat16_that_is_asked_for_is_asked_of_openvino(model_path: Path, compiled_in: list[str]) -> None:
    results = []
    for precision in ("fp32", "bf16", "auto"):
        with OpenVinoRunner(model_path, precision=precision) as runner:
            results.append(runner.infer(FEEDS)["out_sample"])
    assert compiled_in == ["f32", "bf16", "f32"], "auto needs a comparison of images"
    np.testing.assert_allclose(results[1], results[0], rtol=0.02, atol=0.02)


def test_bfloat16_is_refused_where_the_processor_has_none(
    model_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import openvino

    monkeypatch.setattr(openvino.Core, "get_property", lambda *_: ["FP32", "INT8"])
    with pytest.raises(
        EngineError, match="a processor with FP32, INT8, expected one that computes in bfloat16"
    ):
        OpenVinoRunner(model_path, precision="bf16").activate()


def test_a_call_runs_in_a_model_compiled_for_its_shapes(
    model_path: Path, network: Callable[..., Any]
) -> None:
    shapes = [(1, 3, 8, 8), (2, 3, 8, 8), (1, 3, 8, 8), (2, 3, 16, 8), (1, 3, 8, 8)]
    with OpenVinoRunner(model_path) as runner:
        assert runner.input_specs[0].shape[0] == "?", "the model itself takes any batch"
        for shape in shapes:
            sample = np.random.default_rng(0).standard_normal(shape, np.float32)
            result = runner.infer({**FEEDS, "sample": sample})["out_sample"]
            np.testing.assert_allclose(result, network(sample, 0), atol=1e-6)
            newest = compiled_models(runner)[-1]
            assert [tuple(port.shape) for port in newest.inputs] == [shape, (1,)]
            assert tuple(newest.outputs[0].shape) == result.shape
        kept = [tuple(compiled.inputs[0].shape) for compiled in compiled_models(runner)]
        assert kept == [(2, 3, 16, 8), (1, 3, 8, 8)], "memory must not grow with the number of shapes"


def test_one_set_of_shapes_stays_compiled_until_one_comes_back(model_path: Path) -> None:
    counts = []
    with OpenVinoRunner(model_path, num_threads=1) as runner:
        for batch in (2, 1, 2, 1, 2):
            runner.infer({**FEEDS, "sample": np.ones((batch, 3, 8, 8), np.float32)})
            counts.append(len(compiled_models(runner)))
    assert counts == [1, 1, 2, 2, 2], "a smaller last batch is no reason to keep what came before it"


def test_a_file_that_changed_meanwhile_is_not_compiled_for_other_shapes(
    model_path: Path, build_model: Callable[..., Any]
) -> None:
    with OpenVinoRunner(model_path) as runner:
        runner.infer(FEEDS)
        onnx.save(build_model(gain=0.123456), model_path)
        os.utime(model_path, (1, 1))
        runner.infer(FEEDS)
        with pytest.raises(EngineError, match="changed since it was loaded"):
            runner.infer({**FEEDS, "sample": np.ones((2, 3, 8, 8), np.float32)})


def test_a_form_in_bfloat16_is_refused_where_the_processor_has_none(
    model_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import openvino

    monkeypatch.setattr(openvino.Core, "get_property", lambda *_: ["FP32"])
    with pytest.raises(EngineError, match="expected one that computes in bfloat16"):
        OpenVinoRunner(model_path, form=CpuForm(precision="bf16")).activate()


def compiled_models(runner: Runner) -> list[Any]:
    """Return what is compiled, the latest used last."""
    assert isinstance(runner, OpenVinoRunner)
    return [request.get_compiled_model() for request in runner._requests.values()]


def test_the_cache_never_serves_an_engine_of_replaced_weights(
    tmp_path: Path, build_model: Callable[..., Any], network: Callable[..., Any]
) -> None:
    path, cache = tmp_path / "model.onnx", tmp_path / "cache"
    for gain in (0.5, 0.75, 0.5):
        onnx.save(
            build_model(gain=gain),
            path,
            save_as_external_data=True,
            location="weights.bin",
            size_threshold=0,
        )
        with OpenVinoRunner(path, cache_dir=cache) as runner:
            result = runner.infer(FEEDS)["out_sample"]
        np.testing.assert_allclose(result, network(FEEDS["sample"], 0, gain), atol=1e-6)
        (tmp_path / "weights.bin").unlink()
    assert len(list(cache.glob("*.blob"))) == 2


def test_keeps_the_graph_names_where_a_node_next_to_them_vanishes(tmp_path: Path) -> None:
    shape: list[str | int | None] = ["batch", 3]
    nodes = [
        helper.make_node("Cast", ["sample"], ["a_cast"], to=1),
        helper.make_node("Add", ["a_cast", "a_cast"], ["a_sum"]),
        helper.make_node("Identity", ["a_sum"], ["out_sample"]),
        helper.make_node("Identity", ["a_sum"], ["z_sample"]),
    ]
    values = [helper.make_tensor_value_info(n, 1, shape) for n in ("sample", "out_sample", "z_sample")]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(model, tmp_path / "m.onnx")
    for _ in range(2):  # compiled, then read from the cache
        with OpenVinoRunner(tmp_path / "m.onnx", cache_dir=tmp_path / "cache") as runner:
            assert [spec.name for spec in runner.input_specs] == ["sample"]
            result = runner.infer({"sample": np.ones((1, 3), np.float32)})
            assert sorted(result) == ["out_sample", "z_sample"]
            np.testing.assert_array_equal(result["z_sample"], np.full((1, 3), 2, np.float32))


@pytest.mark.parametrize("device", ["HETERO:CPU", "AUTO:CPU"])
def test_a_device_that_is_named_computes_the_file_as_it_is_written(model_path: Path, device: str) -> None:
    with OpenVinoRunner(model_path, rewriting=False) as runner:
        expected = runner.infer(FEEDS)
    there = OpenVinoRunner(model_path, device=device)
    assert not there.rewriting
    with there as runner:
        found = runner.infer(FEEDS)
        (compiled,) = compiled_models(runner)
        assert compiled.get_property("EXECUTION_DEVICES") in ("CPU", ["CPU"], ["(CPU)"])
        assert runner.int8_use is None
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("engine", "device"), [("openvino-gpu", "GPU"), ("openvino-npu", "NPU")])
def test_a_device_that_is_not_there_is_named(
    model_path: Path, monkeypatch: pytest.MonkeyPatch, engine: str, device: str
) -> None:
    import openvino

    monkeypatch.setattr(openvino.Core, "available_devices", ["CPU"])
    with pytest.raises(EngineError, match=f"OpenVINO device {device}: got only CPU, .*Install its driver"):
        open_runner(model_path, engine)


def test_one_of_several_gpus_may_be_named(model_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import openvino

    monkeypatch.setattr(openvino.Core, "available_devices", ["CPU", "GPU.0", "GPU.1"])
    asked: list[tuple[str, bool]] = []

    def compiled(core: Any, model: Any, device: str, properties: dict[str, Any]) -> Any:
        asked.append((device, "INFERENCE_PRECISION_HINT" in properties))
        raise RuntimeError("stopped here")

    monkeypatch.setattr(openvino.Core, "compile_model", compiled)
    for device in ("GPU", "GPU.1"):
        stopped = pytest.raises(EngineError, match="stopped here")
        with OpenVinoRunner(model_path, device=device) as runner, stopped:
            runner.infer(FEEDS)
    assert asked == [("GPU", False), ("GPU.1", False)]  # the precision is the plugin's own
