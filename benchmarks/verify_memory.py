"""Measure the peak memory of whole `accuquant verify` or `evaluate` commands for several numbers of images.

    python benchmarks/verify_memory.py
    python benchmarks/verify_memory.py --command evaluate --steps 1

Each number of images is one fresh process, from start to report; "peak" is its ru_maxrss. The recipe behind
the exported folder is made in seconds, since scales do not change what memory it takes.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from report import add_json_option, print_report

_MODEL = Path(__file__).parents[1] / "accuquant" / "data" / "fashion-ddpm"
_GB = 1e9
#: One arena, and a fixed threshold above which freed memory goes back at once: less allocator noise.
_ALLOCATOR = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "262144"}
_QUICK = (
    "--steps", "4", "--group-size", "2", "--num-trajectories", "2", "--batch-size", "2", "--iterations", "0",
    "--shared-iterations", "0", "--observer", "minmax", "--no-refine", "--rounding", "nearest",
    "--weight-bits", "7",
)  # fmt: skip

#: Options of one of the commands: nothing is judged, and every output of the feature network is kept.
_OWN = {
    "verify": ("--min-psnr", "none", "--min-lowering-psnr", "none"),
    "evaluate": ("--metrics", "fid2fp32,psnr,ssim,is", "--resamples", "20"),
}


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--command", choices=tuple(_OWN), default="verify")
    parser.add_argument("--images", nargs="+", type=int, default=[64, 2048], metavar="N")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--engine", default="openvino")
    parser.add_argument("--device", default="cpu")
    add_json_option(parser)
    return parser.parse_args()


def run(*arguments: str) -> tuple[float, float]:
    """Run `accuquant` with `arguments` -> peak resident bytes, seconds."""
    begun = time.perf_counter()
    command = [sys.executable, "-m", "accuquant", *arguments]
    process = subprocess.Popen(command, env=os.environ | _ALLOCATOR, stdout=sys.stderr)
    _, status, usage = os.wait4(process.pid, 0)  # the usage of this child alone
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed ({process.returncode})")
    return usage.ru_maxrss * 1024.0, time.perf_counter() - begun


def export(folder: Path) -> Path:
    """Calibrate and export the bundled model into `folder`, in seconds."""
    recipe, output = folder / "recipe.safetensors", folder / "out"
    run("calibrate", str(_MODEL), "-o", str(recipe), *_QUICK)
    run("export", str(_MODEL), "--recipe", str(recipe), "-o", str(output), "--target", "cpu")
    return output


def main() -> None:
    """Measure, and print the peaks relative to that of the fewest images."""
    arguments = parse_arguments()
    results: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory(prefix="accuquant-verify-memory-") as folder:
        output = export(Path(folder))
        for images in arguments.images:
            peak, seconds = run(
                arguments.command, str(output), "--reference", str(_MODEL), "--num-images", str(images),
                "--steps", str(arguments.steps), "--batch-size", str(arguments.batch_size),
                "--engine", arguments.engine, "--device", arguments.device, "--html",
                str(Path(folder) / "report.html"), *_OWN[arguments.command],
            )  # fmt: skip
            results.append({"images": images, "peak": peak, "seconds": seconds})
            print(f"{images} images: {peak / _GB:.3f} GB", file=sys.stderr)
    first = results[0]["peak"]
    print_report(
        f"accuquant {arguments.command} of the bundled model, {arguments.steps} steps, "
        f"batches of {arguments.batch_size}, {arguments.engine}",
        ("images", "peak GB", f"relative to {arguments.images[0]}", "seconds"),
        [
            [
                f"{r['images']:.0f}",
                f"{r['peak'] / _GB:.3f}",
                f"{r['peak'] / first:.3f}",
                f"{r['seconds']:.0f}",
            ]
            for r in results
        ],
        notes=[str(_ALLOCATOR)],
        record={"steps": arguments.steps, "batch_size": arguments.batch_size, "results": results},
        json_path=arguments.json,
    )


if __name__ == "__main__":
    main()
