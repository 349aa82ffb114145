"""The work folder of a calibration: what is finished, so that an interrupted run goes on from there."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from accuquant._util.files import atomic_write, write_text
from accuquant.denoising.conditioning import Conditioning
from accuquant.errors import CalibrationError, RecipeError
from accuquant.recipe import GroupResult, Recipe

from .state_tensors import states_from_tensors, states_to_tensors
from .trajectory import TrajectoryBatch

#: What a calibration keeps beside settings.json.
_PARTS = ("trajectories.safetensors", "initial.safetensors", "shared.safetensors", "group_*.json")


class WorkFolder:
    """`<recipe>.partial/`: settings.json, trajectories, initial and shared.safetensors, group_*.json.

    Every file appears whole or not at all, so any prefix of the work survives a kill. Files belong to the
    settings beside them, which say everything that they depend on: what lies there without any is removed.
    """

    def __init__(self, recipe: Path, settings: Mapping[str, Any]) -> None:
        self.path = recipe.with_name(recipe.name + ".partial")
        self._settings = json.loads(json.dumps(settings))
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
            for file in [path for pattern in _PARTS for path in self.path.glob(pattern)]:
                file.unlink()
            write_text(marker, json.dumps(self._settings, indent=2, sort_keys=True))

    def save_trajectories(self, batches: Sequence[TrajectoryBatch]) -> None:
        """Keep the full-precision latents and what the sampler remembered before every step."""
        tensors: dict[str, Tensor] = {}
        histories: dict[str, str] = {}
        for index, batch in enumerate(batches):
            state_tensors, histories[str(index)] = states_to_tensors(batch.states)
            parts = {
                "latents": batch.latents,
                **{f"conditioning.{k}": v for k, v in batch.conditioning.to_tensors().items()},
                **{f"states.{k}": v for k, v in state_tensors.items()},
            }
            tensors |= {f"{index}.{name}": tensor.contiguous() for name, tensor in parts.items()}
        with atomic_write(self.path / "trajectories.safetensors") as temporary:
            save_file(tensors, temporary, metadata=histories)

    def load_trajectories(self) -> list[TrajectoryBatch] | None:
        """Return the kept trajectories, or None where there are none (or no whole ones)."""
        path = self.path / "trajectories.safetensors"
        try:
            with safe_open(path, framework="pt") as file:
                histories = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, no mapping
        except (FileNotFoundError, SafetensorError):
            return None
        batches = []
        for index in sorted(histories, key=int):
            states = states_from_tensors(_under(tensors, f"{index}.states."), histories[index])
            conditioning = Conditioning.from_tensors(_under(tensors, f"{index}.conditioning."))
            batches.append(TrajectoryBatch(tensors[f"{index}.latents"], states, conditioning))
        return batches

    @property
    def initial(self) -> Path:
        """Where the recipe lies before anything is learned."""
        return self.path / "initial.safetensors"

    def load_initial(self) -> Recipe | None:
        """Return the recipe before learning, or None where there is none (or no whole one)."""
        return _whole_recipe(self.initial)

    @property
    def shared(self) -> Path:
        """Where the recipe lies when what all step groups share is learned."""
        return self.path / "shared.safetensors"

    def load_shared(self) -> Recipe | None:
        """Return the recipe with what all step groups share, or None where it is not finished."""
        return _whole_recipe(self.shared)

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
        for file in self.path.iterdir():
            if file.is_dir():  # a killed run's temporary files
                shutil.rmtree(file)
            elif file.name != "settings.json":
                file.unlink()
        shutil.rmtree(self.path)


def _whole_recipe(path: Path) -> Recipe | None:
    try:
        return Recipe.load(path)
    except RecipeError:
        return None


def _under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}


def _difference(found: Any, wanted: Mapping[str, Any]) -> str:
    if not isinstance(found, dict):
        return "unreadable settings.json"
    keys = [key for key in {**found, **wanted} if found.get(key) != wanted.get(key)]
    return ", ".join(f"{key}: {found.get(key)!r} -> {wanted.get(key)!r}" for key in sorted(keys))[:200]
