"""Compare quantized images with full-precision ones, method by method, the same layers quantized.

    python benchmarks/fidelity_tools.py --cache-dir fidelity-cache
    python benchmarks/fidelity_tools.py --cache-dir fidelity-cache --methods accuquant --bits W4A8
    python benchmarks/fidelity_tools.py --cache-dir fidelity-cache --table-only

A run goes on where it was stopped, several processes may work on one cache folder with different methods, and
the last command prints what is there.

FID2FP32 is the Frechet distance between the features of the quantized and of the FP32 pipeline's images,
PSNR and latent MSE compare the two pipelines seed by seed. No seed was seen by any calibration.
"""

from __future__ import annotations

import argparse
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from fidelity_methods import METHODS, Bits, Method, cached_file, latents_of
from fidelity_study import Study
from report import add_json_option, print_report
from rich.console import Console
from torch import Tensor

from accuquant.bundled import FASHION_DDPM
from accuquant.calibration import CalibrationSettings
from accuquant.calibration.placement import Placement
from accuquant.cli._progress import Bars
from accuquant.pipelines.source import load_source
from accuquant.scales.placement_patterns import DEFAULT_EXCLUDE
from accuquant.verification.measure.feature_networks import FeatureExtractor
from accuquant.verification.measure.features import fid_to_fp32, load_features
from accuquant.verification.measure.metrics import Summary, mse, psnr, to_images

_COLUMNS = ("bits, method", "FID2FP32", "PSNR median", "mean", "min dB", "latent MSE median", "mean")


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    defaults = CalibrationSettings()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--model", default=str(FASHION_DDPM), help="a diffusers pipeline (default: the bundled one)")
    add("--bits", nargs="+", type=Bits.parse, default=[Bits(8, 8), Bits(8, 6), Bits(4, 8)], metavar="W8A8")
    add(
        "--methods",
        nargs="+",
        choices=METHODS,
        default=list(METHODS),
        metavar="METHOD",
        help=", ".join(METHODS),
    )
    add("--steps", type=int, default=50, help="sampler steps (default: %(default)s)")
    add("--num-images", type=int, default=256, help="seeds (default: %(default)s)")
    add("--seed", type=int, default=100_000, help="first seed (default: %(default)s)")
    add("--exclude", action="append", default=[], metavar="PATTERN", help="leave these layers in float too")
    add("--float-budget", type=float, default=0.0, help="share of MACs left in float by sensitivity")
    add("--group-size", type=int, default=defaults.group_size)
    add("--num-trajectories", type=int, default=defaults.num_trajectories)
    add("--iterations", type=int, default=defaults.iterations)
    add("--shared-iterations", type=int, default=defaults.shared_iterations)
    add("--batch-size", type=int, default=defaults.batch_size)
    add("--calibration-seed", type=int, default=0)
    add("--set", action="append", default=[], metavar="NAME=VALUE", help="a field of CalibrationSettings")
    add("--engine", choices=("torch", "openvino", "onnxruntime"), default="torch", help="runs our recipes")
    add("--sampling-batch", type=int, default=32)
    add("--features", default="auto", help="feature network of FID2FP32 (default: %(default)s)")
    add("--threads", type=int, default=2)
    add("--cache-dir", type=Path, default=Path("fidelity-cache"), help="recipes and latents")
    add("--table-only", action="store_true", help="print what the cache holds, compute nothing")
    add_json_option(parser)
    arguments = parser.parse_args()
    calibration = range(arguments.calibration_seed, arguments.calibration_seed + arguments.num_trajectories)
    judged = range(arguments.seed, arguments.seed + arguments.num_images)
    if calibration.start < judged.stop and judged.start < calibration.stop:
        parser.error(f"--seed: seeds {judged} overlap the calibration's {calibration}")
    return arguments


def make_study(arguments: argparse.Namespace) -> Study:
    """Load the pipeline and collect what the methods share."""
    source = load_source(arguments.model)
    if source.signature.conditioning:
        raise SystemExit("This benchmark compares unconditional pipelines only.")
    settings = CalibrationSettings(
        steps=arguments.steps,
        group_size=arguments.group_size,
        num_trajectories=arguments.num_trajectories,
        iterations=arguments.iterations,
        shared_iterations=arguments.shared_iterations,
        batch_size=arguments.batch_size,
        exclude=tuple(arguments.exclude),
        float_budget=arguments.float_budget,
        seed=arguments.calibration_seed,
        **dict(_field(text) for text in arguments.set),
    )
    return Study(
        source=source,
        settings=settings,
        cache=arguments.cache_dir,
        num_images=arguments.num_images,
        seed=arguments.seed,
        batch_size=arguments.sampling_batch,
        engine=arguments.engine,
        threads=arguments.threads,
    )


def _field(text: str) -> tuple[str, Any]:
    name, _, value = text.partition("=")
    default = getattr(CalibrationSettings(), name, None)
    if isinstance(default, bool):
        return name, value.lower() in ("1", "true", "yes")
    if not isinstance(default, int | float | str):
        raise SystemExit(f"--set {text}: CalibrationSettings has no field '{name}' of a plain type")
    return name, type(default)(value)


def judge(latents: Tensor, reference: Tensor, extractor: FeatureExtractor | None) -> dict[str, Any]:
    """Return the metrics of latents [N, C, H, W] against the FP32 pipeline's."""
    images, truth = to_images(latents), to_images(reference)
    decibels, errors = Summary.of(psnr(images, truth)), Summary.of(mse(latents, reference))
    return {
        "fid2fp32": fid_to_fp32(extractor, images, truth) if extractor else None,
        "psnr": vars(decibels),
        "latent_mse": vars(errors),
    }


def row(bits: Bits, method: Method, measured: dict[str, Any]) -> list[str]:
    """Return the cells of one line of the table."""
    decibels, errors = measured["psnr"], measured["latent_mse"]
    fid = measured["fid2fp32"]
    return [
        f"{bits} {method.name}",
        "-" if fid is None else f"{fid:.4f}",
        *(f"{decibels[name]:.2f}" for name in ("median", "mean", "minimum")),
        *(f"{errors[name]:.2e}" for name in ("median", "mean")),
    ]


def _float_layers(placement: Placement) -> str:
    """Return what stays in float: how many layers by default, and the others by name."""
    others = [n for n in placement.float_layers if not any(fnmatchcase(n, p) for p in DEFAULT_EXCLUDE)]
    count = len(placement.float_layers) - len(others)
    return ", ".join([f"{count} layers by default (AccuQuant's DEFAULT_EXCLUDE)", *others])


def main() -> None:
    """Run every method that the cache lacks, then print the table."""
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    study = make_study(arguments)
    shape = study.source.signature.sample.resolve(study.source.signature.sizes | {"batch": 1})[1:]
    extractor = load_features(arguments.features, shape) if arguments.num_images > 1 else None
    pairs = [(b, METHODS[m]) for b in arguments.bits for m in arguments.methods if METHODS[m].supports(b)]
    if arguments.table_only:
        missing = [f"{bits} {m.name}" for bits, m in pairs if not cached_file(study, m, bits).is_file()]
        pairs = [(bits, m) for bits, m in pairs if cached_file(study, m, bits).is_file()]
        print(f"Not in the cache: {', '.join(missing)}" if missing else "All of it is in the cache.")
    with Bars(Console(stderr=True, highlight=False)) as progress:
        placement = study.placement(progress)
        reference = study.reference(progress)
        measured = []
        for bits, method in pairs:
            figures = judge(latents_of(study, method, bits, progress), reference, extractor)
            measured.append((bits, method, figures))
            progress.message(f"{bits} {method.name}: median PSNR {figures['psnr']['median']:.2f} dB")
    scheduler = type(study.source.scheduler).__name__.removesuffix("Scheduler")
    print_report(
        f"{Path(arguments.model).name}, {scheduler} {arguments.steps} steps, {arguments.num_images} seeds "
        f"from {arguments.seed}; {placement.int8_share:.1%} of the MACs quantized, the same layers for all",
        _COLUMNS,
        [row(*entry) for entry in measured],
        notes=[f"{m.name}: {m.meaning}" for m in dict.fromkeys(m for _, m, _ in measured)]
        + [f"In float: {_float_layers(placement)}"],
        record={
            "settings": {**study.sampling, "engine": arguments.engine, **study.settings.to_dict()},
            "int8_mac_share": placement.int8_share,
            "float_layers": placement.float_layers,
            "results": [{"bits": str(b), "method": m.name, **figures} for b, m, figures in measured],
        },
        json_path=arguments.json,
    )


if __name__ == "__main__":
    main()
