"""`accuquant export FLOAT.onnx`: without torch, with other endings and names, and what it says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import onnx
import pytest
from foreign_graphs import save, tiny_network

from accuquant.cli.main import main

BLOCKED = """
import sys

class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"torch", "diffusers", "transformers"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Block())
from accuquant.cli.main import main

sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize("opset", [13, 21])
def test_a_float_file_needs_no_torch(tmp_path: Path, opset: int) -> None:
    """Opset 13 is converted on the way."""
    source, output = save(tiny_network(opset=opset), tmp_path / "float.onnx"), tmp_path / "int8.onnx"
    command = [sys.executable, "-c", BLOCKED, "export", str(source), "-o", str(output), "--target", "cpu"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert "QuantizeLinear" in {node.op_type for node in onnx.load(output).graph.node}
    assert "the float graph is off its source by" in done.stdout
    assert "int8 is off the float graph by" in done.stdout
    assert "int8: 1 of 3 layers, 50.0% of the multiply-accumulates" in done.stdout


def test_an_ending_in_capitals_is_a_graph_too(tmp_path: Path) -> None:
    source = save(tiny_network(), tmp_path / "MODEL.ONNX")
    assert main(["export", str(source), "-o", str(tmp_path / "int8.onnx"), "--target", "cpu"]) == 0
    assert (tmp_path / "int8.onnx").is_file()


@pytest.mark.parametrize("opset", ["26", "99"])
def test_an_opset_that_nothing_writes_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], opset: str
) -> None:
    source = save(tiny_network(), tmp_path / "m.onnx")
    options = ["-o", str(tmp_path / "int8.onnx"), "--target", "cpu", "--opset", opset]
    assert main(["export", str(source), *options]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert f"--opset: got {opset} with --precision" in said
    assert "19 to 25" in said


def test_input_names_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = save(tiny_network(names=("image", "level")), tmp_path / "m.onnx")
    arguments = ["export", str(source), "-o", str(tmp_path / "int8.onnx"), "--target", "cpu"]
    assert main([*arguments, "--input-names", "sample=image,timestep=level"]) == 0
    assert main([*arguments, "--input-names", "sample=q"]) == 2
    assert "inputs of the graph: image, level" in capsys.readouterr().err


def test_a_device_is_for_what_comes_before_the_export(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = save(tiny_network(), tmp_path / "m.onnx")
    arguments = ["export", str(source), "-o", str(tmp_path / "int8.onnx"), "--target", "cpu"]
    assert main([*arguments, "--device", "cpu"]) == 0
    recipe = tmp_path / "int8.onnx.recipe.safetensors"
    assert main([*arguments, "--recipe", str(recipe), "--device", "cpu"]) == 2
    assert "--device: got a choice for a calibration that does not run" in capsys.readouterr().err
    assert main([*arguments, "--recipe", str(recipe), "--tf32"]) == 2
    assert "--tf32: got a choice for a calibration" in capsys.readouterr().err
    for device in ("tpu", "cuda:x"):
        assert main([*arguments, "--device", device]) == 2
        assert f"--device {device}: got an unknown name, expected auto, cpu" in capsys.readouterr().err
    assert main([*arguments, "--device", "cpu", "--tf32"]) == 2
    assert "--tf32: got the device cpu" in capsys.readouterr().err


def test_a_pipeline_without_a_recipe_is_calibrated_on_the_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Told by what calibration says of a device that no machine has."""
    folder = tmp_path / "pipeline"
    folder.mkdir()
    assert main(["export", str(folder), "-o", str(tmp_path / "out"), "--device", "cuda:99"]) == 2
    assert "--device cuda:99: got " in capsys.readouterr().err


@pytest.mark.parametrize("option", [("--input-names", "sample=a"), ("--inputs", __file__)])
def test_what_only_a_graph_takes_is_refused_for_a_pipeline(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], option: tuple[str, str]
) -> None:
    assert main(["export", str(tmp_path), "-o", str(tmp_path / "out"), *option]) == 2
    assert f"{option[0]}: got a choice for a graph" in capsys.readouterr().err
