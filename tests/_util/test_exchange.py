"""A folder takes another one's place in one step where the system can, in two where it cannot."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from accuquant._util import exchange
from accuquant._util.exchange import replace_folder


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path, Path]:
    """A new folder, the one that it is to replace, and where that may go."""
    for name in ("new", "out"):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"of-{name}").touch()
    return tmp_path / "new", tmp_path / "out", tmp_path / "old"


def holds(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a call of Linux")
def test_on_linux_the_target_is_never_absent(
    folders: tuple[Path, Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    new, out, old = folders
    monkeypatch.setattr(Path, "rename", lambda *_: pytest.fail("two steps"))
    replace_folder(new, out, old)
    assert (holds(out), holds(new), old.exists()) == (["of-new"], ["of-out"], False)


def test_elsewhere_two_renames_do_it(
    folders: tuple[Path, Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    new, out, old = folders
    monkeypatch.setattr(exchange, "_exchange", lambda *_: False)
    replace_folder(new, out, old)
    assert (holds(out), holds(old), new.exists()) == (["of-new"], ["of-out"], False)


def test_the_old_folder_comes_back_where_the_new_one_cannot_be_moved(
    folders: tuple[Path, Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    new, out, old = folders
    rename = Path.rename

    def refuse_new(path: Path, target: Path) -> Path:
        if path == new:
            raise OSError("no")
        return rename(path, target)

    monkeypatch.setattr(exchange, "_exchange", lambda *_: False)
    monkeypatch.setattr(Path, "rename", refuse_new)
    with pytest.raises(OSError, match="no"):
        replace_folder(new, out, old)
    assert holds(out) == ["of-out"]


def test_a_new_target_is_one_rename(folders: tuple[Path, Path, Path]) -> None:
    new, out, old = folders
    replace_folder(new, out.with_name("first"), old)
    assert holds(out.with_name("first")) == ["of-new"]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a call of Linux")
def test_an_error_of_the_call_names_the_target(folders: tuple[Path, Path, Path]) -> None:
    with pytest.raises(FileNotFoundError, match=r"out"):
        exchange._exchange(folders[0] / "absent", folders[1])
