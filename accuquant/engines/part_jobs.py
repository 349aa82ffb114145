"""Jobs for the float parts of a folder that holds its whole pipeline: text encoders and autoencoder."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from accuquant._util.facts import FactsError, read_facts
from accuquant.engines.options import ShapeRange
from accuquant.engines.profile import read_inputs
from accuquant.errors import UsageError, unknown_name
from accuquant.manifest import Manifest

#: What --parts takes beside the names of parts.
ALL, NETWORK = "all", "network"
#: Tokens of a text encoder whose configuration sets no limit (T5): Flux asks for 512, SD 3 for 256.
_TOKENS = 512


def chosen_parts(manifest: Manifest, parts: str) -> tuple[str, ...]:
    """Return the parts that "all", "network" or a list like "text_encoder,vae_decoder" names.

    Raises UsageError for one that the folder does not hold.
    """
    if parts in (ALL, NETWORK):
        return manifest.parts if parts == ALL else ()
    names = tuple(dict.fromkeys(name.strip() for name in parts.split(",")))
    held = (ALL, NETWORK, *manifest.parts)
    for name in names:
        if name not in manifest.parts:
            raise unknown_name("parts", name, held)
    return names


def part_profile(
    folder: Path, part: str, *, sizes: Mapping[str, int], batch_size: int | None
) -> dict[str, ShapeRange]:
    """Return the shapes that the graph of `part` in the exported `folder` is built for.

    Up to `batch_size` prompts or images at a time, 1 by default, of the size that the network was exported
    for (`sizes`, its signature's); where that has none, because it takes packed patches, of the size that the
    autoencoder was trained at. Text has as many tokens as the encoder takes.
    """
    (inputs, _), config = read_inputs(folder / part / "model.onnx"), _configuration(folder / part)
    ((name, shape),) = inputs.items()
    largest = batch_size or 1
    if len(shape) == 2:
        tokens = _number(config, "max_position_embeddings") or _TOKENS
        rest: tuple[int, ...] = (tokens,)
    else:
        rest = (int(shape[1]), *_sides(part, sizes, config))
    return {name: ShapeRange((1, *rest), (largest, *rest), (largest, *rest))}


def _sides(part: str, sizes: Mapping[str, int], config: Mapping[str, Any]) -> tuple[int, int]:
    """Return height and width of what the autoencoder's half `part` takes: latents or pixels."""
    blocks = config.get("block_out_channels")
    if not isinstance(blocks, list) or not blocks:
        raise _no_size(part, "a configuration without block_out_channels")
    factor = 2 ** (len(blocks) - 1)
    latent: Iterable[int | None] = (sizes.get("height"), sizes.get("width"))
    side = (_number(config, "sample_size") or 0) // factor
    height, width = (extent or side for extent in latent)
    if not height or not width:
        raise _no_size(part, "a network of packed patches, and an autoencoder without sample_size")
    scale = factor if part == "vae_encoder" else 1
    return height * scale, width * scale


def _number(config: Mapping[str, Any], key: str) -> int | None:
    value = config.get(key)
    return value if isinstance(value, int) and value > 0 else None


def _configuration(folder: Path) -> dict[str, Any]:
    try:
        return read_facts(folder / "config.json", dict[str, Any])
    except (OSError, FactsError) as fault:
        raise _no_size(folder.name, f"no configuration that can be read ({fault})") from fault


def _no_size(part: str, got: str) -> UsageError:
    return UsageError(
        f"part '{part}'",
        got=got,
        expected="the size of what it takes",
        remedy="Build the network alone, --parts network, or export again with --whole-pipeline",
    )
