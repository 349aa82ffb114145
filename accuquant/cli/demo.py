"""The command `accuquant demo`: every stage on a bundled model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import click

from accuquant._util.files import check_new_file, check_new_folder
from accuquant._util.processor import cpu_flags, saturates_8_bit_weights
from accuquant.bundled import EMOJI_DIT, EMOJI_UNET, FASHION_DDPM, FASHION_TEXT
from accuquant.cli._command import Command
from accuquant.cli._options import device_option, new_folder

if TYPE_CHECKING:
    from accuquant.verification.report.report import Report

ENGINE = "openvino"


@dataclass(frozen=True)
class Demo:
    """A bundled pipeline and the options of each command; what is missing is the command's default.

    The verification's seeds and prompts are other ones than those of the calibration.
    """

    source: Path
    calibration: dict[str, Any]
    verification: dict[str, Any]
    num_samples: int = 16
    sampling: dict[str, Any] = field(default_factory=dict)


_CALIBRATION = {
    "steps": 50,
    "calibration_steps": 8,
    "group_size": 5,
    "num_trajectories": 32,
    "seed": 0,
}
_VERIFICATION = {"num_images": 48, "steps": 50, "seed": 1000}
_OTHER_PROMPTS = {"prompts": FASHION_TEXT / "other-prompts.txt"}
DEMOS = {
    "fashion-ddpm": Demo(FASHION_DDPM, _CALIBRATION, _VERIFICATION),
    "fashion-text": Demo(
        FASHION_TEXT,
        {**_CALIBRATION, "steps": 25, "prompts": FASHION_TEXT / "prompts.txt"},
        {**_VERIFICATION, "steps": 25, **_OTHER_PROMPTS},
        sampling=_OTHER_PROMPTS,
    ),
    "emoji-dit": Demo(EMOJI_DIT, {**_CALIBRATION, "steps": 25}, {**_VERIFICATION, "steps": 25}),
    "emoji-unet": Demo(EMOJI_UNET, {**_CALIBRATION, "steps": 25}, {**_VERIFICATION, "steps": 25}),
}


@click.command("demo", cls=Command)
@click.option(
    "--model",
    type=click.Choice(tuple(DEMOS)),
    default="fashion-ddpm",
    show_default=True,
    help="A DDPM of gray clothes, a small Stable Diffusion that takes prompts, or emoji: by a transformer "
    "that takes classes, or by a UNet.",
)
@click.option(
    "--output-dir",
    type=new_folder,
    default=Path("demo-output"),
    show_default=True,
    help="Where the recipe, the model, images and the report go.",
)
@device_option
@click.pass_context
def command(ctx: click.Context, model: str, output_dir: Path, device: str, tf32: bool) -> None:
    """Take a bundled model to int8 and compare it with FP32.

    Calibrates W8A8, exports, samples with OpenVINO, verifies, and writes report.html. Takes a few
    minutes on two cores; run it again to resume an interrupted calibration.
    """
    report = run(DEMOS[model], output_dir, {"device": device, "tf32": tf32})
    click.echo(f"Report: {output_dir / 'report.html'}")
    if report.passed is False:
        ctx.exit(1)


def run(demo: Demo, folder: Path, place: Mapping[str, Any] = MappingProxyType({})) -> Report:
    """Run the stages into `folder`, as the four commands would, and print the verdict.

    `place` holds --device and --tf32.
    """
    from accuquant.cli import calibrate, export, verify
    from accuquant.cli._output import console_beside_json
    from accuquant.verification.report.html import write_html

    source, recipe, model = str(demo.source), folder / "recipe.safetensors", folder / "model"
    _check(folder, recipe, model)
    _heading(1, "Calibrate: int8 scales for every group of denoising steps")
    calibrate.print_summary(
        calibrate.run(source, recipe, {**_for_processor(demo.calibration), **place}), recipe
    )
    _heading(2, "Export to ONNX with int8 weights and QDQ pairs")
    export.run(source, recipe, model, {"target": "cpu", "affine": "shift"})  # also for audit and build
    _heading(3, f"Sample {demo.num_samples} images with {ENGINE}")
    _sample(demo, model, folder / "images", place)
    _heading(4, f"Verify: {demo.verification['num_images']} seeds through FP32, simulation and {ENGINE}")
    report = verify.run(model, source, {"engine": ENGINE, **demo.verification, **place})
    verify.print_verdict(console_beside_json(None), report)
    report.write_json(folder / "report.json")
    write_html(report, folder / "report.html")
    return report


def _check(folder: Path, recipe: Path, model: Path) -> None:
    """Refuse a folder in which the last of the results would find no place."""
    from accuquant.export.write.pipeline_folder import check_output

    for file in (recipe, folder / "report.json", folder / "report.html"):
        check_new_file("--output-dir", file)
    check_new_folder("--output-dir", folder / "images")
    check_output(model)


def _for_processor(calibration: dict[str, Any]) -> dict[str, Any]:
    """Return the calibration's options; 7-bit weights where OpenVINO cannot compute with 8 bits."""
    if not saturates_8_bit_weights(cpu_flags()):
        return dict(calibration)
    click.echo("This processor has no int8 dot product; OpenVINO needs 7-bit weights on it.")
    return {**calibration, "weight_bits": 7}


def _sample(demo: Demo, model: Path, output_dir: Path, place: Mapping[str, Any]) -> None:
    from accuquant.cli import sample

    options = {"engine": ENGINE, "num_images": demo.num_samples, "seed": demo.verification["seed"]}
    click.echo(f"Images: {sample.run(model, output_dir, {**options, **demo.sampling, **place})}")


def _heading(number: int, text: str) -> None:
    click.secho(f"\n{number}/4  {text}", bold=True)
