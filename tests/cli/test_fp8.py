"""The commands one after the other in FP8, on a tiny pipeline."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto

from accuquant.bench.bench import run_bench
from accuquant.cli.main import main
from accuquant.errors import UsageError
from accuquant.recipe import Recipe

TINY = ["--steps", "4", "--group-size", "2", "--num-trajectories", "4", "--batch-size", "2"]
LEARNED = ["--iterations", "2", "--shared-iterations", "2", "--no-probe"]


@pytest.fixture(scope="module")
def output(tiny_pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with fp8.safetensors and the export of it."""
    folder = tmp_path_factory.mktemp("fp8")
    recipe = str(folder / "fp8.safetensors")
    calibrate = ["calibrate", str(tiny_pipeline), "-o", recipe, "--format", "fp8", *TINY, *LEARNED]
    assert main(calibrate) == 0
    export = ["export", str(tiny_pipeline), "--recipe", recipe, "--target", "cpu", "-o", str(folder / "out")]
    assert main(export) == 0
    return folder


@pytest.mark.slow
def test_fp8_goes_the_whole_way(output: Path, tiny_pipeline: Path, tmp_path: Path) -> None:
    recipe = Recipe.load(output / "fp8.safetensors")
    assert recipe.format == "fp8"
    assert {layer.zero_point for layer in recipe.layers.values()} == {0}
    assert recipe.calibration["settings"]["format"] == "fp8"
    assert {result.status for result in recipe.results} <= {"learned", "rolled_back"}, "learning ran"
    (graph,) = (output / "out" / "unet").glob("*.onnx")
    kinds = {tensor.data_type for tensor in onnx.load(graph).graph.initializer}
    assert TensorProto.FLOAT8E4M3FN in kinds
    assert TensorProto.INT8 not in kinds
    report, images = tmp_path / "report.json", tmp_path / "images"
    verify = ["verify", str(output / "out"), "--reference", str(tiny_pipeline), "--engine", "onnxruntime"]
    main([*verify, "--num-images", "2", "--layers", "--json", str(report), "--features", "none"])
    found = json.loads(report.read_text())
    assert found["settings"]["bits"] == "FP8"
    assert max(layer["max_difference"] for layer in found["layers"]) <= 1
    assert max(layer["share"] for layer in found["layers"]) < 1e-2
    assert not any("saturate" in note for note in found["notes"])
    sample = ["sample", str(output / "out"), "--engine", "onnxruntime", "--num-images", "2"]
    assert main([*sample, "--output-dir", str(images)]) == 0
    assert len(list(images.glob("0*.png"))) == 2


@pytest.mark.slow
def test_bench_times_two_formats_of_one_network_alone(output: Path) -> None:
    with pytest.raises(UsageError, match=r"--against .*got an export in fp8, as .* is"):
        run_bench(output / "out", against=output / "out")


def test_bits_that_fp8_does_not_have_are_refused_before_anything_is_loaded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "model_index.json").write_text("{}")
    arguments = ["calibrate", str(tmp_path), "-o", str(tmp_path / "r.safetensors"), "--format", "fp8"]
    assert main([*arguments, "--weight-bits", "4"]) == 2
    assert "--weight-bits 4: got --format fp8, which has 8 bits" in capsys.readouterr().err
    assert main([*arguments, "--affine"]) == 2
    assert "--affine: got --format fp8, which has no zero-points" in capsys.readouterr().err
