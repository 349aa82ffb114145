"""Measure what the form in which OpenVINO runs an export on this processor costs its images.

    accuquant demo --output-dir DEMO
    python benchmarks/form_images.py DEMO/model --reference accuquant/data/fashion-ddpm --num-images 64

The same recipe and the same seeds in each form: PSNR of the engine's images against full precision and
against the simulation (`accuquant verify`), and the change from the file as it is written, image by image.
Forms compute the same function; what differs is where values round last.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from report import add_json_option, print_report

from accuquant._util.processor import cpu_flags
from accuquant.pipelines.source import load_source
from accuquant.pipelines.task import Task
from accuquant.runtime.cpu_forms.form import AS_WRITTEN, CpuForm
from accuquant.runtime.cpu_forms.rule import form_by_rule
from accuquant.runtime.openvino_runner import OpenVinoRunner
from accuquant.verification import Report, Thresholds, verify

#: What is not judged: a verdict.
_NO_LIMITS = Thresholds(min_psnr=None, max_fid=None, min_lowering_psnr=None)


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="what `accuquant export` wrote")
    parser.add_argument("--reference", required=True, help="the pipeline that it came from")
    parser.add_argument("--prompts", type=Path, help="a text file, one prompt a line")
    parser.add_argument("--num-images", type=int, default=64)
    parser.add_argument("--seed", type=int, default=20_000)
    parser.add_argument("--steps", type=int, help="those of the calibration by default")
    add_json_option(parser)
    return parser.parse_args()


def forms() -> dict[str, CpuForm]:
    """Return the forms to compare, what the file says first."""
    rule = form_by_rule(cpu_flags())[0]
    candidates = {
        "as written": AS_WRITTEN,
        "inside, channels, equal": CpuForm("inside", "channels", "equal"),
        "and products as convolutions": CpuForm("inside", "channels", "equal", products="convolutions"),
        "this processor's rule": rule,
    }
    return {
        name: form
        for k, (name, form) in enumerate(candidates.items())
        if form not in [*candidates.values()][:k]
    }


def measured(arguments: argparse.Namespace, form: CpuForm) -> Report:
    """Verify the folder with the network in `form`."""
    options: dict[str, Any] = {"num_images": arguments.num_images, "seed": arguments.seed}
    if arguments.prompts is not None:
        options["task"] = Task(prompts=tuple(arguments.prompts.read_text().splitlines()))
    defaults = OpenVinoRunner.__init__.__kwdefaults__
    with patch.dict(defaults, form=form):
        return verify(
            arguments.folder,
            load_source(arguments.reference),
            steps=arguments.steps,
            features="none",
            thresholds=_NO_LIMITS,
            **options,
        )


def change(psnr: Sequence[float] | np.ndarray, base: Sequence[float]) -> str:
    """Return the mean change in dB, image by image, with its standard error."""
    difference = np.asarray(psnr) - np.asarray(base)
    return f"{difference.mean():+.2f} ± {difference.std(ddof=1) / np.sqrt(len(difference)):.2f}"


def main() -> None:
    """Verify in each form, and print the table."""
    arguments = parse_arguments()
    reports = {name: measured(arguments, form) for name, form in forms().items()}
    first = next(iter(reports.values()))
    rows = []
    for name, report in reports.items():
        psnr, simulated = np.asarray(report.fidelity.psnr), np.asarray(report.lowering.psnr)
        rows.append(
            [
                name,
                f"{np.median(psnr):.2f}",
                f"{psnr.mean():.2f}",
                f"{psnr.min():.1f}",
                change(psnr, first.fidelity.psnr),
                f"{np.median(simulated):.2f}",
                change(simulated, first.lowering.psnr),
            ]
        )
    print_report(
        f"{arguments.folder}: {arguments.num_images} images in each form",
        ("form", "median PSNR, dB", "mean", "worst", "change", "against simulation, dB", "change"),
        rows,
        record={
            name: {"psnr": list(report.fidelity.psnr), "simulation": list(report.lowering.psnr)}
            for name, report in reports.items()
        },
        json_path=arguments.json,
    )


if __name__ == "__main__":
    main()
