"""Load the control networks of a pipeline: its own, or others that are put beside its UNet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from accuquant.errors import SourceError, UsageError
from accuquant.hub.fetch import local_folder
from accuquant.hub.repository import Repository
from accuquant.networks.control_signature import CONTROL_NET
from accuquant.networks.stored_weights import compute_in_float32
from accuquant.pipelines.config_limits import check_numbers
from accuquant.pipelines.half_storage import half_type_of_part
from accuquant.pipelines.loading import Loading, variant_of
from accuquant.pipelines.look_alikes import check_part
from accuquant.pipelines.model_index import corrupt

CONTROLNET = "controlnet"
#: Pipeline -> the one that takes control networks beside the same parts.
_WITH_CONTROL = {
    f"StableDiffusion{size}{task}Pipeline": f"StableDiffusion{size}ControlNet{task}Pipeline"
    for size in ("", "XL")
    for task in ("", "Img2Img", "Inpaint")
}
CONTROLLED_CLASSES = frozenset(_WITH_CONTROL.values())


def controlled_class(pipeline_class: str) -> str:
    """Return the class of the pipeline that takes control networks beside the parts of `pipeline_class`.

    Raises UsageError where there is none.
    """
    if pipeline_class in CONTROLLED_CLASSES:
        return pipeline_class
    if pipeline_class not in _WITH_CONTROL:
        raise UsageError(
            "--controlnet",
            got=f"a {pipeline_class}",
            expected=f"one of {', '.join(_WITH_CONTROL)}",
            remedy="Leave --controlnet out",
        )
    return _WITH_CONTROL[pipeline_class]


def load_controls(
    folder: Path, index: Mapping[str, Any], loading: Loading, *, as_stored: bool
) -> nn.Module | None:
    """Return the pipeline's ControlNetModel, a MultiControlNetModel of several, or None where it has none.

    Those that `loading` names come in place of the pipeline's own. Raises SourceError for a folder that is
    none, and for a control network of another class.
    """
    places = [_place(name) for name in loading.controlnets] or _own_places(folder, index)
    if not places:
        return None
    nets = [_load(place, loading, as_stored=as_stored) for place in places]
    return joined(nets)


def joined(nets: Sequence[nn.Module]) -> nn.Module:
    """Return one control network as it is, several as diffusers joins them."""
    from diffusers import MultiControlNetModel

    several: nn.Module = nets[0] if len(nets) == 1 else MultiControlNetModel(list(nets))
    return several.eval().requires_grad_(False)


def control_folders(folder: Path) -> list[Path]:
    """Return the folders of a pipeline's control networks: `controlnet`, `controlnet_1` and so on."""
    found: list[Path] = []
    while (place := folder / (CONTROLNET if not found else f"{CONTROLNET}_{len(found)}")).is_dir():
        found.append(place)
    return found


def _own_places(folder: Path, index: Mapping[str, Any]) -> list[Path]:
    entry = index.get(CONTROLNET)
    if not isinstance(entry, list) or not entry or entry[0] is None:
        return []
    if entry[-1] not in (CONTROL_NET, "MultiControlNetModel"):
        raise _foreign(folder / CONTROLNET, str(entry[-1]))
    found = control_folders(folder)
    if not found:
        raise SourceError(
            f"pipeline '{folder}'",
            got=f"no folder {CONTROLNET}, which model_index.json lists",
            expected="every part that it lists",
            remedy="The pipeline is incomplete: copy or download it again",
        )
    return found if entry[-1] == "MultiControlNetModel" else found[:1]


def _place(name: str) -> Path:
    if Repository.find(name) is not None:
        return local_folder(name)
    path = Path(name)
    if not (path / "config.json").is_file():
        raise SourceError(
            f"--controlnet '{name}'",
            got="no such folder" if not path.exists() else "no config.json in it",
            expected="the folder of a ControlNetModel, or its Hub id",
            remedy="Check the path",
        )
    return path


def _load(folder: Path, loading: Loading, *, as_stored: bool) -> nn.Module:
    from diffusers import ControlNetModel

    check_part(folder)
    check_numbers(folder / "config.json")
    found = _variant(folder, loading)
    half = half_type_of_part(folder, found) if as_stored else None
    try:
        config = ControlNetModel.load_config(folder)
        if config.get("_class_name", CONTROL_NET) != CONTROL_NET:
            raise _foreign(folder, str(config["_class_name"]))
        network, info = ControlNetModel.from_pretrained(
            folder,
            torch_dtype=half or torch.float32,
            variant=found,
            output_loading_info=True,
            local_files_only=True,
        )
    except SourceError:
        raise
    except Exception as fault:  # diffusers and safetensors raise many unrelated kinds on damage
        raise corrupt(folder, fault) from fault
    if info["missing_keys"]:
        names = ", ".join(sorted(info["missing_keys"])[:3])
        raise corrupt(folder, ValueError(f"no weights for {names}"))
    if network.config.global_pool_conditions:
        raise SourceError(
            f"control network '{folder}'",
            got="global_pool_conditions, which pools its residuals to one pixel",
            expected="residuals of the size of the UNet's levels",
            remedy="Use a control network without it",
        )
    if half is not None:
        compute_in_float32(network)
    loaded: nn.Module = network
    return loaded


def _variant(folder: Path, loading: Loading) -> str | None:
    """Return the variant of the weights: the pipeline's where it is there, for it may come from elsewhere."""
    chosen = Loading(loading.variant) if any(folder.glob(f"*.{loading.variant}.*")) else Loading()
    return variant_of(folder, chosen)


def _foreign(folder: Path, name: str) -> SourceError:
    return SourceError(
        f"control network '{folder}'",
        got=f"a {name}",
        expected=f"a {CONTROL_NET}: the copy of a UNet's encoder",
        remedy="Use a ControlNet of Stable Diffusion 1.5, 2.1 or SDXL",
    )
