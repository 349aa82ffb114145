"""IP-Adapters: products for the tokens of an image beside those of the text, in every cross-attention.

Ye et al., arXiv 2308.06721, equation 5: the keys and values of an image have weights of their own (to_k_ip,
to_v_ip), and their attention, times a scale, is added to the text's. They are layers of the UNet like others.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from accuquant.errors import SourceError, UsageError, last_line
from accuquant.hub.client import client
from accuquant.hub.repository import Repository
from accuquant.pipelines.picture import open_picture
from accuquant.pipelines.task import Task

_ENCODER, _EXTRACTOR = "image_encoder", "feature_extractor"


def put_into(unet: Any, adapters: Sequence[str]) -> None:
    """Put the IP-Adapters "FILE[:SCALE]" into a UNet2DConditionModel. Raises SourceError."""
    found = [_split(text) for text in adapters]
    try:
        unet._load_ip_adapter_weights([_read(name) for name, _ in found], low_cpu_mem_usage=False)
    except SourceError:
        raise
    except Exception as fault:  # diffusers raises many unrelated kinds for weights that do not fit
        raise SourceError(
            f"IP-Adapter '{adapters[0]}'",
            got=f"{type(fault).__name__}: {last_line(fault)}",
            expected=f"one that was trained for a {type(unet).__name__} like this",
            remedy="Give an IP-Adapter of the same base model: Stable Diffusion 1.5, or SDXL",
        ) from fault
    for processor in unet.attn_processors.values():
        if hasattr(processor, "to_k_ip"):
            processor.scale = [scale for _, scale in found]
    unet.eval().requires_grad_(False)


def image_adapters(pipe: Any) -> int:
    """Return how many IP-Adapters the network of a pipeline has."""
    projections = getattr(getattr(pipe, "unet", None), "encoder_hid_proj", None)
    return len(getattr(projections, "image_projection_layers", ()))


def image_embeds(pipe: Any, task: Task, indices: Sequence[int], *, guided: bool) -> list[Any]:
    """Return a tensor [B, 1, ...] for each IP-Adapter, under guidance [2 B, 1, ...], the negative ones first.

    Image k takes image k of each adapter. Raises UsageError where there are none, or for another number of
    folders than adapters.
    """
    import torch

    count, given = image_adapters(pipe), task.ip_adapter_images
    if len(given) != count or not all(given):
        raise UsageError(
            "--ip-adapter-images",
            got=f"{len(given)} folders" if given else "none",
            expected=f"{count}: one for each IP-Adapter, with some of the images that you sample with",
            remedy="Give --ip-adapter-images FOLDER once for each IP-Adapter",
        )
    side = int(pipe.image_encoder.config.image_size)
    rows: list[list[Any]] = []
    for k in indices:
        pictures = [[open_picture(paths[k % len(paths)], "RGB", (side, side))] for paths in given]
        rows.append(pipe.prepare_ip_adapter_image_embeds(pictures, None, pipe.device, 1, guided))
    halves = 2 if guided else 1
    return [
        torch.cat([row[adapter].chunk(halves)[half] for half in range(halves) for row in rows])
        for adapter in range(count)
    ]


def let_rows_differ(pipe: Any) -> None:
    """Let a pipeline take the rows that `image_embeds` made as they are.

    It would repeat them for each prompt of its batch, so that all images of a call had the same picture. A
    single image is told the same either way.
    """
    if image_adapters(pipe) == 0:
        return
    own = pipe.prepare_ip_adapter_image_embeds

    def prepare(images: Any, embeds: Any, *rest: Any) -> Any:
        return own(images, embeds, *rest) if embeds is None else embeds

    pipe.prepare_ip_adapter_image_embeds = prepare


def image_encoder_parts(
    folder: Path, index: Mapping[str, Any], adapters: Sequence[str], given: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the parts that read an IP-Adapter's images: those beside its file, where a pipeline has none.

    Raises SourceError where neither has them.
    """
    if not adapters or _ENCODER in given or (index.get(_ENCODER) or [None])[0] is not None:
        return {}
    kit: Any = importlib.import_module("transformers")
    place = _file_of(_split(adapters[0])[0]).parent / _ENCODER
    if not (place / "config.json").is_file():
        raise SourceError(
            f"IP-Adapter '{adapters[0]}'",
            got=f"no folder {_ENCODER} beside it, and a pipeline without one",
            expected="the encoder that its images are read by",
            remedy=f"Put it there: '{place}'",
        )
    encoder = kit.CLIPVisionModelWithProjection.from_pretrained(place, local_files_only=True)
    side = int(encoder.config.image_size)
    return {_ENCODER: encoder.eval(), _EXTRACTOR: kit.CLIPImageProcessor(size=side, crop_size=side)}


def _split(text: str) -> tuple[str, float]:
    name, colon, tail = text.rpartition(":")
    if not colon or Path(text).exists():
        return text, 1.0
    try:
        return name, float(tail)
    except ValueError as fault:
        raise UsageError(
            f"--ip-adapter '{text}'",
            got=f"the scale '{tail}'",
            expected="FILE:SCALE with a number",
            remedy="Correct the scale, or leave it and the colon out for 1",
        ) from fault


def _file_of(name: str) -> Path:
    path, words = Path(name), name.split("/")
    if path.is_file() and path.suffix == ".safetensors":
        return path
    repository = Repository.find("/".join(words[:2])) if len(words) > 2 and not path.exists() else None
    if repository is None or path.suffix != ".safetensors":
        raise SourceError(
            f"IP-Adapter '{name}'",
            got="a file that does not end in .safetensors" if path.exists() else "no such file",
            expected="a .safetensors file, or user/name/folder/file.safetensors of the Hub",
            remedy="Check the path; other formats can run code when they are read",
        )
    inside = "/".join(words[2:])
    root = client().snapshot_download(
        repository.id,
        revision=repository.revision,
        allow_patterns=[inside, f"{Path(inside).parent.as_posix()}/{_ENCODER}/*"],
    )
    return Path(root) / inside


def _read(name: str) -> dict[str, dict[str, Any]]:
    """Return the tensors of a file under the two names that diffusers expects."""
    from safetensors import safe_open

    found: dict[str, dict[str, Any]] = {"image_proj": {}, "ip_adapter": {}}
    with safe_open(_file_of(name), framework="pt") as file:
        for key in file.keys():  # noqa: SIM118, no mapping
            kind, _, rest = key.partition(".")
            if kind in found:
                found[kind][rest] = file.get_tensor(key).float()
    if not all(found.values()):
        raise SourceError(
            f"IP-Adapter '{name}'",
            got="a file without the tensors of one",
            expected="tensors called image_proj... and ip_adapter...",
            remedy="Give the file of an IP-Adapter",
        )
    return found
