"""Every path that a file names: inside its folder, or refused."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from snapshot import as_snapshot

from accuquant._util.named_file import is_downloaded, name_fault, named_file, path_fault, snapshot_of
from accuquant.errors import EngineError, SourceError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "out" / "unet").mkdir(parents=True)
    (tmp_path / "out" / "unet" / "model.onnx").write_bytes(b"graph")
    (tmp_path / "secret").write_bytes(b"secret")
    return tmp_path / "out"


@pytest.mark.parametrize(
    "name", ["unet/model.onnx", "unet/../unet/model.onnx", "./unet/model.onnx", "new.onnx"]
)
def test_a_path_inside_is_returned_as_it_is_whether_it_is_there_or_not(folder: Path, name: str) -> None:
    assert named_file(folder, name, subject="manifest") == folder / name


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("", "an empty path"),
        (".", "an empty path"),
        ("/etc/passwd", "an absolute path"),
        ("//server/share/x", "an absolute path"),
        ("C:\\secret", "an absolute path"),
        ("C:secret", "an absolute path"),
        ("\\secret", "an absolute path"),
        ("../secret", "points outside"),
        ("unet/../../secret", "points outside"),
        ("unet\\..\\..\\secret", "points outside"),
        ("../out/unet/model.onnx", "points outside"),
        ("unet/model.onnx\0.txt", "a null byte"),
        ("unet", "no regular file"),
        ("a" * 5000, "cannot be read"),
        ("\ud800", "cannot be read"),
    ],
)
def test_a_path_that_leads_elsewhere_is_refused(folder: Path, name: str, fault: str) -> None:
    with pytest.raises(EngineError, match=f"manifest: got .*{fault}.*expected the name of a file inside"):
        named_file(folder, name, subject="manifest")


def test_the_error_is_of_the_kind_that_the_caller_wants(folder: Path) -> None:
    with pytest.raises(SourceError, match=r"tensor 'w': got '/etc/passwd', an absolute path"):
        named_file(folder, "/etc/passwd", subject="tensor 'w'", error=SourceError)


def test_devices_pipes_and_loops_are_refused_without_being_opened(folder: Path) -> None:
    os.mkfifo(folder / "pipe")
    (folder / "loop").symlink_to("loop")
    (folder / "null").symlink_to("/dev/null")
    assert path_fault(folder, "pipe") == "which is no regular file"
    assert path_fault(folder, "loop")
    assert "outside" in path_fault(folder, "null")


def test_links_may_stay_inside_and_may_not_lead_out(folder: Path) -> None:
    (folder / "inside.onnx").symlink_to("unet/model.onnx")
    (folder / "outside.onnx").symlink_to("../secret")
    (folder / "up").symlink_to("..")
    assert path_fault(folder, "inside.onnx") == ""
    assert path_fault(folder, "outside.onnx") == "which points outside the folder"
    assert path_fault(folder, "up/secret") == "which points outside the folder"


def test_links_of_a_snapshot_lead_to_the_blobs_of_their_repository(folder: Path, tmp_path: Path) -> None:
    snapshot = as_snapshot(folder, tmp_path / "hub")
    assert (snapshot / "unet" / "model.onnx").is_symlink()
    assert path_fault(snapshot, "unet/model.onnx") == ""
    assert path_fault(snapshot / "unet", "model.onnx") == ""
    assert snapshot_of(snapshot / "unet") == snapshot
    (tmp_path / "linked").symlink_to(snapshot)
    assert path_fault(tmp_path / "linked", "unet/model.onnx") == ""


def test_links_of_a_snapshot_to_another_repository_or_anywhere_else_are_refused(
    folder: Path, tmp_path: Path
) -> None:
    snapshot = as_snapshot(folder, tmp_path / "hub")
    other = as_snapshot(folder, tmp_path / "hub", "me/private")
    for number, target in enumerate((other / "unet/model.onnx", tmp_path / "secret")):
        (snapshot / f"link{number}").symlink_to(target)
        assert path_fault(snapshot, f"link{number}") == "which points outside the folder"


def test_blobs_that_are_a_link_lead_out(folder: Path, tmp_path: Path) -> None:
    repository = tmp_path / "hub" / "models--me--model"
    snapshot = repository / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (repository / "blobs").symlink_to(tmp_path)
    (snapshot / "x").symlink_to("../../blobs/secret")
    assert path_fault(snapshot, "x") == "which points outside the folder"


def test_what_only_looks_like_a_snapshot_has_no_blobs(folder: Path, tmp_path: Path) -> None:
    plain = tmp_path / "models" / "snapshots" / "v1"
    plain.mkdir(parents=True)
    (tmp_path / "models" / "blobs").mkdir()
    (plain / "x").symlink_to("../../../secret")
    assert snapshot_of(plain) is None
    assert path_fault(plain, "x") == "which points outside the folder"


def test_a_download_is_known_by_its_layout(folder: Path, tmp_path: Path) -> None:
    assert not is_downloaded(folder)
    (tmp_path / ".cache" / "huggingface" / "hub").mkdir(parents=True)  # as in a home folder
    assert not is_downloaded(folder)
    assert is_downloaded(as_snapshot(folder, tmp_path / "hub"))
    (folder / ".cache" / "huggingface" / "download").mkdir(parents=True)  # hf download --local-dir
    assert is_downloaded(folder)
    assert is_downloaded(folder / "unet")


def test_the_text_of_a_name_is_checked_without_the_disk() -> None:
    assert name_fault("a/b") == ""
    assert "null byte" in name_fault("a\0")
