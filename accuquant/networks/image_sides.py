"""Which image sizes a network takes: in calibration, in a traced graph and in an engine alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from accuquant.errors import UsageError
from accuquant.networks.control_signature import CONTROL_NET, CONTROLLED, halvings
from accuquant.networks.signature import Signature

_SIDES = ("height", "width")


def side_multiple(architecture: str, config: Mapping[str, Any]) -> int:
    """Return what a network's image sides must be divisible by, where they may vary.

    2 for each level but the last in a UNet2DModel, which doubles what it had halved. UNet2DConditionModel
    upsamples to the size of its skip connections, so every side is right, but beside a control network, where
    each level has an input of its own size.
    """
    levels = config.get("down_block_types")
    halves = architecture in ("UNet2DModel", CONTROLLED, CONTROL_NET)
    if not halves or not levels:
        return 1
    return int(2 ** (len(levels) - 1))


def multiple_of(signature: Signature, config: Mapping[str, Any]) -> int:
    """Return what the image sides of a network with `signature` must be divisible by."""
    return max(side_multiple(signature.architecture, config), halvings(signature))


def check_sample(
    signature: Signature, config: Mapping[str, Any], shape: Sequence[int], *, option: str = "--image-size"
) -> None:
    """Raise UsageError unless a network takes a sample of `shape` [B, C, H, W] or [B, N, C].

    `option` is what the error names: sizes are counted as the network sees them, in latents.
    """
    expected = signature.sample.shape
    multiple = multiple_of(signature, config)
    fits = len(shape) == len(expected) and all(
        given == extent if isinstance(extent, int) else extent not in _SIDES or given % multiple == 0
        for extent, given in zip(expected, shape, strict=True)
    )
    if fits:
        return
    sides = "x".join(map(str, shape[1:]))
    wanted = "x".join(_word(extent, multiple) for extent in expected[1:])
    raise UsageError(
        f"{option}, network {signature.architecture}",
        got=f"a sample of {sides}",
        expected=f"{wanted}, which its layers can compute",
        remedy="Choose another size, or leave it to the network's own",
    )


def _word(extent: int | str, multiple: int) -> str:
    if isinstance(extent, int):
        return str(extent)
    return f"({extent}, a multiple of {multiple})" if extent in _SIDES and multiple > 1 else f"({extent})"
