"""The data file beside an .onnx: its content's hash is in its name, so that a graph never reads another's."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from glob import escape
from pathlib import Path

from accuquant._util.external_data import external_files
from accuquant._util.files import sha256_of_file
from accuquant.errors import EngineError

_DIGITS = 16


def data_name(name: str) -> str:
    """Return the name that Optimum gives the data file of the graph `name`."""
    return f"{name}_data"


def add_hash(data: Path) -> Path:
    """Rename the data file `model.onnx_data` to `model-<hash>.onnx_data`, and return its new path."""
    hashed = data.with_name(f"{data.stem}-{sha256_of_file(data)[:_DIGITS]}{data.suffix}")
    return data.replace(hashed)


def data_files(output: Path) -> Iterator[Path]:
    """Yield the files that may hold data of the graph `output`: without a hash, and with one if there are."""
    name = Path(data_name(output.name))
    yield output.with_name(name.name)
    yield from output.parent.glob(f"{escape(name.stem)}-{'[0-9a-f]' * _DIGITS}{escape(name.suffix)}")


def read_now(output: Path) -> frozenset[str]:
    """Return the names of the data files that the graph `output` reads, none where it is no such graph."""
    try:
        return frozenset(external_files(output)) if output.is_file() else frozenset()
    except EngineError:
        return frozenset()


def remove_unread(output: Path, read_before: Collection[str]) -> None:
    """Remove data files of `output` that no .onnx beside it reads: an earlier export's, or a killed one's.

    One without a hash in its name has to be among those that `output` read before. Where an .onnx cannot be
    read, it could need any of them: all stay.
    """
    plain = data_name(output.name)
    found = [file for file in data_files(output) if file.name != plain or plain in read_before]
    try:
        read = {name for graph in output.parent.glob("*.onnx") for name in external_files(graph)}
    except EngineError:
        return
    for file in found:
        if file.name not in read:
            file.unlink(missing_ok=True)
