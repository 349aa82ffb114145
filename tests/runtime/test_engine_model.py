import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from accuquant.errors import EngineError, UsageError
from accuquant.manifest import Manifest
from accuquant.runtime.engine_model import EngineModel

SAMPLE = np.random.default_rng(0).standard_normal((2, 3, 8, 8)).astype(np.float32)


@pytest.mark.parametrize("engine", ["openvino", "onnxruntime"])
@pytest.mark.parametrize("timestep", ["int64", "float32"])
def test_one_graph_serves_every_timestep(
    engine: str, timestep: str, make_folder: Callable[..., Any], network: Callable[..., Any]
) -> None:
    with EngineModel.from_folder(make_folder(timestep=timestep), engine) as model:
        for value in (0, 499, 500.0, 999, np.int64(7)):
            np.testing.assert_allclose(model(SAMPLE, value), network(SAMPLE, value), atol=1e-6)


def test_each_group_runs_its_own_graph_loaded_when_first_needed(
    make_folder: Callable[..., Any], network: Callable[..., Any]
) -> None:
    folder = make_folder(lowering="per-group", gains=(0.5, 0.25))
    with EngineModel.from_folder(folder) as model:
        assert [runner.is_active for runner in model._runners] == [False, False]
        np.testing.assert_allclose(model(SAMPLE, 500), network(SAMPLE, 500, 0.5), atol=1e-6)
        assert [runner.is_active for runner in model._runners] == [True, False]
        np.testing.assert_allclose(model(SAMPLE, 499), network(SAMPLE, 499, 0.25), atol=1e-6)
        model.activate()
    assert not any(runner.is_active for runner in model._runners)


def test_activate_loads_every_group(make_folder: Callable[..., Any]) -> None:
    with EngineModel.from_folder(make_folder(lowering="per-group")) as model:
        model.activate()
        assert all(runner.is_active for runner in model._runners)


@pytest.mark.parametrize("lowering", ["rescale", "per-group"])
@pytest.mark.parametrize("timestep", [-1, 1001])
def test_refuses_a_timestep_outside_the_calibrated_range(
    lowering: str, timestep: int, make_folder: Callable[..., Any]
) -> None:
    with (
        EngineModel.from_folder(make_folder(lowering=lowering)) as model,
        pytest.raises(UsageError, match=rf"timestep {timestep}: .*expected a timestep in \[0, 1000\]"),
    ):
        model(SAMPLE, timestep)


def test_the_end_of_the_training_schedule_is_in_the_first_group(
    make_folder: Callable[..., Any], network: Callable[..., Any]
) -> None:
    with EngineModel.from_folder(make_folder(lowering="per-group")) as model:
        np.testing.assert_allclose(model(SAMPLE, 1000), network(SAMPLE, 1000, 0.5), atol=1e-6)


def test_never_rounds_a_fractional_timestep(make_folder: Callable[..., Any]) -> None:
    with (
        EngineModel.from_folder(make_folder()) as model,
        pytest.raises(UsageError, match=r"timestep 10\.5: got a fraction, expected a whole number"),
    ):
        model(SAMPLE, 10.5)


def test_passes_conditioning_by_name(make_folder: Callable[..., Any], network: Callable[..., Any]) -> None:
    with EngineModel.from_folder(make_folder(labels=True)) as model:
        result = model(SAMPLE, 10, {"class_labels": np.array([3, 5], np.int32)})
        np.testing.assert_allclose(result, network(SAMPLE, 10, labels=[3, 5]), atol=1e-6)
        with pytest.raises(EngineError, match=r"got inputs \['sample', 'timestep'\]"):
            model(SAMPLE, 10)
        with pytest.raises(EngineError, match="text_embeds"):
            model(SAMPLE, 10, {"class_labels": np.array([3, 5]), "text_embeds": SAMPLE})
        with pytest.raises(UsageError, match="input 'class_labels': got values of type float64"):
            model(SAMPLE, 10, {"class_labels": np.array([3.5, 5])})


@pytest.mark.parametrize("engine", ["openvino", "onnxruntime"])
@pytest.mark.parametrize("lowering", ["rescale", "per-group"])
def test_a_batch_smaller_than_the_engines_is_filled_up_and_cut_again(
    engine: str, lowering: str, make_folder: Callable[..., Any], network: Callable[..., Any]
) -> None:
    sample = np.random.default_rng(1).standard_normal((5, 3, 8, 8)).astype(np.float32)
    labels = np.arange(5)
    with EngineModel.from_folder(make_folder(batch=4, labels=True, lowering=lowering), engine) as model:
        assert model.fixed_batch == 4
        for rows in (1, 3, 4):
            result = model(sample[:rows], 700, {"class_labels": labels[:rows]})
            expected = network(sample[:rows], 700, labels=labels[:rows])
            np.testing.assert_allclose(result, expected, atol=1e-6)
        with pytest.raises(EngineError, match=r"got shape \[5, 3, 8, 8\].*Use batches of 4"):
            model(sample, 700, {"class_labels": labels})
        with pytest.raises(EngineError, match="input 'class_labels'"):
            model(sample[:2], 700, {"class_labels": labels[:3]})
        with pytest.raises(EngineError, match=r"got shape \[0, 3, 8, 8\]"):
            model(sample[:0], 700, {"class_labels": labels[:0]})


def test_refuses_files_other_than_the_exported_ones(
    make_folder: Callable[..., Any], build_model: Callable[..., Any]
) -> None:
    folder = make_folder()
    onnx.save(build_model(gain=9), folder / "unet" / "model.onnx")
    with pytest.raises(EngineError, match=r"model\.onnx'.*other bytes than were exported"):
        EngineModel.from_folder(folder)
    EngineModel.from_folder(folder, check_hashes=False).close()


def test_refuses_a_truncated_graph_before_an_engine_sees_it(make_folder: Callable[..., Any]) -> None:
    path = make_folder() / "unet" / "model.onnx"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(EngineError, match=r"a damaged file \(truncated\)"):
        EngineModel.from_folder(path.parents[1], check_hashes=False)


def test_refuses_a_graph_outside_the_folder(make_folder: Callable[..., Any]) -> None:
    folder = make_folder()
    data = json.loads((folder / "accuquant.json").read_text())
    data["graphs"] = ["../model.onnx"]
    (folder / "accuquant.json").write_text(json.dumps(data))
    with pytest.raises(EngineError, match="points outside the folder"):
        EngineModel.from_folder(folder)


def test_refuses_graphs_that_do_not_match_the_step_groups(make_folder: Callable[..., Any]) -> None:
    folder = make_folder(lowering="per-group", gains=(0.5, 0.25, 0.1))
    with pytest.raises(EngineError, match="got 3 graphs for 2 step groups"):
        EngineModel.from_folder(folder)


def test_rejects_an_unknown_engine_before_reading_weights(make_folder: Callable[..., Any]) -> None:
    with pytest.raises(
        UsageError,
        match=r"expected one of openvino, openvino-gpu, .*onnxruntime, onnxruntime-cuda",
    ):
        EngineModel.from_folder(make_folder(), "tensorflow")


def test_says_that_a_folder_is_not_an_export(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"no accuquant\.json"):
        EngineModel.from_folder(tmp_path)


def test_refuses_a_graph_whose_output_has_another_name(make_folder: Callable[..., Any]) -> None:
    folder = make_folder()
    manifest = Manifest.load(folder)
    output = dataclasses.replace(manifest.signature.output, name="other")
    signature = dataclasses.replace(manifest.signature, output=output)
    dataclasses.replace(manifest, signature=signature).save(folder)
    with EngineModel.from_folder(folder) as model, pytest.raises(EngineError, match="expected 'other'"):
        model(np.zeros((1, 3, 8, 8), np.float32), 700)
