"""The manifest beside a TensorRT engine: what it was compiled from, for which GPU, by which library."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from accuquant._util.external_data import check_external_files, external_files
from accuquant._util.files import sha256_of_file, write_text
from accuquant.errors import EngineError

FORMAT_VERSION = 1
ENGINE_SUFFIX = ".engine"


@dataclass(frozen=True)
class EngineManifest:
    """What a .engine file holds, in <name>.engine.json.

    `model_files` maps the graph's file and its external data, by name, to their SHA-256; the graph is
    the first. `options` are those that shape the engine (profile, flags). `rebuild` is the command that
    makes the engine again.
    """

    engine_sha256: str
    engine_bytes: int
    model_files: dict[str, str]
    recipe_sha256: str
    library: str
    version: str
    target: str
    options: dict[str, Any]
    seconds: float
    rebuild: str
    accuquant_version: str

    @property
    def key(self) -> str:
        """The SHA-256 over everything that an engine depends on: equal keys, equal engines."""
        return engine_key(self.model_files, self.recipe_sha256, self.library, self.version, self.options)

    def save(self, engine: Path) -> None:
        """Write the manifest of the engine file `engine`, atomically."""
        data = {"format_version": FORMAT_VERSION, "key": self.key, **asdict(self)}
        write_text(manifest_path(engine), json.dumps(data, indent=2, sort_keys=False) + "\n")

    @classmethod
    def load(cls, engine: Path) -> EngineManifest:
        """Read the manifest of `engine`. Raises EngineError where it is missing, damaged or changed."""
        path = manifest_path(engine)
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            version, key = data.pop("format_version"), data.pop("key")
            manifest = cls(**data)
            whole = key == manifest.key
        except FileNotFoundError:
            raise _refused(
                f"engine '{engine}'", f"no manifest '{path.name}' beside it", "the pair that build wrote"
            ) from None
        except (OSError, KeyError, TypeError, ValueError, AttributeError) as fault:
            raise _refused(
                f"manifest '{path}'", f"{type(fault).__name__}: {fault}", "the JSON that build writes"
            ) from fault
        if version != FORMAT_VERSION or not whole:
            got = f"format version {version!r}" if whole else "values that do not match its key"
            raise _refused(f"manifest '{path}'", got, f"a whole manifest of version {FORMAT_VERSION}")
        return manifest

    def check_engine(self, engine: Path) -> None:
        """Raise EngineError unless `engine` has the bytes that were compiled; they are executable code."""
        if not engine.is_file():
            got = "no such file"
        elif sha256_of_file(engine) != self.engine_sha256:
            got = "other bytes than were compiled"
        else:
            return
        raise EngineError(
            f"engine '{engine}'",
            got=got,
            expected=f"SHA-256 {self.engine_sha256[:12]}...",
            remedy=f"Do not run it; build it again: {self.rebuild}",
        )


def manifest_path(engine: Path) -> Path:
    """Return the path of the manifest of `engine`: its name and .json."""
    return engine.with_name(f"{engine.name}.json")


def engine_path(root: Path, graph: str, target: str, library: str) -> Path:
    """Return where the engine of a graph is kept: root/engines/<target>/<library>/<graph>.engine."""
    return root / "engines" / target / library / f"{Path(graph).stem}{ENGINE_SUFFIX}"


def engine_key(
    model_files: Mapping[str, str],
    recipe_sha256: str,
    library: str,
    version: str,
    options: Mapping[str, Any],
) -> str:
    """Return the SHA-256 over what an engine depends on. `options` hold the target."""
    # Names do not matter, but for the external data that the graph refers to by name.
    graph, *external = model_files.items()
    parts = [graph[1], sorted(external), recipe_sha256, library, version, dict(options)]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def digest_model(model: Path) -> dict[str, str]:
    """Return {name: SHA-256} of an .onnx file and of its external data.

    Raises EngineError where a file is missing, or external data lies outside the model's folder.
    """
    check_external_files(model)
    names = [model.name, *sorted(external_files(model))]
    return {name: sha256_of_file(model.parent / name) for name in names}


def _refused(subject: str, got: str, expected: str) -> EngineError:
    return EngineError(subject, got=got, expected=expected, remedy="Run `accuquant build` again")
