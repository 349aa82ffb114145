"""The exported folder takes its place as a whole, or the one before it stays."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from accuquant.errors import ExportError
from accuquant.export.write import pipeline_folder
from accuquant.manifest import MANIFEST_NAME
from accuquant.pipelines.source import Source


@pytest.mark.parametrize("output", [".", "..", "here"])
def test_the_folder_that_one_is_in_is_refused_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, output: str
) -> None:
    folder = tmp_path / "here"
    (folder / "deeper").mkdir(parents=True)
    (tmp_path / MANIFEST_NAME).touch()
    (folder / MANIFEST_NAME).touch()
    monkeypatch.chdir(folder)
    path = Path(output) if output != "here" else folder
    with pytest.raises(ExportError, match=r"the folder that you are in.*Give a folder inside it: -o .*out"):
        pipeline_folder.check_output(path)
    pipeline_folder.check_output(Path("deeper"))


def test_a_mount_point_is_refused_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os.path, "ismount", lambda path: path == tmp_path)
    with pytest.raises(ExportError, match="got a mount point"):
        pipeline_folder.check_output(tmp_path)


def test_the_export_before_comes_back_where_the_new_one_cannot_take_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "out"
    output.mkdir()
    (output / "before").touch()

    def refuse(*_: object) -> None:
        raise OSError("no")

    monkeypatch.setattr("accuquant._util.exchange._exchange", refuse)
    with pytest.raises(OSError, match="no"), pipeline_folder._staging(output) as folder:
        (folder / "after").touch()
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "before"]


@pytest.mark.parametrize(
    ("name", "folder", "noted"),
    [
        ("models/my-ddpm", "models/my-ddpm", "{here}/models/my-ddpm"),
        ("./my-ddpm", "./my-ddpm", "{here}/my-ddpm"),
        ("../my-ddpm", "../my-ddpm", "{above}/my-ddpm"),
        ("/models/my-ddpm", "/models/my-ddpm", "/models/my-ddpm"),
        ("google/ddpm", "/cache/google--ddpm", "google/ddpm"),
    ],
)
def test_the_manifest_names_a_folder_from_anywhere_and_a_hub_id_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, folder: str, noted: str
) -> None:
    monkeypatch.chdir(tmp_path)
    source = SimpleNamespace(name=name, folder=Path(folder))
    expected = noted.format(here=tmp_path, above=tmp_path.parent)
    assert pipeline_folder._name_of(cast(Source, source)) == expected
