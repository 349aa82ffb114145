"""A model whose files are links, as those in the Hub's cache are, as files that every library reads."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from pathlib import Path

from accuquant._util.cache_folder import cache_folder
from accuquant._util.external_data import external_files
from accuquant._util.named_file import named_file
from accuquant.errors import EngineError


def real_model(model: Path) -> Path:
    """Return `model`, or the same graph and external data as regular files in our cache.

    onnx, onnx-ir and OpenVINO refuse external data that is a link, even one that may be followed, and onnx a
    hard link too. The files are copies, which share their blocks with the originals where the disk can; their
    folder is named after what the links lead to. Raises EngineError for data that leads out of its folder.
    """
    model = Path(model)
    try:
        data = external_files(model)
    except EngineError:  # no file, or no ONNX: whoever reads it has the better words
        return model
    subject = f"external data of model '{model}'"
    files = {name: named_file(model.parent, name, subject=subject).resolve() for name in data}
    if all(target == model.parent.resolve() / name for name, target in files.items()):
        return model
    if not all(target.is_file() for target in files.values()):
        return model  # whoever reads it says what is missing
    files[model.name] = model.resolve()
    folder = cache_folder() / "models" / _key(files)
    if not folder.is_dir():
        _fill(folder, files)
    return folder / model.name


def _key(files: dict[str, Path]) -> str:
    digest = hashlib.sha256()
    for name, target in sorted(files.items()):
        facts = target.stat()
        digest.update(repr((name, str(target), facts.st_size, facts.st_mtime_ns)).encode())
    return digest.hexdigest()[:32]


def _fill(folder: Path, files: dict[str, Path]) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=".", dir=folder.parent))
    try:
        for name, target in files.items():
            place = staging / os.path.normpath(name)
            place.parent.mkdir(parents=True, exist_ok=True)
            _copy(target, place)
        try:
            staging.rename(folder)
        except OSError:
            if not folder.is_dir():  # else another process was faster
                raise
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _copy(source: Path, target: Path) -> None:
    """Copy in the kernel, which on file systems such as Btrfs and XFS copies no block; else byte by byte."""
    try:
        with source.open("rb") as read, target.open("wb") as write:
            while os.copy_file_range(read.fileno(), write.fileno(), 1 << 30):
                pass
    except (AttributeError, OSError):  # not Linux, or two file systems that cannot
        shutil.copyfile(source, target)
        return
    if target.stat().st_size != source.stat().st_size:
        shutil.copyfile(source, target)
