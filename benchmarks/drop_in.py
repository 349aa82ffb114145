"""Compare a diffusers pipeline with the same pipeline whose network is an exported engine.

    accuquant calibrate SOURCE --prompt "a red dress" ... -o recipe.safetensors
    accuquant export SOURCE --recipe recipe.safetensors -o OUT
    python benchmarks/drop_in.py SOURCE OUT --prompts prompts.txt --picture side-by-side.png

Images: one for each prompt, the same seed in both pipelines. Seconds: whole calls of the pipeline, in
turn, in one process, and where they go in each. "whole" arms run text encoders and decoder in the engine
too; OUT holds them after `accuquant export --whole-pipeline`. Memory: the peak of a process of its own
that loads one pipeline and calls it once. With --latents the prompts are random embeddings and the loop
ends in latents, so that a folder which holds nothing but a network can be measured.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline
from PIL import Image, ImageDraw
from report import add_json_option, print_report
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from accuquant._util.interleave import time_interleaved
from accuquant.pipeline_profile import profiled
from accuquant.runtime.engine_parts import engine_parts
from accuquant.runtime.engine_unet import EngineUNet
from accuquant.runtime.loop_profile import PARTS, LoopProfile

PYTORCH = "pytorch fp32"
#: The engines that the drop-in runs on; " whole" stands for text encoders and decoder as well.
ENGINES = {
    "openvino int8": "openvino",
    "openvino int8 whole": "openvino",
    "onnxruntime int8": "onnxruntime",
    "onnxruntime int8 whole": "onnxruntime",
}
ARMS = (PYTORCH, *ENGINES)
_EMPTY = dict.fromkeys(("vae", "text_encoder", "tokenizer", "safety_checker", "feature_extractor"))
_TOKENS = 77


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", type=Path, help="the pipeline's folder")
    parser.add_argument("out", type=Path, help="what `accuquant export` made of it")
    parser.add_argument("--prompts", type=Path, help="a text file, one prompt a line")
    parser.add_argument("--latents", action="store_true", help="random embeddings in, latents out")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=ARMS[:2])
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--guidance-scale", type=float, default=7.5)
    parser.add_argument("--size", type=int, help="height and width of the images, in pixels")
    parser.add_argument("--no-memory", action="store_true", help="run no processes that are weighed")
    parser.add_argument("--seed", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--picture", type=Path, help="write the images, side by side, to this PNG file")
    parser.add_argument("--only-memory", choices=ARMS, help=argparse.SUPPRESS)
    add_json_option(parser)
    arguments = parser.parse_args()
    if (arguments.prompts is None) != arguments.latents:
        parser.error("give --prompts FILE, or --latents")
    return arguments


def open_pipeline(arm: str, arguments: argparse.Namespace) -> Any:
    """Load the pipeline; with an engine, the float network is never loaded."""
    parts: dict[str, Any] = dict(_EMPTY) if arguments.latents else {}
    if arm in ENGINES:
        parts["unet"] = EngineUNet.from_pretrained(arguments.out, ENGINES[arm], num_threads=arguments.threads)
        if arm.endswith("whole"):
            parts |= engine_parts(arguments.out, ENGINES[arm], num_threads=arguments.threads)
    pipe: Any = DiffusionPipeline.from_pretrained(arguments.source, **parts).to(torch.float32)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def sample(pipe: Any, prompts: list[str], arguments: argparse.Namespace) -> np.ndarray:
    """Call the pipeline -> float32 images [N, H, W, C] in [0, 1], or latents."""
    generators = [torch.Generator().manual_seed(arguments.seed + k) for k in range(max(1, len(prompts)))]
    settings = {"num_inference_steps": arguments.steps, "guidance_scale": arguments.guidance_scale}
    if arguments.size is not None:
        settings |= {"height": arguments.size, "width": arguments.size}
    if not arguments.latents:
        images = pipe(prompts, generator=generators, output_type="np", **settings).images
        return np.asarray(images, np.float32)
    width = pipe.unet.config.cross_attention_dim
    embeddings = torch.randn(2, _TOKENS, width, generator=torch.Generator().manual_seed(0))
    output = pipe(
        prompt_embeds=embeddings[:1],
        negative_prompt_embeds=embeddings[1:],
        generator=generators,
        output_type="latent",
        **settings,
    )
    return output.images.numpy()


def peak_memory(arm: str) -> int:
    """Return the peak resident bytes of a process that loads this arm and calls it once."""
    result = subprocess.run(
        [sys.executable, *sys.argv, "--only-memory", arm], capture_output=True, text=True, check=True
    )
    return int(json.loads(result.stdout.splitlines()[-1]))


def psnr(images: np.ndarray, reference: np.ndarray) -> list[float]:
    """Return the PSNR of each image [N, H, W, C] in [0, 1], in dB."""
    errors = np.square(images - reference).mean((1, 2, 3))
    return [float(value) for value in -10 * np.log10(np.maximum(errors, 1e-12))]


def draw(rows: dict[str, np.ndarray], prompts: list[str], path: Path, *, edge: int = 128) -> None:
    """Draw one row an arm, one column a prompt."""
    caption, gap = 18, 4
    size = ((edge + gap) * len(prompts), (edge + gap + caption) * len(rows) + caption)
    canvas = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(canvas)
    for column, prompt in enumerate(prompts):
        pen.text((column * (edge + gap), 2), prompt, "black")
    for row, (name, images) in enumerate(rows.items()):
        top = caption + row * (edge + gap + caption)
        for column, image in enumerate(images):
            picture = Image.fromarray((255 * image).round().astype(np.uint8))
            kept = picture.resize((edge, edge), Image.Resampling.NEAREST if edge >= image.shape[0] else None)
            canvas.paste(kept, (column * (edge + gap), top))
        pen.text((0, top + edge + 2), name, "black")
    canvas.save(path)


def print_profiles(profiles: dict[str, LoopProfile], rounds: int) -> None:
    """Print the milliseconds a call of every part, one column an arm; what is between calls is no part."""
    table = Table("ms a call", *profiles, box=SIMPLE_HEAD, pad_edge=False)
    for part in [part for part in PARTS if part not in ("loading", "rest")]:
        cells = [1e3 * profile.seconds.get(part, 0.0) / rounds for profile in profiles.values()]
        table.add_row(part, *(f"{value:.2f}" for value in cells))
    overheads = [profile.overhead or 0.0 for profile in profiles.values()]
    table.add_row("loop on top of the network", *(f"{value:.2%}" for value in overheads))
    Console(width=160).print(table)


def main() -> None:
    """Sample, time and weigh every arm, and print a table."""
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    torch.set_flush_denormal(True)
    prompts = [] if arguments.latents else arguments.prompts.read_text().splitlines()
    if arguments.only_memory:
        sample(open_pipeline(arguments.only_memory, arguments), prompts[:1], arguments)
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
        return
    memory = {arm: 0 if arguments.no_memory else peak_memory(arm) for arm in arguments.arms}
    pipes = {arm: open_pipeline(arm, arguments) for arm in arguments.arms}
    outputs = {arm: sample(pipe, prompts, arguments) for arm, pipe in pipes.items()}
    one = prompts[:1]
    for pipe in pipes.values():  # compiles for one image
        sample(pipe, one, arguments)
    profiles = {arm: LoopProfile() for arm in arguments.arms}

    def call(arm: str) -> None:
        with profiled(pipes[arm], profiles[arm]):
            sample(pipes[arm], one, arguments)

    calls = {arm: (lambda arm=arm: call(arm)) for arm in arguments.arms}
    times = time_interleaved(calls, rounds=arguments.rounds, warm_up=0)
    first = arguments.arms[0]
    rows, record = [], {}
    for arm in arguments.arms:
        values = psnr(outputs[arm], outputs[first]) if not arguments.latents and arm != first else []
        seconds = times[arm].median / 1000
        rows.append(
            [
                arm,
                f"{seconds:.2f} s",
                f"{times[first].median / times[arm].median:.2f}",
                f"{memory[arm] / 1e6:.0f} MB" if memory[arm] else "",
                f"{np.median(values):.1f} dB" if values else "",
            ]
        )
        record[arm] = {
            "seconds": times[arm].to_dict(),
            "peak_bytes": memory[arm],
            "psnr": values,
            "profile": profiles[arm].to_dict(),
        }
    print_report(
        f"{arguments.source.name}: the pipeline and the drop-in, {arguments.steps} steps, one image a call, "
        f"{arguments.threads} threads, {arguments.rounds} interleaved rounds",
        ("", "median call", f"times as fast as {first}", "peak memory", "median PSNR"),
        rows,
        record=record,
        json_path=arguments.json,
    )
    print_profiles(profiles, arguments.rounds)
    if arguments.picture is not None:
        draw(outputs, prompts, arguments.picture)


if __name__ == "__main__":
    main()
