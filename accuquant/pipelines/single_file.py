"""A pipeline in a single file of weights: made a folder once, beside nobody's files, and read from there."""

from __future__ import annotations

import hashlib
import importlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from accuquant._util.cache_folder import cache_folder
from accuquant._util.scratch import scratch_beside, scratch_folder
from accuquant.errors import SourceError
from accuquant.pipelines.half_storage import half_type_of
from accuquant.pipelines.loading import Loading
from accuquant.pipelines.model_index import check_classes, read_index
from accuquant.pipelines.quiet import quiet_libraries

SAFE = ".safetensors"
#: Files that are pickles, which are programs.
PICKLES = (".ckpt", ".pt", ".pth", ".bin")


def is_single_file(source: str | Path) -> bool:
    """Say whether `source` is a file of weights that may be read."""
    path = Path(source)
    return path.suffix.lower() in (SAFE, *PICKLES) and path.is_file()


def folder_of_file(path: Path, loading: Loading) -> Path:
    """Return a diffusers folder with what is in the single file `path`, made where there is none yet.

    `loading.pipeline_config` is the folder of a pipeline of the same kind, whose weights are not read.
    Without one, diffusers tells the kind from the file; its configuration comes from the Hub, or its cache.
    Raises SourceError where the file is a pickle and nobody allowed that, holds no whole pipeline, or has
    other shapes than the configuration.
    """
    configuration = _configuration(path, loading)
    target = cache_folder() / "single-files" / _name(path, configuration)
    if not (target / "model_index.json").is_file():
        with scratch_beside(target) as scratch, safe_file(path, loading) as file:
            _convert(path, file, configuration, scratch / "pipeline")
            try:
                (scratch / "pipeline").rename(target)
            except OSError:
                if not (target / "model_index.json").is_file():  # else another process was faster
                    raise
    return target


@contextmanager
def safe_file(path: Path, loading: Loading) -> Iterator[Path]:
    """Give a .safetensors file with the tensors of `path`: itself, or a copy of what is in a pickle.

    Raises SourceError for a pickle that nobody allowed, and for one that holds more than tensors and numbers:
    that is never run.
    """
    if path.suffix.lower() == SAFE:
        yield path
        return
    if not loading.allow_pickle:
        raise SourceError(
            f"'{path}'", got="a pickle, which may hold a program", expected="a .safetensors file",
            remedy="Look for one of the same weights, or give --allow-pickle where you trust its author",
        )  # fmt: skip
    from safetensors.torch import save_file

    try:
        # no program runs even so: torch reads tensors and numbers alone
        found: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as fault:  # pickle raises whatever a damaged file makes it
        raise SourceError(
            f"'{path}'", got=f"{type(fault).__name__}: {(str(fault).strip().splitlines() or [''])[0][:200]}",
            expected="a pickle of tensors and numbers alone", remedy="Look for a .safetensors file instead",
        ) from fault  # fmt: skip
    while isinstance(found, dict) and "state_dict" in found:
        found = found["state_dict"]
    tensors = {
        str(name): tensor.contiguous().clone()  # safetensors takes no two that share memory
        for name, tensor in (found.items() if isinstance(found, dict) else ())
        if isinstance(tensor, torch.Tensor)
    }
    with scratch_folder("pickle") as folder:
        save_file(tensors, folder / "model.safetensors")
        yield folder / "model.safetensors"


def fault_in_file(path: Path, fault: Exception, remedy: str) -> SourceError:
    """Return the error for a file that diffusers cannot make a pipeline, or a network, of."""
    if isinstance(fault, NotImplementedError) and "meta tensor" in str(fault):
        # what diffusers comes to where weights are missing that it has made room for
        fault = ValueError("no weights for some of the layers")
    lines = str(fault).split()
    return SourceError(
        f"'{path}'", got=f"{type(fault).__name__}: {' '.join(lines)[:300]}",
        expected="the weights that the configuration asks for", remedy=remedy,
    )  # fmt: skip


def _configuration(path: Path, loading: Loading) -> Path:
    if loading.pipeline_config is not None:
        folder = Path(loading.pipeline_config)
        check_classes(folder, read_index(folder))
        return folder
    from huggingface_hub import snapshot_download

    tools: Any = importlib.import_module("diffusers.loaders.single_file_utils")
    remedy = (
        "Give --pipeline-config FOLDER, the folder of a pipeline of the same kind: model_index.json and the "
        "configurations in it are read, its weights are not"
    )
    with safe_file(path, loading) as file:
        try:
            checkpoint = tools.load_single_file_checkpoint(str(file))
            name = tools.fetch_diffusers_config(checkpoint)["pretrained_model_name_or_path"]
        except Exception as fault:  # safetensors and diffusers raise many kinds on damage
            raise fault_in_file(path, fault, remedy) from fault
    wanted = ["*.json", "**/*.json", "**/*.txt", "**/*.model"]
    try:
        found = Path(snapshot_download(name, allow_patterns=wanted, ignore_patterns=["**/*.index.json"]))
    except Exception as fault:  # the Hub's client raises many unrelated kinds
        raise SourceError(
            f"'{path}'",
            got=f"what looks like {name}, whose configuration could not be fetched ({type(fault).__name__})",
            expected="that configuration on the Hub, or in its cache", remedy=remedy,
        ) from fault  # fmt: skip
    check_classes(found, read_index(found))
    return found


def _name(path: Path, configuration: Path) -> str:
    """Return a name for the folder that follows from all that it is made of."""
    import diffusers

    stat = path.stat()
    facts: list[Any] = [str(path.resolve()), stat.st_size, stat.st_mtime_ns, diffusers.__version__]
    for file in sorted(configuration.glob("**/*")):
        if file.suffix in (".json", ".txt", ".model") and not file.name.endswith(".index.json"):
            facts += [str(file.relative_to(configuration)), hashlib.sha256(file.read_bytes()).hexdigest()]
    return f"{path.stem[:40]}-{hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:20]}"


def _convert(path: Path, file: Path, configuration: Path, target: Path) -> None:
    import diffusers

    name = str(read_index(configuration).get("_class_name"))
    cls: Any = getattr(diffusers, name, None)
    if not hasattr(cls, "from_single_file"):
        raise SourceError(
            f"'{path}'", got=f"the configuration of a {name}",
            expected="a pipeline that diffusers reads from a file",
            remedy="Give SOURCE as a folder, and the file as --network where it holds the network alone",
        )  # fmt: skip
    remedy = (
        "Give the --pipeline-config of a pipeline of the same kind. A file with the network alone goes "
        f"beside the pipeline's folder: SOURCE --network '{path}'"
    )
    try:
        half = half_type_of([file])
        with quiet_libraries():
            pipe = cls.from_single_file(
                str(file), config=str(configuration), torch_dtype=half or torch.float32, local_files_only=True
            )
            for part, module in pipe.components.items():
                check_complete(part, module)
            pipe.save_pretrained(target)
    except Exception as fault:  # diffusers, transformers and safetensors raise many unrelated kinds
        raise fault_in_file(path, fault, remedy) from fault


def check_complete(part: str, module: object) -> None:
    """Raise ValueError for a network that got no weights for some of its parameters."""
    if isinstance(module, nn.Module):
        missing = [name for name, tensor in module.named_parameters() if tensor.is_meta]
        if missing:
            raise ValueError(f"no weights for {part}'s {', '.join(sorted(missing)[:3])}")
