"""Read model_index.json, and let nothing through that is no class of diffusers or transformers.

A folder can come from anybody. diffusers once ran a Python module that model_index.json named and that lay
beside it; here the names are looked up in the two libraries alone, before they see the folder.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from accuquant._util.facts import read_facts
from accuquant.errors import SourceError

#: Library -> the classes whose subclasses a part may be. Modules of diffusers' own pipelines, such as
#: "stable_diffusion" with its safety checker, hold either kind.
_BASES = {
    "diffusers": ("diffusers:ModelMixin", "diffusers.schedulers.scheduling_utils:SchedulerMixin"),
    "transformers": (
        "transformers:PreTrainedModel",
        "transformers:PreTrainedTokenizerBase",
        "transformers:FeatureExtractionMixin",
        "transformers:ImageProcessingMixin",
        "transformers:ProcessorMixin",
    ),
}

#: Classes that released pipelines name and transformers 5 has under another name; diffusers knows it too.
_RENAMED = {"CLIPFeatureExtractor": "CLIPImageProcessor"}


def read_index(folder: Path) -> dict[str, Any]:
    """Return the model_index.json of a pipeline's folder.

    Raises SourceError where it is missing or no JSON object, and where the pipeline's class is no name.
    """
    path = folder / "model_index.json"
    try:
        index = read_facts(path, dict[str, Any])
    except FileNotFoundError:
        raise _missing(folder) from None
    except (OSError, ValueError) as fault:
        raise corrupt(path, fault) from fault
    name = index.get("_class_name", "DiffusionPipeline")
    if not isinstance(name, str):
        raise _foreign(folder, f"the pipeline's class {_short(name)}")
    return index


def check_classes(folder: Path, index: Mapping[str, Any]) -> None:
    """Raise SourceError unless every part is of a class that `part_class` takes."""
    for part, entry in index.items():
        if not part.startswith("_") and isinstance(entry, list) and any(isinstance(x, str) for x in entry):
            part_class(folder, part, entry)


def part_class(folder: Path, part: str, entry: object) -> type | None:
    """Return the class of a part from its entry [library, class]; None where its library is not installed.

    Raises SourceError for anything but a model, scheduler, tokenizer or processor class of the two libraries.
    """
    if not (isinstance(entry, list) and len(entry) == 2 and all(isinstance(x, str) for x in entry)):
        raise _unknown(folder, part, entry, "diffusers")
    library, name = entry
    if library == "transformers" and importlib.util.find_spec(library) is None:
        return None
    if library != _known(library) or _shadowed(folder, part, library):
        raise _foreign(folder, f"{part}: {_short(entry)}")
    found = getattr(_module(library), name, None) or getattr(_module(library), _RENAMED.get(name, ""), None)
    if not isinstance(found, type):
        raise _unknown(folder, part, entry, library if library in _BASES else "diffusers")
    if not issubclass(found, _bases(library)):
        raise _foreign(folder, f"{part}: {_short(entry)}")
    return found


def diffusers_class(folder: Path, part: str, entry: object) -> type:
    """Return the class of a part that has to be diffusers' own. Raises SourceError as `part_class` does."""
    found = part_class(folder, part, entry)
    if found is None or not found.__module__.startswith("diffusers."):
        raise _unknown(folder, part, entry, "diffusers")
    return found


def corrupt(path: Path, fault: Exception) -> SourceError:
    """Return the error for a file or folder that cannot be read."""
    reason = str(fault).strip().splitlines()
    return SourceError(
        f"'{path}'",
        got=f"{type(fault).__name__}: {reason[0] if reason else ''}",
        expected="the files that diffusers' save_pretrained writes",
        remedy="The files are damaged or incomplete: copy or download the pipeline again",
    )


def _known(library: str) -> str | None:
    """Return `library` where it is one of the two, or the module of a pipeline of diffusers."""
    if library in _BASES:
        return library
    # a name with a dot or an underscore in front is no module that save_pretrained writes
    plain = library.isidentifier() and not library.startswith("_")
    found = importlib.util.find_spec(f"diffusers.pipelines.{library}") if plain else None
    return library if found is not None and found.submodule_search_locations else None


def _shadowed(folder: Path, part: str, library: str) -> bool:
    """Say whether a file of the part's folder would be taken for the library."""
    return (folder / part / f"{library}.py").exists()


def _module(library: str) -> Any:
    return importlib.import_module(library if library in _BASES else f"diffusers.pipelines.{library}")


def _bases(library: str) -> tuple[type, ...]:
    libraries = [library] if library in _BASES else list(_BASES)
    names = [name.split(":") for key in libraries if importlib.util.find_spec(key) for name in _BASES[key]]
    return tuple(getattr(importlib.import_module(module), name) for module, name in names)


def _unknown(folder: Path, part: str, entry: object, library: str) -> SourceError:
    return SourceError(
        f"pipeline '{folder}'",
        got=f"{part}: {_short(entry)}",
        expected=f"a class of the installed {library} library",
        remedy=f"Save the pipeline with the installed {library}, or upgrade it",
    )


def _foreign(folder: Path, got: str) -> SourceError:
    return SourceError(
        f"pipeline '{folder}'",
        got=got,
        expected="models, schedulers, tokenizers and processors of diffusers and transformers: the Python "
        "code of a folder is never run",
        remedy="Load the pipeline yourself, and save it with classes of these libraries",
    )


def _missing(folder: Path) -> SourceError:
    hint = " (it holds a single network)" if (folder / "config.json").is_file() else ""
    return SourceError(
        f"pipeline '{folder}'",
        got=f"no model_index.json{hint}",
        expected="a folder that DiffusionPipeline.save_pretrained wrote",
        remedy="Point at the pipeline's folder, not at one of its parts",
    )


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
