"""Properties of every parameter of every command: choices are accepted, paths checked, `~` expanded."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import pytest

from accuquant.audit.audit_model import FP16
from accuquant.bundled import FASHION_DDPM
from accuquant.calibration import CalibrationSettings
from accuquant.cli._names import COMMANDS
from accuquant.cli._options import LocalPath, NewPath, Source, take_weights_options
from accuquant.cli.demo import DEMOS
from accuquant.cli.main import main
from accuquant.engines import BuildOptions, Target
from accuquant.engines.backend import resolve_backend
from accuquant.errors import MissingDependencyError, UsageError
from accuquant.export.export_options import CHOICES, ExportOptions
from accuquant.pipelines.source import load_source
from accuquant.runtime.open_runner import make_runner, precision_options
from accuquant.runtime.openvino_runner import OpenVinoRunner
from accuquant.runtime.parts_choice import runs_on_engine


def _parameters() -> Iterator[tuple[str, click.Parameter]]:
    for name in COMMANDS:
        command = importlib.import_module(f"accuquant.cli.{name}").command
        yield from ((name, parameter) for parameter in command.params)


def _long(parameter: click.Parameter) -> str:
    return max(parameter.opts, key=len)


PARAMETERS = list(_parameters())
CHOICE_OPTIONS = [
    (command, _long(parameter), tuple(parameter.type.choices))
    for command, parameter in PARAMETERS
    if isinstance(parameter.type, click.Choice)
]
NEW_PATHS = [(command, parameter) for command, parameter in PARAMETERS if isinstance(parameter.type, NewPath)]


def _engine(name: str) -> None:
    make_runner(Path("absent.onnx" if name != "tensorrt" else "absent.engine"), name)


def _backend(name: str) -> None:
    resolve_backend(name)


def _loaded(name: str) -> None:
    weights = take_weights_options({"weight_dtype": name})
    assert load_source(FASHION_DDPM, as_stored=weights["as_stored"]).network


def _compiled(**options: Any) -> None:
    """Take the value as the compiler does: as a name of the library's enumerations."""
    from accuquant.engines._compiler import _COMPATIBILITY

    trt = pytest.importorskip("tensorrt_rtx")
    made = BuildOptions(Target(8, 9), **options).to_dict()
    getattr(trt.ProfilingVerbosity, made["profiling_verbosity"].upper())
    level = made["hardware_compatibility"]
    assert level == "none" or hasattr(trt.HardwareCompatibilityLevel, _COMPATIBILITY[level])


#: Option -> what receives its value. A new choice has to be entered here, which is the point.
RECEIVERS: dict[str, Callable[[str], object]] = {
    "--engine": _engine,
    "--engine-precision": lambda name: OpenVinoRunner("m.onnx", **precision_options("openvino", name)),
    "--parts": lambda name: runs_on_engine(
        name,  # type: ignore[arg-type]
        held=True,
        engine="openvino",
        named=False,
        device="cpu",
    ),
    "--backend": _backend,
    "--model": lambda name: DEMOS[name].source.joinpath("model_index.json").stat(),
    "--preset": CalibrationSettings.preset,
    "--format": lambda name: CalibrationSettings.preset("balanced", format=name),
    "--gradient": lambda name: CalibrationSettings(gradient=name),
    "--observer": lambda name: CalibrationSettings(observer=name),
    "--rounding": lambda name: CalibrationSettings(rounding=name),
    "--method": lambda name: CalibrationSettings.preset("balanced", method=name),
    "--lowering": lambda name: ExportOptions(lowering=name),  # type: ignore[arg-type]
    "--precision": lambda name: ExportOptions(precision=name),  # type: ignore[arg-type]
    "--affine": lambda name: ExportOptions(affine=name),  # type: ignore[arg-type]
    "--equalize": lambda name: CalibrationSettings(equalize=name),
    "--text-weights": lambda name: ExportOptions(whole_pipeline=True, text_weights=name),  # type: ignore[arg-type]
    "--weight-storage": lambda name: ExportOptions(weight_storage=name),  # type: ignore[arg-type]
    "--weight-dtype": _loaded,
    "--float-weights": lambda name: ExportOptions(float_weights=name),  # type: ignore[arg-type]
    "--profilingVerbosity": lambda name: _compiled(profiling_verbosity=name),
    "--hardwareCompatibilityLevel": lambda name: _compiled(hardware_compatibility=name),
}


def test_there_are_choices_and_paths_to_look_at() -> None:
    assert len(CHOICE_OPTIONS) >= len(RECEIVERS)
    assert len(NEW_PATHS) >= 12
    assert FP16 == "fp16"


@pytest.mark.parametrize(
    ("option", "value"),
    sorted({(option, value) for _, option, values in CHOICE_OPTIONS for value in values}),
)
def test_every_choice_is_accepted_by_what_receives_it(option: str, value: str) -> None:
    try:
        RECEIVERS[option](value)
    except MissingDependencyError:
        assert option in ("--backend", "--engine"), "a library that is not installed here"


@pytest.mark.parametrize("field", CHOICES)
def test_export_offers_every_choice_of_its_options(field: str) -> None:
    (offered,) = (
        values
        for command, option, values in CHOICE_OPTIONS
        if (command, option) == ("export", f"--{field.replace('_', '-')}")
    )
    assert set(offered) == set(CHOICES[field])


@pytest.mark.parametrize(
    ("command", "parameter"),
    [
        (command, parameter)
        for command, parameter in PARAMETERS
        if isinstance(parameter.type, click.Path | Source)
    ],
    ids=lambda value: value if isinstance(value, str) else _long(value),
)
def test_every_path_may_begin_in_the_home_folder(
    command: str, parameter: click.Parameter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    path = parameter.type
    name = "file" if isinstance(path, click.Path) and path.exists and path.dir_okay is False else "folder"
    if isinstance(path, NewPath):
        name = "new"
    assert str(path.convert(f"~/{name}", parameter, None)) == str(tmp_path / name)


def test_what_names_a_path_or_a_pipeline_has_a_type_that_knows_paths() -> None:
    """A metavar or a name that says path, and yet plain text, would escape the properties above."""
    words = ("FILE", "FOLDER", "DIR", "SOURCE", "OUT", "PATH", "JSON")
    plain = [
        (command, _long(parameter))
        for command, parameter in PARAMETERS
        if any(word in (getattr(parameter, "metavar", None) or "").split("|")[0] for word in words)
        and not isinstance(parameter.type, LocalPath | Source)
    ]
    assert plain == []
    assert not [_long(p) for _, p in PARAMETERS if type(p.type) is click.Path]


@pytest.mark.parametrize(
    ("command", "parameter"), NEW_PATHS, ids=lambda value: value if isinstance(value, str) else _long(value)
)
def test_a_result_that_cannot_be_written_is_refused_before_the_work(
    command: str, parameter: click.Parameter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    option = _long(parameter)
    with pytest.raises(UsageError, match=f"{option}: got '.*inside of a file"):
        parameter.type.convert(str(tmp_path / "file" / "new"), parameter, None)
    wrong = {"check_new_file": tmp_path, "check_new_folder": tmp_path / "file"}
    check = parameter.type._check.__name__  # type: ignore[attr-defined]
    if check in wrong:
        with pytest.raises(UsageError, match=f"{option}: got '.*', a f"):
            parameter.type.convert(str(wrong[check]), parameter, None)
    monkeypatch.setattr("os.access", lambda *_: False)
    with pytest.raises(UsageError, match=f"{option}: got '.*nothing can be written into"):
        parameter.type.convert(str(tmp_path / "new"), parameter, None)


@pytest.fixture
def no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let nothing begin that takes long."""

    def begun(*_: object, **__: object) -> None:
        raise AssertionError("the work has begun")

    for name in (
        "accuquant.pipelines.source.load_source",
        "accuquant.observation.observe_onnx.observe_onnx",
        "accuquant.audit.audit_model.compile_engine",
        "accuquant.engines.build.compile_engine",
        "accuquant.export.check_model",
    ):
        monkeypatch.setattr(name, begun)


@pytest.mark.usefixtures("no_work")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["export", "{ddpm}", "-o", "{full}"], "nothing was overwritten"),
        (["export", "{ddpm}", "-o", "{new}", "--opset", "20", "--precision", "bf16"], "22 to 25"),
        (["export", "{ddpm}", "-o", "{new}", "--target", "sm88"], "target 'sm88'"),
        (["export", "{ddpm}", "-o", "{new}", "--triton", "{full}"], "an empty folder"),
        (["export", "{ddpm}", "-o", "{new}", "--whole-pipeline"], "Optimum knows no such pipeline"),
        (
            ["export", "{ddpm}", "-o", "{new}", "--whole-pipeline", "--lowering", "per-group"],
            "Optimum loads one graph",
        ),
        (["export", "{full}/m.onnx", "-o", "{new}"], "another path that ends in .onnx"),
        (["export", "{full}/m.onnx", "-o", "{full}/m.onnx"], "the source itself"),
        (["demo", "--output-dir", "{full}/m.onnx"], "--output-dir: got"),
        (["demo", "--output-dir", "{taken}"], "nothing was overwritten"),
        (["calibrate", "{ddpm}", "-o", "{full}"], "--output: got"),
        (["calibrate", "{ddpm}", "--prompts", "{new}"], "does not exist"),
    ],
)
def test_a_wrong_option_is_found_before_anything_begins(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = {"ddpm": FASHION_DDPM, "new": tmp_path / "new", "full": tmp_path / "full"}
    names["taken"] = tmp_path / "taken"
    (tmp_path / "taken" / "model").mkdir(parents=True)
    (tmp_path / "taken" / "model" / "cat.png").touch()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "m.onnx").touch()
    assert main([argument.format(**names) for argument in arguments]) in (1, 2)
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "new").exists()


def test_an_output_in_a_config_file_may_begin_in_the_home_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken").mkdir()
    (tmp_path / "c.toml").write_text('[calibrate]\noutput = "~/taken"\nsource = "~/none"\n')
    assert main(["calibrate", "--config", "~/c.toml"]) == 2
    assert f"--output: got '{tmp_path / 'taken'}', a folder" in capsys.readouterr().err
    (tmp_path / "c.toml").write_text('[calibrate]\nsource = "~/none"\n')
    assert main(["calibrate", "--config", "~/c.toml"]) == 1
    assert f"pipeline '{tmp_path / 'none'}': got no such folder" in capsys.readouterr().err


def test_the_next_command_can_be_pasted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("accuquant.cli.calibrate.run", lambda *_: None)
    monkeypatch.setattr("accuquant.cli.calibrate.print_summary", lambda *_: None)
    assert main(["calibrate", "my model", "-o", "a b.safetensors"]) == 0
    expected = "Next: accuquant export 'my model' --recipe 'a b.safetensors' -o OUT\n"
    assert capsys.readouterr().out == expected
