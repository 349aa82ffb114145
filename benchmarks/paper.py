"""Run a benchmark of the papers: calibrate, export, evaluate, and print our row beside the published ones.

    python benchmarks/paper.py cifar10 --real cifar10-train/
    python benchmarks/paper.py sd14 --prompts captions_val2014.json --real val2014/
    python benchmarks/paper.py cifar10 --model fashion-ddpm --num-images 64 --metrics fid2fp32,psnr,ssim

benchmarks/paper/<name>.toml has the model, the options of the three commands and the published rows. The
model is downloaded; `--model` puts another in its place, bundled ones by their name. What is finished stays
in the work folder: an interrupted run goes on. `--set STAGE.OPTION=VALUE` changes any option of a command.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from report import add_json_option, print_report

from accuquant.bundled import EMOJI_DIT, FASHION_DDPM, FASHION_TEXT
from accuquant.cli.main import main as accuquant
from accuquant.evaluation.metrics import METRICS

FOLDER = Path(__file__).with_name("paper")
STAGES = ("calibrate", "export", "evaluate")
BUNDLED = {"fashion-ddpm": FASHION_DDPM, "fashion-text": FASHION_TEXT, "emoji-dit": EMOJI_DIT}
_OURS = "this run"


@dataclass(frozen=True)
class Benchmark:
    """A file of benchmarks/paper: `options` by command, and rows of figures by the names of metrics."""

    title: str
    model: str
    needs: str
    exemptions: str
    options: Mapping[str, Mapping[str, Any]]
    published: Sequence[Mapping[str, Any]] = field(default_factory=list)
    scheduler: str | None = None
    differs: str | None = None

    @classmethod
    def read(cls, path: Path) -> Benchmark:
        """Read a file."""
        if sys.version_info >= (3, 11):
            import tomllib
        else:
            import tomli as tomllib
        data = tomllib.loads(path.read_text(encoding="utf-8"))
        options = {stage: data.pop(stage) for stage in STAGES}
        return cls(options=options, **data)


def main() -> None:
    """Run the benchmark that the command line names."""
    arguments = parsed()
    benchmark = Benchmark.read(FOLDER / f"{arguments.name}.toml")
    options = {stage: dict(benchmark.options[stage]) for stage in STAGES}
    apply(arguments, options)
    work = arguments.work_dir or Path(f"paper-{arguments.name}")
    work.mkdir(parents=True, exist_ok=True)
    source = prepared(arguments.model or benchmark.model, benchmark.scheduler, work / "pipeline")
    recipe, exported, result = work / "recipe.safetensors", work / "model", work / "result.json"
    if not recipe.exists():
        run("calibrate", [source, "-o", str(recipe)], options["calibrate"])
    if not exported.exists():
        run("export", [source, "--recipe", str(recipe), "-o", str(exported)], options["export"])
    files = ["--json", str(result), "--html", str(work / "report.html"), "--work-dir", str(work / "shards")]
    run("evaluate", [str(exported), "--reference", source, *files], options["evaluate"])
    show(benchmark, arguments, json.loads(result.read_text(encoding="utf-8")))


def parsed() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", choices=sorted(path.stem for path in FOLDER.glob("*.toml")))
    parser.add_argument(
        "--model", help=f"a folder, a Hub id, {' or '.join(BUNDLED)} in the named one's place"
    )
    parser.add_argument("--num-images", type=int, help="images to evaluate")
    parser.add_argument("--steps", type=int, help="sampler steps")
    parser.add_argument(
        "--metrics", help="comma-separated; those that need real images are left out without them"
    )
    parser.add_argument("--real", help="a folder of real images, or an .npz")
    parser.add_argument("--prompts", help="a file of prompts to evaluate with, and to calibrate with")
    parser.add_argument("--calibration-prompts", help="other prompts to calibrate with")
    parser.add_argument("--set", action="append", default=[], metavar="STAGE.OPTION=VALUE", dest="changes")
    parser.add_argument("--work-dir", type=Path, help="where everything goes; paper-<name> by default")
    add_json_option(parser)
    return parser.parse_args()


def apply(arguments: argparse.Namespace, options: dict[str, dict[str, Any]]) -> None:
    """Put what the command line says into the options of the three commands."""
    evaluation, calibration = options["evaluate"], options["calibrate"]
    prompts, learned = arguments.prompts, arguments.calibration_prompts or arguments.prompts
    if arguments.model == "fashion-text":
        prompts = prompts or str(FASHION_TEXT / "other-prompts.txt")
        learned = learned or str(FASHION_TEXT / "prompts.txt")
    given = {"num-images": arguments.num_images, "real": arguments.real, "prompts": prompts}
    evaluation |= {name: value for name, value in given.items() if value is not None}
    if learned is not None:
        calibration["prompts"] = learned
    if arguments.steps is not None:
        calibration["steps"] = arguments.steps
    if arguments.metrics is not None:
        evaluation["metrics"] = arguments.metrics.split(",")
    if arguments.model in BUNDLED:
        evaluation["features"] = "auto"
    for change in arguments.changes:
        place, _, value = change.partition("=")
        stage, _, name = place.partition(".")
        if stage not in STAGES or not name:
            raise SystemExit(f"--set {change}: name one of {', '.join(STAGES)}, as in calibrate.steps=8")
        options[stage][name] = value
    if "real" not in evaluation:
        left_out = [name for name in evaluation["metrics"] if name in METRICS and METRICS[name].real]
        if left_out:
            print(f"Without --real there is no {', '.join(left_out)}.", file=sys.stderr)
        evaluation["metrics"] = [name for name in evaluation["metrics"] if name not in left_out]


def prepared(model: str, scheduler: str | None, folder: Path) -> str:
    """Return the source to work on: where the benchmark names another scheduler, a copy that has it.

    A DDPMPipeline becomes a DDIMPipeline, whose loop takes other numbers of steps.
    """
    source = str(BUNDLED.get(model, model))
    if scheduler is None or model in BUNDLED:
        return source
    if not folder.exists():
        import diffusers

        pipe = diffusers.DiffusionPipeline.from_pretrained(source)
        changed = getattr(diffusers, scheduler).from_config(pipe.scheduler.config)
        if type(pipe).__name__ == "DDPMPipeline":
            pipe = diffusers.DDIMPipeline(pipe.unet, changed)
        else:
            pipe.scheduler = changed
        partial = folder.with_name(folder.name + ".partial")
        pipe.save_pretrained(partial)
        partial.rename(folder)
    return str(folder)


def run(command: str, words: Sequence[str], options: Mapping[str, Any]) -> None:
    """Run a command of accuquant; end where it fails."""
    line = [command, *words]
    for name, value in options.items():
        if isinstance(value, bool):
            line += [f"--{name}"] if value else [f"--no-{name}"]
        else:
            line += [f"--{name}", ",".join(value) if isinstance(value, list) else str(value)]
    print(f"\naccuquant {' '.join(line)}", file=sys.stderr)
    code = accuquant(line)
    if code:
        raise SystemExit(code)


def show(benchmark: Benchmark, arguments: argparse.Namespace, result: Mapping[str, Any]) -> None:
    """Print our row and the published ones."""
    figures = {f["metric"]: f for f in result["figures"] if f["branch"] == "int8"}
    names = [n for n in METRICS if n in figures or any(n in row for row in benchmark.published)]
    bits = result["settings"]["bits"]
    sources = list(dict.fromkeys(row["source"] for row in benchmark.published))
    rows = [[_OURS, bits, *(f"{figures[n]['value']:.4g}" if n in figures else "-" for n in names), ""]]
    rows += [
        [
            row["method"],
            row["bits"],
            *(f"{row[n]:g}" if n in row else "-" for n in names),
            f"[{sources.index(row['source']) + 1}]",
        ]
        for row in benchmark.published
    ]
    notes = [f"[{number}] {source}" for number, source in enumerate(sources, 1)]
    notes += [f"Exempt: {benchmark.exemptions}.", *result["sentences"]]
    if benchmark.differs:
        notes.append(f"Note: {benchmark.differs}.")
    if arguments.model is not None:
        notes.append(
            f"Note: this run is of {arguments.model}, the published rows are not: no figure can be compared."
        )
    notes += [f"Note: {note}" for note in result["notes"]]
    print_report(
        benchmark.title,
        ["method", "bits", *(METRICS[name].title for name in names), ""],
        rows,
        notes=notes,
        record={"ours": result["figures"], "published": list(benchmark.published)},
        json_path=arguments.json,
    )


if __name__ == "__main__":
    main()
