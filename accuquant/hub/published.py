"""What of an export is published: the files of its manifest, without the names of anybody's folders."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from accuquant._util.named_file import named_file
from accuquant.errors import EngineError
from accuquant.hub.repository import Repository
from accuquant.manifest import MANIFEST_NAME, RECIPE_NAME, Manifest
from accuquant.recipe import Recipe

#: Executable code, or what a build leaves: made anew where the export is used.
_NOT_DATA = (".engine", ".engine.json", ".runtime_cache", ".cache", ".plan", ".so", ".py", ".lock")


def published_files(folder: Path, manifest: Manifest) -> dict[str, Path | bytes]:
    """Return {path in the repository: file on disk, or other bytes for it} of an exported folder.

    Only what the manifest lists, and the manifest: no engine, no cache, nothing that was put beside. Paths of
    this machine, which manifest and recipe hold so that `accuquant sample` finds the pipeline again, are left
    out of both. Raises EngineError for a file that leads out of the folder.
    """
    subject = f"manifest '{folder / MANIFEST_NAME}'"
    files: dict[str, Path | bytes] = {
        name: named_file(folder, name, subject=subject)
        for name in manifest.files
        if not name.endswith(_NOT_DATA)
    }
    digests = {name: manifest.files[name] for name in files}
    if RECIPE_NAME in files:
        recipe = published_recipe(Recipe.load(folder / RECIPE_NAME))
        written = recipe.to_bytes()
        files[RECIPE_NAME] = written
        digests[RECIPE_NAME] = hashlib.sha256(written).hexdigest()
    for name in manifest.controls:  # each has a manifest and a recipe of its own
        inside = folder / name
        for path, content in published_files(inside, Manifest.load(inside)).items():
            files[f"{name}/{path}"] = content
            if isinstance(content, bytes):
                digests[f"{name}/{path}"] = hashlib.sha256(content).hexdigest()
    public = replace(manifest, source=published_name(manifest.source), files=digests)
    files[MANIFEST_NAME] = public.to_json().encode()
    _check_no_home(files)
    return files


def published_recipe(recipe: Recipe) -> Recipe:
    """Return the recipe with names of LoRAs, inputs and source that mean something to others."""
    calibration = dict(recipe.calibration)
    for key in ("source", "inputs"):
        if isinstance(calibration.get(key), str):
            calibration[key] = published_name(calibration[key]) or Path(calibration[key]).name
    if recipe.facts.loras:
        calibration["loras"] = [
            {**lora.to_dict(), "name": _published_lora(lora.name)} for lora in recipe.facts.loras
        ]
    loading = calibration.get("loading")
    if isinstance(loading, dict):
        named = {key: loading[key] for key in ("controlnets", "ip_adapters") if key in loading}
        public = {key: [_published_lora(name) for name in names] for key, names in named.items()}
        calibration["loading"] = {**loading, **public}
    return replace(recipe, calibration=calibration)


def published_name(source: str) -> str:
    """Return a Hub id as it is, and "" for a path: where a pipeline lies is nobody's business."""
    return source if Repository.find(source) is not None else ""


def _published_lora(name: str) -> str:
    parts = name.split("/")
    on_the_hub = len(parts) >= 2 and Repository.find("/".join(parts[:2])) is not None
    return name if on_the_hub and not Path(name).exists() else Path(name).name


def _check_no_home(files: Mapping[str, Path | bytes]) -> None:
    """Raise EngineError where the JSON that is published still holds this user's folder."""
    home = json.dumps(str(Path.home()))[1:-1]
    for name, content in files.items():
        if len(home) > 1 and isinstance(content, bytes) and f"{home}/".encode() in content:
            raise EngineError(
                f"'{name}'",
                got=f"a path in {home}",
                expected="no path of this machine in what is published",
                remedy="Calibrate and export again with names instead of paths",
            )
