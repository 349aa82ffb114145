"""A LoRA: which file, how strongly, and whether it is the one that was calibrated with."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accuquant._util.files import sha256_of_file
from accuquant.calibration_facts import LoraFacts
from accuquant.errors import RecipeError, SourceError, UsageError
from accuquant.hub.client import client
from accuquant.hub.repository import Repository

_SUFFIX = ".safetensors"
_USUAL_NAME = "pytorch_lora_weights.safetensors"  # what diffusers' save_lora_weights writes
_HIGHEST_SCALE = 100.0


@dataclass(frozen=True)
class Lora:
    """Low-rank additions to the weights of a pipeline's network and text encoders, from one file.

    `name` is what the user called it; `scale` multiplies the additions. `sha256` is that of `file`, so that
    calibration, export and verification fuse the same one.
    """

    name: str
    file: Path
    scale: float
    sha256: str

    @classmethod
    def find(cls, text: str) -> Lora:
        """Find the file of "PATH_OR_HUB_ID[:scale]": a .safetensors file, a folder with one, or a Hub id.

        "user/name/file.safetensors" names one of several files of a Hub repository, "user/name@revision"
        pins it. Raises UsageError for a scale that is no number, SourceError where there is no such file.
        """
        name, scale = _split(text)
        file = _file_of(name)
        return cls(name, file, scale, sha256_of_file(file))

    def to_dict(self) -> dict[str, Any]:
        """Return name, scale and digest as JSON values."""
        return {"name": self.name, "scale": self.scale, "sha256": self.sha256}


def find_loras(texts: Iterable[str]) -> tuple[Lora, ...]:
    """Find every LoRA of a list of "PATH_OR_HUB_ID[:scale]"."""
    return tuple(Lora.find(text) for text in texts)


def loras_of_recipe(recorded: Sequence[LoraFacts], given: Sequence[Lora] = ()) -> tuple[Lora, ...]:
    """Return the LoRAs that a recipe records: `given`, or found again by their recorded names.

    Raises RecipeError where they are not the same files at the same scales, SourceError where one is gone.
    """
    found = tuple(given) or find_loras(f"{item.name}:{item.scale!r}" for item in recorded)
    check_loras(recorded, found)
    return found


def check_loras(recorded: Sequence[LoraFacts], loras: Sequence[Lora]) -> None:
    """Raise RecipeError unless `loras` are those that a recipe records, in that order."""
    ours = [(lora.sha256, lora.scale) for lora in loras]
    if ours == [(item.sha256, item.scale) for item in recorded]:
        return
    raise RecipeError(
        "LoRA of the recipe",
        got=_listed([lora.to_dict() for lora in loras]),
        expected=_listed([item.to_dict() for item in recorded]),
        remedy="Give the --lora that it was calibrated with, or calibrate again",
    )


def _split(text: str) -> tuple[str, float]:
    name, colon, tail = text.rpartition(":")
    if not colon or Path(text).exists():
        return text, 1.0
    try:
        scale = float(tail)
    except ValueError:
        scale = float("nan")
    if not name or not abs(scale) <= _HIGHEST_SCALE:
        raise UsageError(
            f"--lora '{text}'",
            got=f"the scale '{tail}'",
            expected=f"PATH_OR_HUB_ID:SCALE with a number of at most {_HIGHEST_SCALE:g}",
            remedy="Correct the scale, or leave it and the colon out for 1",
        )
    return name, scale


def _file_of(name: str) -> Path:
    path = Path(name)
    if path.is_file() and path.suffix == _SUFFIX:
        return path
    if path.is_dir():
        return _only_file(name, path)
    owner_and_more = name.split("/")
    if path.exists() or name.startswith((".", "/", "~")) or len(owner_and_more) < 2:
        raise SourceError(
            f"LoRA '{name}'",
            got=f"a file that does not end in {_SUFFIX}" if path.exists() else "no such file",
            expected=f"a {_SUFFIX} file, a folder with one, or a Hub id such as user/name",
            remedy="Check the path; other formats can run code when they are read, so save it again",
        )
    return _download("/".join(owner_and_more[:2]), "/".join(owner_and_more[2:]))


def _only_file(name: str, folder: Path) -> Path:
    files = sorted(folder.glob(f"*{_SUFFIX}"))
    usual = [file for file in files if file.name == _USUAL_NAME]
    if len(files) != 1 and not usual:
        raise SourceError(
            f"LoRA '{name}'",
            got=", ".join(file.name for file in files) or f"no {_SUFFIX} file",
            expected=f"one {_SUFFIX} file, or {_USUAL_NAME}",
            remedy="Name the file itself",
        )
    return (usual or files)[0]


def _download(hub_id: str, file: str) -> Path:
    hub = client()
    repository = Repository.find(hub_id) or Repository(hub_id)
    pinned = {} if repository.revision is None else {"revision": repository.revision}
    try:
        if file:
            return Path(hub.hf_hub_download(repository.id, file, **pinned))
        folder = hub.snapshot_download(repository.id, allow_patterns=[f"*{_SUFFIX}"], **pinned)
    except Exception as fault:  # the Hub client raises many unrelated kinds
        raise SourceError(
            f"LoRA '{hub_id}'",
            got=f"{type(fault).__name__}: {(str(fault).splitlines() or [''])[0]}",
            expected="a file that exists, or a Hub id that can be downloaded",
            remedy="Check the spelling and the network, or pass a file",
        ) from fault
    return _only_file(hub_id, Path(folder))


def _listed(loras: Sequence[Mapping[str, Any]]) -> str:
    texts = [
        f"'{item['name']}' (scale {item['scale']:g}, SHA-256 {item['sha256'][:12]}...)" for item in loras
    ]
    return ", ".join(texts) or "none"
