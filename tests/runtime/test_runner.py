import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from accuquant.errors import EngineError, MissingDependencyError, UsageError
from accuquant.runtime.open_runner import ENGINE_NAMES, make_runner, open_runner

ENGINES = ["openvino", "onnxruntime"]


def feeds(batch: int = 2, timestep: int = 700, seed: int = 0) -> dict[str, np.ndarray]:
    sample = np.random.default_rng(seed).standard_normal((batch, 3, 8, 8)).astype(np.float32)
    return {"sample": sample, "timestep": np.array([timestep], np.int64)}


@pytest.mark.parametrize("engine", ENGINES)
def test_infers_what_the_graph_computes(engine: str, model_path: Path, network: Callable[..., Any]) -> None:
    with open_runner(model_path, engine, num_threads=1) as runner:
        for batch in (2, 5):
            given = feeds(batch)
            result = runner.infer(given)
            assert list(result) == ["out_sample"]
            np.testing.assert_allclose(result["out_sample"], network(given["sample"], 700), atol=1e-6)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_later_call_does_not_overwrite_an_earlier_result(engine: str, model_path: Path) -> None:
    with open_runner(model_path, engine) as runner:
        first = runner.infer(feeds(seed=0))["out_sample"]
        kept = first.copy()
        second = runner.infer(feeds(seed=1))["out_sample"]
    np.testing.assert_array_equal(first, kept)
    assert np.abs(first - second).max() > 0.1
    first += 1  # the caller owns it


@pytest.mark.parametrize("engine", ENGINES)
def test_reads_arrays_that_are_not_contiguous(
    engine: str, model_path: Path, network: Callable[..., Any]
) -> None:
    sample = feeds(4)["sample"]
    with open_runner(model_path, engine) as runner:
        for view in (sample[::2], sample.transpose(0, 1, 3, 2), np.asfortranarray(sample)):
            result = runner.infer({"sample": view, "timestep": np.array([0])})["out_sample"]
            np.testing.assert_allclose(result, network(view, 0), atol=1e-6)


@pytest.mark.parametrize("engine", ENGINES)
def test_specs_name_inputs_types_and_fixed_extents(engine: str, model_path: Path) -> None:
    with open_runner(model_path, engine) as runner:
        sample, timestep = runner.input_specs
        assert (sample.name, sample.dtype, sample.shape[1]) == ("sample", "float32", 3)
        assert isinstance(sample.shape[0], str)
        assert (timestep.name, timestep.dtype) == ("timestep", "int64")
        assert [spec.name for spec in runner.output_specs] == ["out_sample"]


@pytest.mark.parametrize("engine", ENGINES)
def test_refuses_feeds_that_the_model_does_not_take(engine: str, model_path: Path) -> None:
    good = feeds()
    with open_runner(model_path, engine) as runner:
        with pytest.raises(EngineError, match=r"got inputs \['sample'\], expected \['sample', 'timestep'\]"):
            runner.infer({"sample": good["sample"]})
        with pytest.raises(EngineError, match=r"got inputs \['sample', 'time'\]"):
            runner.infer({"sample": good["sample"], "time": good["timestep"]})
        with pytest.raises(
            EngineError, match=r"input 'sample': got float64, expected a numpy array of float32"
        ):
            runner.infer({**good, "sample": good["sample"].astype(np.float64)})
        with pytest.raises(EngineError, match=r"input 'timestep': got int, expected a numpy array of int64"):
            runner.infer({**good, "timestep": 700})  # type: ignore[dict-item]
        with pytest.raises(EngineError, match=r"got shape \[3, 8, 8\]"):
            runner.infer({**good, "sample": good["sample"][0]})
        with pytest.raises(EngineError, match=r"got shape \[2, 1, 8, 8\].*Pass the size"):
            runner.infer({**good, "sample": good["sample"][:, :1]})


@pytest.mark.parametrize("engine", ENGINES)
def test_refuses_a_batch_that_the_engine_cannot_take(
    engine: str, tmp_path: Path, build_model: Callable[..., Any]
) -> None:
    onnx.save(build_model(batch=4), tmp_path / "fixed.onnx")
    with open_runner(tmp_path / "fixed.onnx", engine) as runner:
        assert runner.infer(feeds(4))["out_sample"].shape == (4, 3, 8, 8)
        with pytest.raises(EngineError, match=r"got shape \[2, 3, 8, 8\], expected \[4, 3.*Use batches of 4"):
            runner.infer(feeds(2))


@pytest.mark.parametrize("engine", ENGINES)
def test_an_error_inside_the_engine_becomes_one_line(
    engine: str, tmp_path: Path, build_model: Callable[..., Any]
) -> None:
    onnx.save(build_model(labels=True), tmp_path / "model.onnx")
    with open_runner(tmp_path / "model.onnx", engine) as runner:
        unequal = {**feeds(2), "class_labels": np.zeros(3, np.int64)}
        with pytest.raises(EngineError, match=r"for sample \[2, 3, 8, 8\].*class_labels \[3\]") as caught:
            runner.infer(unequal)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("engine", ENGINES)
def test_an_inactive_runner_says_so_and_can_be_activated_again(engine: str, model_path: Path) -> None:
    runner = make_runner(model_path, engine)
    with pytest.raises(EngineError, match="inactive runner"):
        runner.infer(feeds())
    for _ in range(2):
        with runner:
            assert runner.is_active
            runner.activate()  # does nothing
            runner.infer(feeds())
        assert not runner.is_active
    runner.deactivate()  # does nothing
    with pytest.raises(EngineError, match="inactive runner"):
        _ = runner.input_specs


@pytest.mark.parametrize("engine", ENGINES)
def test_refuses_a_corrupt_or_missing_model(engine: str, model_path: Path) -> None:
    with pytest.raises(EngineError, match="no such file"):
        open_runner(model_path.parent / "nothing.onnx", engine)
    model_path.write_bytes(model_path.read_bytes()[:100])
    with pytest.raises(EngineError, match="a damaged file") as caught:
        open_runner(model_path, engine)
    assert "\n" not in str(caught.value)


def test_lists_the_engines_when_one_is_unknown(model_path: Path) -> None:
    with pytest.raises(UsageError, match=f"got 'tensorflow', expected one of {', '.join(ENGINE_NAMES)}"):
        open_runner(model_path, "tensorflow")


def test_lists_the_options_when_one_is_unknown(model_path: Path) -> None:
    with pytest.raises(
        UsageError, match=r"engine onnxruntime: got option cache_dir, expected .* num_threads"
    ):
        open_runner(model_path, "onnxruntime", cache_dir="cache")


@pytest.mark.parametrize("engine", ENGINES)
def test_a_missing_package_comes_with_the_command(
    engine: str, model_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, engine, None)
    with pytest.raises(MissingDependencyError, match=f"pip install {engine}"):
        open_runner(model_path, engine)
