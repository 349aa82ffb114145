"""The work folder of a calibration: what is finished, so that an interrupted run goes on from there."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from accuquant._util.files import write_text
from accuquant.errors import CalibrationError, RecipeError
from accuquant.recipe import GroupResult, Recipe
from accuquant.units.units import SERIAL, Engine, KeptUnits

from .descent_state import DescentState

#: Of the folder's files; a folder of another layout is refused.
_LAYOUT = 2
#: What a calibration keeps beside settings.json, of this layout or an earlier one.
_PARTS: tuple[str, ...] = (
    "starts",
    "trajectories",
    "trajectories.safetensors",
    "inputs",
    "units",
    "initial.safetensors",
)
_PARTS += ("levels.safetensors", "shared.safetensors", "shared.state", "group_*.json", "group_*.state")


class WorkFolder:
    """`<recipe>.partial/`, in the order in which it fills; docs/calibration.md says what a kill costs.

    - settings.json: all that the rest depends on; what lies there without it is removed
    - starts/, trajectories/, inputs/: a file for each batch, and rows of inputs beside it
    - units/: first and refined scales, rounded layers, sensitivities
    - initial.safetensors: the recipe before learning; starts, inputs and units are of no use any more
    - levels.safetensors: the recipe with levels that were learned block by block
    - shared.state, shared.safetensors: the shared stage while it runs, and its recipe
    - group_000.state, group_000.json: each step group likewise

    Every file appears whole or not at all, so any prefix of the work survives a kill. A file of rows counts
    only once the file beside it does.
    """

    def __init__(self, recipe: Path, settings: Mapping[str, Any]) -> None:
        self.path = recipe.with_name(recipe.name + ".partial").absolute()
        self._settings = json.loads(json.dumps({**settings, "layout": _LAYOUT}))
        self._open()

    def _open(self) -> None:
        marker = self.path / "settings.json"
        if marker.is_file():
            try:
                found = json.loads(marker.read_text(encoding="utf-8"))
            except ValueError:
                found = None
            if found != self._settings:
                raise CalibrationError(
                    f"unfinished calibration '{self.path}'",
                    got=f"other settings ({_difference(found, self._settings)})",
                    expected="the settings that it was started with",
                    remedy="Use the same settings to resume, or delete that folder to start over",
                )
        else:
            self.path.mkdir(parents=True, exist_ok=True)
            for path in [path for pattern in _PARTS for path in self.path.glob(pattern)]:
                _remove(path)
            write_text(marker, json.dumps(self._settings, indent=2, sort_keys=True))

    def start(self, batch: int) -> Path:
        """Where a batch lies before its first step."""
        return self.path / "starts" / f"{batch:06d}.safetensors"

    def trajectories(self, batch: int) -> Path:
        """Where a batch of trajectories lies."""
        return self.path / "trajectories" / f"{batch:06d}.safetensors"

    def inputs(self, batch: int) -> Path:
        """Where that lies which was drawn from the layers' inputs on a batch of trajectories."""
        return self.path / "inputs" / f"{batch:06d}.safetensors"

    def units(self, engine: Engine = SERIAL) -> KeptUnits:
        """Return what computes, and keeps, the results that the first recipe is made of."""
        return KeptUnits(self.path / "units", engine)

    def marker(self) -> dict[str, bytes]:
        """Return the path and the content of the file by which others know that they see this folder."""
        path = self.path.absolute() / "settings.json"
        return {str(path): path.read_bytes()}

    def forget_preparation(self) -> None:
        """Remove what only the first recipe was made of."""
        for name in ("starts", "inputs", "units"):
            _remove(self.path / name)

    @property
    def initial(self) -> Path:
        """Where the recipe lies before anything is learned."""
        return self.path / "initial.safetensors"

    def load_initial(self) -> Recipe | None:
        """Return the recipe before learning, or None where there is none (or no whole one)."""
        return _whole_recipe(self.initial)

    @property
    def levels(self) -> Path:
        """Where the recipe lies when the rounding is learned."""
        return self.path / "levels.safetensors"

    def load_levels(self) -> Recipe | None:
        """Return the recipe with learned rounding, or None where it is not finished."""
        return _whole_recipe(self.levels)

    @property
    def shared(self) -> Path:
        """Where the recipe lies when what all step groups share is learned."""
        return self.path / "shared.safetensors"

    def load_shared(self) -> Recipe | None:
        """Return the recipe with what all step groups share, or None where it is not finished."""
        return _whole_recipe(self.shared)

    @property
    def shared_state(self) -> DescentState:
        """The shared stage while it runs."""
        return DescentState(self.path / "shared.state")

    def group_state(self, group: int) -> DescentState:
        """The learning of one step group while it runs."""
        return DescentState(self.path / f"group_{group:03d}.state")

    def save_group(self, group: int, scales: Mapping[str, float], result: GroupResult) -> None:
        """Keep what was learned for one step group."""
        data = {"scales": dict(scales), "result": vars(result)}
        write_text(self.path / f"group_{group:03d}.json", json.dumps(data, indent=1))

    def load_group(self, group: int) -> tuple[dict[str, float], GroupResult] | None:
        """Return what was learned for one step group, or None where it is not finished."""
        path = self.path / f"group_{group:03d}.json"
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            return data["scales"], GroupResult(**data["result"])
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return None

    def remove(self) -> None:
        """Delete the folder: the recipe is finished."""
        # the settings go last: without them, another run would take what is left for its own
        for path in sorted(self.path.iterdir(), key=Path.is_dir):
            if path.name != "settings.json":
                _remove(path)
        shutil.rmtree(self.path)


def _whole_recipe(path: Path) -> Recipe | None:
    try:
        return Recipe.load(path)
    except RecipeError:
        return None


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _difference(found: Any, wanted: Mapping[str, Any]) -> str:
    if not isinstance(found, dict):
        return "unreadable settings.json"
    keys = [key for key in {**found, **wanted} if found.get(key) != wanted.get(key)]
    return ", ".join(f"{key}: {found.get(key)!r} -> {wanted.get(key)!r}" for key in sorted(keys))[:200]
