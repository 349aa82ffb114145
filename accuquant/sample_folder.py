"""Sample from an exported folder: with numpy alone where that will do, else in its diffusers pipeline."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from accuquant._util.progress import Steps
from accuquant.errors import UsageError
from accuquant.manifest import Manifest
from accuquant.pipelines.lora import find_loras
from accuquant.pipelines.task import Task, option
from accuquant.runtime.loop_profile import LoopProfile
from accuquant.runtime.parts_choice import Parts
from accuquant.runtime.sample import runs_without_torch, sample_images


def sample(
    folder: str | os.PathLike[str],
    task: Task | None = None,
    *,
    engine: str = "openvino",
    num_images: int = 16,
    steps: int | None = None,
    seed: int = 0,
    batch_size: int | None = None,
    pipeline: str | None = None,
    parts: Parts = "auto",
    loras: Sequence[str] = (),
    variant: str | None = None,
    without: Sequence[str] = (),
    pipeline_config: str | None = None,
    allow_pickle: bool = False,
    class_labels: Sequence[int] | None = None,
    device: str = "auto",
    tf32: bool = False,
    progress: Steps | None = None,
    profile: LoopProfile | None = None,
    **options: Any,
) -> npt.NDArray[np.float32]:
    """Sample `num_images` images of an exported folder -> float32 [N, H, W, C] in [0, 1].

    A pipeline of videos makes `num_images` of them, [N, F, H, W, C]. Image k comes from seed + k.
    Pixel pipelines with DDIM or DDPM run without torch, from seeds alone, and
    class-conditional ones from `class_labels`, from the first again where there are fewer. Others run in
    diffusers: image k takes prompt k of `task` as well, and what `task` leaves open is as it was calibrated;
    `pipeline` is where text encoders and decoder come from, `loras` ("PATH_OR_HUB_ID[:SCALE]") change them,
    `variant`, `without`, `pipeline_config` and `allow_pickle` say how it is read, as for `load_source`, and
    `device` where they run ("auto" is a GPU that works).
    `parts` "engine" runs them in the engine, from a folder that holds them (`--whole-pipeline`), and needs no
    `pipeline`; "auto" does where that is so and nothing else is named. `profile` counts where the seconds go.
    `options` go to the engine. Raises UsageError for a choice that the folder's pipeline has no use for.
    """
    root, asked = Path(folder), task or Task()
    manifest = Manifest.load(root)
    common = {
        "engine": engine,
        "num_images": num_images,
        "steps": steps,
        "seed": seed,
        "batch_size": batch_size,
        "progress": progress,
        "profile": profile,
        **options,
    }
    if runs_without_torch(root, manifest):
        _refuse(
            asked.given(),
            {
                "lora": loras,
                "pipeline": pipeline,
                "parts": parts != "auto",
                "variant": variant,
                "without": without,
                "pipeline_config": pipeline_config,
                "allow_pickle": allow_pickle,
                "device": device != "auto",
                "tf32": tf32,
            },
        )
        return sample_images(root, class_labels=_repeated(class_labels, num_images), **common)
    if class_labels is not None:
        raise UsageError(
            "--class-labels",
            got="a choice",
            expected="none: this is not a class-conditional DDIM or DDPM pipeline",
            remedy="Leave it out",
        )
    _need_torch(manifest)
    from accuquant.networks.device import choose_device, repeatable
    from accuquant.pipelines.loading import Loading
    from accuquant.sample_pipeline import sample_pipeline

    place = choose_device(device, tf32=tf32)
    loading = Loading(
        variant or None, tuple(without), pipeline_config=pipeline_config, allow_pickle=allow_pickle
    )
    with repeatable(place, tf32=tf32):
        return sample_pipeline(
            root,
            asked,
            pipeline=pipeline,
            parts=parts,
            loras=find_loras(loras),
            loading=loading,
            device=place,
            **common,
        )


def _repeated(labels: Sequence[int] | None, count: int) -> list[int] | None:
    """Return a label for each of `count` images, from the first again where there are fewer."""
    return None if labels is None else list(islice(cycle(labels), count))


def _refuse(given: Sequence[str], others: dict[str, Any]) -> None:
    chosen = [*given, *(name for name, value in others.items() if value)]
    if chosen:
        raise UsageError(
            ", ".join(map(option, chosen)),
            got="a choice",
            expected="none: this pipeline starts from seeds alone",
            remedy="Leave it out",
        )


def _need_torch(manifest: Manifest) -> None:
    if any(importlib.util.find_spec(name) is None for name in ("torch", "diffusers")):
        raise UsageError(
            f"pipeline {manifest.pipeline_class}",
            got="an environment without torch and diffusers",
            expected="both: this pipeline encodes prompts or decodes latents with networks of its own",
            remedy="pip install 'accuquant[calibrate,text]'",
        )
