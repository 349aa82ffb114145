from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NOT_SOURCE = ("__pycache__", "build", "*.egg-info")


@pytest.fixture(scope="module")
def wheel_names(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """The names in a wheel that is built from a copy of the source tree, without network."""
    folder = tmp_path_factory.mktemp("wheel")
    tree = folder / "tree"
    tree.mkdir()
    for name in ("accuquant", "export", "runtime"):
        ignored = shutil.ignore_patterns(*NOT_SOURCE)
        shutil.copytree(ROOT / name, tree / name, symlinks=True, ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    command = [sys.executable, "-m", "pip", "wheel", str(tree), "--no-deps", "--no-build-isolation"]
    environment = os.environ | {"PIP_NO_INDEX": "1"}
    subprocess.run([*command, "-w", str(folder)], check=True, capture_output=True, env=environment)
    (wheel,) = folder.glob("*.whl")
    return set(zipfile.ZipFile(wheel).namelist())


def test_the_wheel_installs_one_package(wheel_names: set[str]) -> None:
    tops = {name.split("/")[0] for name in wheel_names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"accuquant"}


def test_the_wheel_holds_every_file_on_disk(wheel_names: set[str]) -> None:
    on_disk = {
        (Path("accuquant") / target / path.relative_to(ROOT / source)).as_posix()
        for source, target in (("accuquant", ""), ("export", "export"), ("runtime", "runtime"))
        for path in (ROOT / source).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and path.suffix != ".pyc"
    }
    assert "accuquant/export/__init__.py" in on_disk
    assert "accuquant/data/fashion-ddpm/unet/diffusion_pytorch_model.safetensors" in on_disk
    packaged = {name for name in wheel_names if name.startswith("accuquant/")}
    assert packaged == on_disk


def test_the_wheel_carries_the_licence_and_both_commands(wheel_names: set[str]) -> None:
    metadata = {name.split("/", 1)[1] for name in wheel_names if ".dist-info/" in name}
    assert {"licenses/LICENSE", "entry_points.txt"} <= metadata
