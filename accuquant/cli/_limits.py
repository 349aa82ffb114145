"""The threshold options of `accuquant verify`."""

from __future__ import annotations

import click

from accuquant.cli._options import Function

_OFF = "none"
#: Field of Thresholds -> (default, help text); spelled out because the library's module loads torch.
LIMITS: dict[str, tuple[str, str]] = {
    "min_psnr": ("30", "Median PSNR against FP32, in dB."),
    "min_ssim": (_OFF, "Median SSIM against FP32."),
    "min_cosine": (_OFF, "Median cosine against FP32."),
    "max_fid": (_OFF, "FID2FP32."),
    "min_lowering_psnr": ("35", "Median PSNR of the engine against the simulation, in dB."),
    "max_level_share": ("0.001", "Share of a layer's values on another int8 level, with --layers."),
    "max_level_difference": ("1", "Levels that a value may be off, with --layers."),
    "min_int8_share": (_OFF, "Share of the calibrated layers' work that really runs in int8 (OpenVINO)."),
}


def limit(value: str) -> float | None:
    """Read a number, or None from "none", which switches the check off."""
    if value.lower() == _OFF:
        return None
    try:
        return float(value)
    except ValueError:
        raise click.BadParameter(f"'{value}' is neither a number nor '{_OFF}'.") from None


def limit_options(function: Function) -> Function:
    """Add one option for each threshold."""
    for name, (default, text) in reversed(LIMITS.items()):
        function = click.option(
            f"--{name.replace('_', '-')}",
            type=limit,
            metavar="NUMBER",
            default=default,
            show_default=True,
            help=text,
        )(function)
    return function
