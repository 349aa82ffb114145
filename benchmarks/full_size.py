"""Run whole commands on networks of full size, with random weights: peak memory and time by stage.

    python benchmarks/full_size.py --model sd15
    python benchmarks/full_size.py --model sdxl --dtype bfloat16
    python benchmarks/full_size.py --model flux --dtype bfloat16 --blocks 2 4

The published configuration is written once as a pipeline folder (tiny text encoders, small images), and
`accuquant calibrate` runs on it as a process of its own. The largest resident memory (VmHWM) is read and
begun anew at every stage that the command reports. "file pages" are what of it the kernel may drop at any
time: weights mapped from safetensors. `--export` runs `accuquant export` with the recipe, too.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from report import add_json_option, print_report

_GB = 1e9
#: Freed memory goes back at once, so that a peak is what was needed.
_ALLOCATOR = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "262144"}
_PROMPTS = ("a b c", "d e f", "g h", "i j k l")


@dataclass
class Stage:
    """A stage of a command: the largest resident memory in bytes, of it file pages, and when it began."""

    name: str
    began: float
    peak: float = 0.0
    anonymous: float = 0.0


@dataclass
class Watched:
    """A command while it runs, and its stages so far."""

    process: subprocess.Popen[str]
    stages: list[Stage] = field(default_factory=list)

    def begin(self, name: str) -> None:
        """Begin a stage: from here on the largest memory is the new stage's."""
        self.look()
        self.stages.append(Stage(name, time.monotonic()))
        try:
            Path(f"/proc/{self.process.pid}/clear_refs").write_text("5")
        except OSError:
            return  # it has ended

    def look(self) -> None:
        """Read the memory of the process; /proc counts in kB."""
        try:
            text = Path(f"/proc/{self.process.pid}/status").read_text()
        except OSError:
            return
        values = {line.split(":")[0]: line.split() for line in text.splitlines()}
        if self.stages and "VmHWM" in values:
            stage = self.stages[-1]
            stage.peak = max(stage.peak, 1024.0 * float(values["VmHWM"][1]))
            stage.anonymous = max(stage.anonymous, 1024.0 * float(values["RssAnon"][1]))


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="sd15", choices=("tiny", "sd15", "sdxl", "flux"))
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--blocks", nargs="+", type=int, default=[2], help="blocks of each kind, for flux")
    parser.add_argument("--size", type=int, default=16, help="latent height and width (default: %(default)s)")
    parser.add_argument("--work", type=Path, help="keep pipelines and results in this folder")
    parser.add_argument("--export", action="store_true", help="export with the recipe too")
    parser.add_argument("options", nargs="*", help="options of calibrate, behind --")
    add_json_option(parser)
    return parser.parse_args()


def run(command: list[str]) -> list[Stage]:
    """Run a command of accuquant in a process of its own -> its stages, with an end as the last."""
    print(" ".join(command), file=sys.stderr)
    process = subprocess.Popen(
        [sys.executable, "-m", "accuquant", *command], env=os.environ | _ALLOCATOR,
        stderr=subprocess.PIPE, text=True, bufsize=1,
    )  # fmt: skip
    watched = Watched(process)
    watched.begin("loading")
    reader = threading.Thread(target=_read, args=(watched,))
    reader.start()
    while process.poll() is None:
        watched.look()
        time.sleep(0.05)
    reader.join()
    if process.returncode:
        raise SystemExit(f"the command ended with {process.returncode}")
    return [*watched.stages, Stage("", time.monotonic())]


def _read(watched: Watched) -> None:
    assert watched.process.stderr is not None
    for line in watched.process.stderr:
        print(line, end="", file=sys.stderr)
        if line.rstrip().endswith(" ..."):
            watched.begin(line.strip().removesuffix(" ..."))


def write(arguments: argparse.Namespace, folder: Path, blocks: int) -> float:
    """Write the pipeline unless it is there, in a process of its own -> bytes of its weights in float32."""
    changes = {"num_layers": blocks, "num_single_layers": blocks} if arguments.model == "flux" else {}
    if arguments.model != "flux":
        changes = {"sample_size": arguments.size}
    code = (
        "import sys, torch; from pathlib import Path; from large_networks import write_pipeline; "
        f"write_pipeline({arguments.model!r}, Path(sys.argv[1]), dtype=torch.{arguments.dtype}, "
        f"**{changes!r})"
    )
    if not (folder / "model_index.json").is_file():
        subprocess.run([sys.executable, "-c", code, str(folder)], check=True, cwd=Path(__file__).parent)
    count = sum(p.stat().st_size for p in folder.glob("*/diffusion_pytorch_model-*.safetensors"))
    return float(count * (1 if arguments.dtype == "float32" else 2))


def commands(arguments: argparse.Namespace, folder: Path) -> dict[str, list[str]]:
    """Return what is run on the pipeline in `folder`."""
    prompts, recipe = folder.parent / "prompts.txt", folder.with_name(f"{folder.name}.safetensors")
    prompts.write_text("\n".join(_PROMPTS) + "\n")
    recipe.unlink(missing_ok=True)
    quick = [
        "--steps", "2", "--group-size", "1", "--num-trajectories", "2", "--batch-size", "1",
        "--iterations", "1", "--shared-iterations", "1", "--device", "cpu",
    ]  # fmt: skip
    size = [f"--image-size={8 * arguments.size}"] if arguments.model == "flux" else []
    chosen = [*quick, "--prompts", str(prompts), *size, *arguments.options]
    found = {"calibrate": ["calibrate", str(folder), "-o", str(recipe), *chosen]}
    if arguments.export:
        output = folder.with_name(f"{folder.name}-int8")
        found["export"] = ["export", str(folder), "--recipe", str(recipe), "-o", str(output)]
    return found


def main() -> None:
    """Run the commands and print what their stages took."""
    arguments = parse_arguments()
    rows: list[list[str]] = []
    results = []
    with tempfile.TemporaryDirectory() as temporary:
        for blocks in arguments.blocks if arguments.model == "flux" else [0]:
            title = f"{arguments.model}-{arguments.dtype}" + (f"-{blocks}" if blocks else "")
            folder = (arguments.work or Path(temporary)) / title
            weights = write(arguments, folder, blocks)
            for name, command in commands(arguments, folder).items():
                stages = run(command)
                rows += _rows(f"{title} {name}", stages, weights)
                results.append({
                    "model": title, "command": name, "weights": weights,
                    "stages": [vars(stage) for stage in stages],
                })  # fmt: skip
    print_report(
        f"Whole commands, latents {arguments.size}x{arguments.size}",
        ("", "s", "peak GB", "anonymous GB", "peak / fp32 weights"),
        rows,
        notes=[f"Random weights; {_ALLOCATOR}; peak is VmHWM, file pages included"],
        record={"results": results},
        json_path=arguments.json,
    )


def _rows(title: str, stages: list[Stage], weights: float) -> list[list[str]]:
    rows = [
        [
            f"  {stage.name}", f"{after.began - stage.began:.0f}", f"{stage.peak / _GB:.2f}",
            f"{stage.anonymous / _GB:.2f}", f"{stage.peak / weights:.2f}",
        ]
        for stage, after in pairwise(stages)
    ]  # fmt: skip
    peak, anonymous = max(s.peak for s in stages), max(s.anonymous for s in stages)
    whole = f"{title} ({weights / _GB:.2f} GB in fp32)"
    seconds = stages[-1].began - stages[0].began
    return [
        [whole, f"{seconds:.0f}", f"{peak / _GB:.2f}", f"{anonymous / _GB:.2f}", f"{peak / weights:.2f}"],
        *rows,
    ]


if __name__ == "__main__":
    main()
