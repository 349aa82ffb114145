from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import accuquant
from accuquant.cli.main import export_main, main

COMMANDS = [
    "demo",
    "calibrate",
    "export",
    "check",
    "audit",
    "build",
    "sample",
    "verify",
    "evaluate",
    "bench",
    "push",
    "doctor",
]
HEAVY = {"torch", "diffusers", "numpy", "onnx", "openvino", "onnxruntime", "rich", "onnx_ir"}


def modules_after(code: str) -> set[str]:
    """Return the top-level packages that a fresh interpreter has loaded after running `code`."""
    report = "import sys; print(*{name.split('.')[0] for name in sys.modules}, file=sys.stderr)"
    result = subprocess.run(
        [sys.executable, "-c", f"{code}\n{report}"], capture_output=True, text=True, check=True
    )
    return set(result.stderr.split())


@pytest.mark.parametrize("name", ["", *COMMANDS])
def test_help_loads_nothing_heavy(name: str) -> None:
    loaded = modules_after(
        f"from accuquant.cli.main import main; assert main([*{name!r}.split(), '--help']) == 0"
    )
    assert "click" in loaded
    assert not loaded & HEAVY


def test_import_of_the_package_loads_nothing_heavy() -> None:
    assert not modules_after("import accuquant") & HEAVY


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    output = capsys.readouterr().out
    assert [line.split()[0] for line in output.split("Commands:\n")[1].splitlines()] == COMMANDS


def test_the_list_of_commands_imports_none_of_them() -> None:
    code = "import sys; from accuquant.cli.main import main; assert main(['--help']) == 0"
    report = "print(*(n for n in sys.modules if n.startswith('accuquant.cli.')), file=sys.stderr)"
    command = [sys.executable, "-c", f"{code}; {report}"]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    loaded = {name.removeprefix("accuquant.cli.") for name in result.stderr.split()}
    assert "main" in loaded
    assert not loaded & set(COMMANDS)


def test_without_arguments_it_shows_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    assert "Commands:" in capsys.readouterr().out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert accuquant.__version__ in capsys.readouterr().out


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["calibrat"], f"No command 'calibrat'; the commands are {', '.join(COMMANDS)}"),
        (["calibrate"], "Missing argument 'SOURCE'"),
        (["calibrate", "x", "--steps", "0"], "0 is not in the range x>=1"),
        (["calibrate", "x", "--weight-bits", "9"], "9 is not in the range 2<=x<=8"),
        (["calibrate", "x", "--gradient", "magic"], "'accuquant', 'independent', 'exact', 'checkpoint'"),
        (["calibrate", "x", "--stepz", "3"], "No such option '--stepz'"),
        (["verify", ".", "--reference", "x", "--min-psnr", "loud"], "neither a number nor 'none'"),
        (["check", "missing.onnx"], "'missing.onnx' does not exist"),
    ],
)
def test_usage_errors_are_one_line_and_exit_code_2(
    args: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(args) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("accuquant: ")


def test_accuquant_export_is_the_export_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert export_main(["--help"]) == 0
    alone = capsys.readouterr().out
    assert main(["export", "--help"]) == 0
    assert alone.replace("accuquant-export", "accuquant export") == capsys.readouterr().out


def test_offload_beside_a_cpu_is_one_line_with_the_remedy(
    tiny_pipeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "recipe.safetensors"
    assert main(["calibrate", str(tiny_pipeline), "-o", str(output), "--device", "cpu", "--offload"]) == 2
    said = capsys.readouterr().err
    assert "--offload: got the device cpu" in said
    assert "Leave --offload out" in said
    assert not output.exists()
