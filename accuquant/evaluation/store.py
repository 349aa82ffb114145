"""The work folder of an evaluation: shards that are done, so that an interrupted run goes on from there."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from accuquant._util.files import write_text
from accuquant._util.progress import Progress
from accuquant.errors import VerificationError
from accuquant.units.tensor_tree import Tree
from accuquant.units.units import SERIAL, Engine, KeptUnits, Units

from .evaluation_settings import members

#: Shards whose results are in memory at a time: features of 256 images take 2 to 6 MB a branch.
WINDOW = 32
_SETTINGS, _UNITS = "settings.json", "units"


class EvaluationStore:
    """A folder of shards of one evaluation.

    - settings.json: all that a shard depends on; another evaluation is refused
    - units/: results of shards, by windows of some of them

    The number of images is not among the settings: more images go on where fewer ended.
    """

    def __init__(
        self,
        path: Path,
        settings: Mapping[str, Any],
        units: Callable[[Path, Engine], Units] = KeptUnits,
        engine: Engine = SERIAL,
    ) -> None:
        self._path = path
        self._open(json.loads(json.dumps(settings)))
        self._units = units(path / _UNITS, engine)

    def _open(self, settings: dict[str, Any]) -> None:
        marker = self._path / _SETTINGS
        try:
            found = json.loads(marker.read_text(encoding="utf-8"))
        except FileNotFoundError:
            shutil.rmtree(self._path / _UNITS, ignore_errors=True)
            write_text(marker, json.dumps(settings, indent=2, sort_keys=True))
            return
        except ValueError:
            found = {}
        if found != settings:
            keys = sorted(key for key in {**found, **settings} if found.get(key) != settings.get(key))
            changes = ", ".join(f"{key}: {found.get(key)!r} -> {settings.get(key)!r}" for key in keys)
            raise VerificationError(
                f"unfinished evaluation '{self._path}'",
                got=f"other settings ({changes[:300]})",
                expected="the settings that it was started with",
                remedy="Use the same settings to resume, or delete that folder to start over",
            )

    def shards(
        self, stage: str, units: Sequence[str], compute: Callable[[str], Tree], progress: Progress
    ) -> Iterator[Tree]:
        """Yield the results of all units in their order, some in memory at a time."""
        for number, first in enumerate(range(0, len(units), WINDOW)):
            window = units[first : first + WINDOW]
            done = partial(_advance, progress, iter([len(members(unit)) for unit in window]))
            yield from self._units.map(f"{stage}-{number:05d}", window, compute, done)

    def remove(self) -> None:
        """Delete the folder: the evaluation is finished."""
        # the settings go last: without them, another run would take what is left for its own
        shutil.rmtree(self._path / _UNITS, ignore_errors=True)
        shutil.rmtree(self._path)


def _advance(progress: Progress, sizes: Iterator[int]) -> None:
    progress.advance(next(sizes))
