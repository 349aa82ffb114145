"""The manifest beside a TensorRT engine: what it was compiled from, for which GPU, by which library."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from accuquant._util.cache_folder import cache_folder
from accuquant._util.external_data import check_external_files, external_files
from accuquant._util.facts import Count, FactsError, Real, Sha256, Text, as_facts, read_json
from accuquant._util.files import sha256_of_file, write_text
from accuquant._util.named_file import is_downloaded, name_fault, named_file
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

    engine_sha256: Sha256
    engine_bytes: Count
    model_files: dict[Text, Sha256]
    recipe_sha256: Text
    library: Text
    version: Text
    target: Text
    options: dict[str, Any]
    seconds: Real
    rebuild: str
    accuquant_version: Text

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
            data = read_json(path)
            if not isinstance(data, dict):
                raise FactsError(f"a JSON {type(data).__name__}")
            version = data.get("format_version")
            if version != FORMAT_VERSION or isinstance(version, bool):
                got = f"format version {version!r}"
                raise _refused(f"manifest '{path}'", got, f"a whole manifest of version {FORMAT_VERSION}")
            manifest = as_facts(data, cls)
            _check_facts(manifest)
        except FileNotFoundError:
            raise _refused(
                f"engine '{engine}'", f"no manifest '{path.name}' beside it", "the pair that build wrote"
            ) from None
        except (OSError, FactsError) as fault:
            raise _refused(f"manifest '{path}'", str(fault), "the JSON that build writes") from fault
        if data.get("key") != manifest.key:
            got = "values that do not match its key"
            raise _refused(f"manifest '{path}'", got, f"a whole manifest of version {FORMAT_VERSION}")
        return manifest

    def check_engine(self, engine: Path) -> None:
        """Raise EngineError unless `engine` has the bytes that were compiled; they are executable code."""
        path = named_file(engine.parent, engine.name, subject=f"engine '{engine}'")
        if not path.is_file():
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
    """Return the engine of a graph below `root`: root/engines/<target>/<library>/<graph>.engine.

    `root` is the exported folder, or what `built_root` says of it.
    """
    return root / "engines" / target / library / f"{Path(graph).stem}{ENGINE_SUFFIX}"


def part_engine_path(root: Path, part: str, target: str, library: str) -> Path:
    """Return the engine of a part around the network, such as text_encoder; beside the network's."""
    return engine_path(root, f"{part}.onnx", target, library)


def built_root(folder: Path) -> Path:
    """Return where engines of `folder` are built and looked for: the folder itself, unless it was downloaded.

    An engine is executable code. What came with a download is checked against that download only, so it is
    not looked at, and nothing is written into a download, least of all into a snapshot of the Hub's cache.
    Its engines have a folder in our own cache.
    """
    if not is_downloaded(folder):
        return folder
    name = hashlib.sha256(os.fsencode(Path(folder).resolve())).hexdigest()[:32]
    return cache_folder() / "built" / name


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
    subject = f"model '{model}'"
    return {name: sha256_of_file(named_file(model.parent, name, subject=subject)) for name in names}


def _check_facts(manifest: EngineManifest) -> None:
    """Raise FactsError for file names that lead elsewhere, and a command that is none of ours."""
    if not manifest.model_files:
        raise FactsError("model_files: empty")
    for name in manifest.model_files:
        if name_fault(name):
            raise FactsError(f"model_files: '{name}', {name_fault(name)}")
    # The command is shown to be run. Quoted by shlex it is one command, whatever a shell makes of signs.
    try:
        words = shlex.split(manifest.rebuild)
    except ValueError as fault:
        raise FactsError(f"rebuild: {fault}") from fault
    ours = words[:2] == ["accuquant", "build"] and shlex.join(words) == manifest.rebuild
    if manifest.rebuild and not ours:
        raise FactsError(f"rebuild: {manifest.rebuild!r}, which is no `accuquant build`")


def _refused(subject: str, got: str, expected: str) -> EngineError:
    return EngineError(subject, got=got, expected=expected, remedy="Run `accuquant build` again")
