"""A network in place of the pipeline's own: a fine-tune or a merge, from another folder or file."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from accuquant._util.facts import FactsError, read_json
from accuquant._util.scratch import scratch_folder
from accuquant.errors import SourceError
from accuquant.networks.stored_weights import compute_in_float32
from accuquant.pipelines.config_limits import check_numbers
from accuquant.pipelines.half_storage import half_type_of, half_type_of_part
from accuquant.pipelines.loading import Loading, variant_of
from accuquant.pipelines.look_alikes import check_part
from accuquant.pipelines.model_index import corrupt
from accuquant.pipelines.single_file import check_complete, fault_in_file, is_single_file, safe_file

#: Values of a configuration that change no weight, and that fine-tunes are saved with as it happens.
_FREE = ("sample_size",)


def load_swapped(
    folder: Path, component: str, cls: Any, loading: Loading, *, as_stored: bool
) -> torch.nn.Module:
    """Load `loading.network` as the `component` of the pipeline in `folder`, which is of class `cls`.

    It is the folder of a network, or of a pipeline whose network is taken, or a single file with the names of
    diffusers or of the original code. Raises SourceError where it is none, or of another architecture.
    """
    assert loading.network is not None
    path = Path(loading.network)
    if is_single_file(path):
        return _from_file(path, folder, component, cls, loading, as_stored=as_stored)
    inside = path / component if (path / "model_index.json").is_file() else path
    if not (inside / "config.json").is_file():
        raise SourceError(
            f"--network '{path}'",
            got="no such file or folder" if not path.exists() else f"no config.json in '{inside}'",
            expected=f"the folder of a {cls.__name__}, that of a pipeline with one, or a .safetensors file",
            remedy="Check the path, or say with --network where it is now",
        )
    _check_same(path, _config(folder / component), _config(inside), cls.__name__)
    check_part(inside)
    check_numbers(inside / "config.json")
    variant = variant_of(
        inside, Loading(loading.variant) if _has(inside, loading) else Loading(), required=True
    )
    half = half_type_of_part(inside, variant) if as_stored else None
    try:
        return _held(_read_folder(inside, cls, half or torch.float32, variant), half)
    except Exception as fault:  # diffusers and safetensors raise many unrelated kinds on damage
        raise corrupt(inside, fault) from fault


def _from_file(
    path: Path, folder: Path, component: str, cls: Any, loading: Loading, *, as_stored: bool
) -> torch.nn.Module:
    remedy = f"Give a file with the weights of a {cls.__name__} of the pipeline's own shapes"
    with safe_file(path, loading) as file:
        try:
            half = half_type_of([file]) if as_stored else None
            network = _read_file(file, folder, component, cls, half or torch.float32)
        except Exception as fault:  # diffusers, torch and safetensors raise many unrelated kinds
            raise fault_in_file(path, fault, remedy) from fault
    return _held(network, half)


def _read_folder(folder: Path, cls: Any, dtype: torch.dtype, variant: str | None = None) -> torch.nn.Module:
    found: torch.nn.Module
    found, info = cls.from_pretrained(
        folder, torch_dtype=dtype, variant=variant, output_loading_info=True, local_files_only=True
    )
    if info["missing_keys"]:  # diffusers would go on with random values
        raise ValueError(f"no weights for {', '.join(sorted(info['missing_keys'])[:3])}")
    return found


def _read_file(file: Path, folder: Path, component: str, cls: Any, dtype: torch.dtype) -> torch.nn.Module:
    """Read a file with diffusers' names as the folder it would lie in, any other as the original code's."""
    from safetensors import safe_open

    with torch.device("meta"):
        names = set(cls.from_config(cls.load_config(folder, subfolder=component)).state_dict())
    with safe_open(file, framework="pt") as opened:
        known = names & set(opened.keys())
    if known:
        with scratch_folder("network") as scratch:
            shutil.copyfile(folder / component / "config.json", scratch / "config.json")
            _link(file, scratch / "diffusion_pytorch_model.safetensors")
            return _read_folder(scratch, cls, dtype)
    found: torch.nn.Module = cls.from_single_file(
        str(file), config=str(folder), subfolder=component, torch_dtype=dtype, local_files_only=True
    )
    check_complete(component, found)
    return found


def _link(file: Path, place: Path) -> None:
    try:
        place.symlink_to(file.resolve())
    except OSError:  # Windows, for most users
        shutil.copyfile(file, place)


def _check_same(path: Path, own: Mapping[str, Any], other: Mapping[str, Any], name: str) -> None:
    """Raise SourceError, which names what differs, for a network of another architecture."""
    differing = [
        f"{key} {other.get(key)!r} instead of {value!r}"
        for key, value in own.items()
        if key not in _FREE
        and (key == "_class_name" or not key.startswith("_"))
        and key in other
        and other[key] != value
    ]
    if differing:
        raise SourceError(
            f"--network '{path}'",
            got=f"another architecture: {', '.join(differing[:3])}",
            expected=f"a {name} with the configuration of the pipeline's own",
            remedy="Give a network that was fine-tuned or merged from that of this pipeline",
        )


def _config(folder: Path) -> Mapping[str, Any]:
    try:
        found = read_json(folder / "config.json")
    except (OSError, FactsError) as fault:
        raise corrupt(folder / "config.json", fault) from fault
    return found if isinstance(found, dict) else {}


def _has(folder: Path, loading: Loading) -> bool:
    """Say whether a network was saved in the variant of the pipeline around it."""
    return loading.variant is not None and any(folder.glob(f"*.{loading.variant}.*"))


def _held(network: torch.nn.Module, half: torch.dtype | None) -> torch.nn.Module:
    if half is not None:
        compute_in_float32(network)
    return network
