"""The command `accuquant demo`: every stage on the bundled model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from accuquant.bundled import FASHION_DDPM
from accuquant.cli._command import Command
from accuquant.cli._options import new_path
from accuquant.processor import cpu_flags, saturates_8_bit_weights

if TYPE_CHECKING:
    from accuquant.verification.report import Report

#: What the demo calibrates with; the rest are the defaults of `accuquant calibrate`.
CALIBRATION: dict[str, Any] = {
    "steps": 50,
    "group_size": 5,
    "num_trajectories": 32,
    "iterations": 8,
    "shared_iterations": 40,
    "seed": 0,
}
#: What the demo verifies; the seeds are other ones than those of the calibration.
VERIFICATION: dict[str, Any] = {"num_images": 48, "steps": 50, "seed": 1000}
ENGINE = "openvino"
NUM_SAMPLES = 16


@click.command("demo", cls=Command, short_help="Take the bundled model to int8, the whole way.")
@click.option(
    "--output-dir",
    type=new_path,
    default=Path("demo-output"),
    show_default=True,
    help="Where the recipe, the model, images and the report go.",
)
@click.pass_context
def command(ctx: click.Context, output_dir: Path) -> None:
    """Take the bundled model, a small DDPM of clothing, to int8 and compare it with FP32.

    Calibrates W8A8, exports, samples with OpenVINO, verifies, and writes report.html. Takes a few
    minutes on two cores; run it again to resume an interrupted calibration.
    """
    report = run(output_dir)
    click.echo(f"Report: {output_dir / 'report.html'}")
    if not report.passed:
        ctx.exit(1)


def run(folder: Path) -> Report:
    """Run the stages into `folder`, as the four commands would, and print the verdict."""
    from accuquant.cli import calibrate, export, verify
    from accuquant.cli._output import console_beside_json

    source, recipe, model = str(FASHION_DDPM), folder / "recipe.safetensors", folder / "model"
    _heading(1, "Calibrate: int8 scales for every group of denoising steps")
    calibrate.print_summary(calibrate.run(source, recipe, _calibration()), recipe)
    _heading(2, "Export to ONNX with int8 weights and QDQ pairs")
    export.run(source, recipe, model, {})
    _heading(3, f"Sample {NUM_SAMPLES} images with {ENGINE}, without torch in the loop")
    _sample(model, folder / "images")
    _heading(4, f"Verify: {VERIFICATION['num_images']} seeds through FP32, simulation and {ENGINE}")
    report = verify.run(model, source, {"engine": ENGINE, **VERIFICATION})
    report.write_json(folder / "report.json")
    report.write_html(folder / "report.html")
    verify.print_verdict(console_beside_json(None), report)
    return report


def _calibration() -> dict[str, Any]:
    """Return the calibration's options; 7-bit weights where OpenVINO cannot compute with 8 bits."""
    if not saturates_8_bit_weights(cpu_flags()):
        return dict(CALIBRATION)
    click.echo("This processor has no int8 dot product; OpenVINO needs 7-bit weights on it.")
    return {**CALIBRATION, "weight_bits": 7}


def _sample(model: Path, output_dir: Path) -> None:
    from accuquant.cli import sample

    grid = sample.run(
        model, output_dir, {"engine": ENGINE, "num_images": NUM_SAMPLES, "seed": VERIFICATION["seed"]}
    )
    click.echo(f"Images: {grid}")


def _heading(number: int, text: str) -> None:
    click.secho(f"\n{number}/4  {text}", bold=True)
