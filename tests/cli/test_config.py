from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import pytest

from accuquant.cli._command import Command
from accuquant.cli.main import run as run_command


def command_that_stores(seen: dict[str, Any]) -> click.Command:
    @click.command("calibrate", cls=Command)
    @click.argument("source")
    @click.option("--steps", type=click.IntRange(min=1), default=50)
    @click.option("--group-size", type=int, default=5)
    @click.option("--affine/--symmetric", default=True)
    @click.option("--exclude", multiple=True)
    def command(**values: Any) -> None:
        seen.update(values)

    return command


def run(tmp_path: Path, toml: str, *args: str) -> tuple[int, dict[str, Any]]:
    file = tmp_path / "config.toml"
    file.write_text(toml, encoding="utf-8")
    seen: dict[str, Any] = {}
    return run_command(command_that_stores(seen), "accuquant", ["--config", str(file), *args]), seen


def test_values_become_defaults_and_the_command_line_wins(tmp_path: Path) -> None:
    toml = """
        [calibrate]
        source = "a/b"
        steps = 20
        group_size = 4
        affine = false
        exclude = ["mid*", "up*"]
        [verify]
        num-images = 3
    """
    code, seen = run(tmp_path, toml, "--group-size", "2")
    assert code == 0
    assert seen == {
        "source": "a/b",
        "steps": 20,
        "group_size": 2,
        "affine": False,
        "exclude": ("mid*", "up*"),
    }


@pytest.mark.parametrize(
    ("toml", "message"),
    [
        (
            "[calibrate]\nstepz = 3",
            "'stepz' in [calibrate], expected one of affine, exclude, group-size, source",
        ),
        ("steps = 3", "'steps' at its top level, expected tables named demo, calibrate"),
        ("[calibrat]\nsteps = 3", "'calibrat' at its top level"),
        ("[calibrate]\nsteps = [3, 4]", "steps = [3, 4], expected one value"),
        ("[calibrate]\nexclude = [[1]]", "expected a list of values"),
        ("[calibrate]\nsteps = 2.5", "'2.5' is not a valid integer"),
        ("[calibrate]\nsteps = 0", "0 is not in the range"),
    ],
)
def test_a_faulty_file_is_a_usage_error(
    tmp_path: Path, toml: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, seen = run(tmp_path, toml, "x")
    assert (code, seen) == (2, {})
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    "content",
    [
        b"[calibrate",
        b"\xff\xfe",
        b"a = " + b"[" * 100_000,
        b"a = " + b"{a=" * 100_000,
        b"steps = " + b"9" * 5000,
    ],
)
def test_a_damaged_file_exits_with_1(
    tmp_path: Path, content: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "damaged.toml").write_bytes(content)
    arguments = ["--config", str(tmp_path / "damaged.toml"), "x"]
    assert run_command(command_that_stores({}), "accuquant", arguments) == 1
    error = capsys.readouterr().err
    assert "damaged.toml': got" in error
    assert "expected a TOML file" in error
