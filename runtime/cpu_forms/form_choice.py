"""The form that a runner took for a file, and why, as it is shown and kept."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

from msgspec import Meta

from accuquant._util.cache_folder import cache_folder
from accuquant._util.facts import FactsError, Text, read_facts
from accuquant._util.files import write_text
from accuquant.runtime.cpu_forms.form import AS_WRITTEN, CpuForm

#: What a choice rests on.
FormBasis = Literal["as asked", "not an export", "rule", "measurement"]
Milliseconds = Annotated[float, Meta(gt=0, le=1e9)]


@dataclass(frozen=True)
class FormTime:
    """The median time of a call in a form."""

    form: CpuForm
    milliseconds: Milliseconds


@dataclass(frozen=True)
class FormChoice:
    """A form, what the choice rests on, and why, in a clause; `times` is what was measured."""

    form: CpuForm
    basis: FormBasis
    reason: Text
    times: tuple[FormTime, ...] = ()

    def __str__(self) -> str:
        return f"{self.form} (by {self.basis}: {self.reason})"


#: A file that somebody else wrote is run as it is.
NOT_OURS = FormChoice(AS_WRITTEN, "not an export", "only files that `accuquant export` wrote are rewritten")


def choice_key(parts: Sequence[object]) -> str:
    """Return the name of what was chosen for a graph, a processor, a library and so on: 64 hex digits."""
    return hashlib.sha256(json.dumps([str(part) for part in parts]).encode()).hexdigest()


def load_choice(key: str) -> FormChoice | None:
    """Return the choice that was kept under `key`, or None; a file that cannot be read is warned of."""
    path = _path(key)
    try:
        return read_facts(path, FormChoice)
    except FileNotFoundError:
        return None
    except (OSError, FactsError) as fault:
        warn_of_cache(f"'{path}' is not what was kept there ({fault}): the form is measured again")
        return None


def keep_choice(key: str, choice: FormChoice) -> None:
    """Keep `choice` under `key`; where nothing can be written, a warning says so."""
    try:
        write_text(_path(key), json.dumps(asdict(choice), indent=1))
    except OSError as fault:
        warn_of_cache(f"the form that was measured cannot be kept ({fault}): the next run measures again")


def _path(key: str) -> Path:
    return cache_folder() / "cpu_forms" / f"{key}.json"


def warn_of_cache(text: str) -> None:
    """Warn of what is wrong with the cache folder."""
    warnings.warn(f"OpenVINO: {text}.", stacklevel=3)
