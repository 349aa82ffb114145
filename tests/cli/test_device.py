"""--device and --tf32: what a command says of a device that cannot be had, before anything is loaded."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from accuquant.cli.main import main

COMMANDS = {
    "calibrate": ["calibrate", "{work}", "-o", "{work}/recipe.safetensors"],
    "demo": ["demo", "--output-dir", "{work}/demo"],
    "export": ["export", "{work}", "-o", "{work}/out", "--target", "cpu"],
}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--device", "tpu"], "--device tpu: got an unknown name, expected auto, cpu, cuda, cuda:N or mps"),
        (["--device", "cuda:99"], "--device cuda:99: got "),
        (["--device", "cpu", "--tf32"], "--tf32: got the device cpu, expected an NVIDIA GPU"),
    ],
)
def test_a_device_that_cannot_be_had_is_one_line_with_the_remedy(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    command: str,
    options: list[str],
    said: str,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    words = [word.format(work=tmp_path) for word in COMMANDS[command]]
    assert main([*words, *options]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert said in lines[-1]
    assert "Give " in lines[-1] or "Leave --tf32 out" in lines[-1]
    assert not list(tmp_path.glob("*recipe*"))
