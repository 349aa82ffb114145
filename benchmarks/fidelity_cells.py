"""The cells of the fidelity study: one network, one method, one setting, one calibration seed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from fidelity_networks import StudiedNetwork
from torch import Tensor, nn

from accuquant._util.files import atomic_write, write_text
from accuquant.calibration.trajectory import bound
from accuquant.denoising.process import DenoisingProcess
from accuquant.denoising.start import Start
from accuquant.networks.simulate import simulate
from accuquant.pipelines.source import Source, load_source
from accuquant.pipelines.starts import open_starter
from accuquant.recipe import Recipe
from accuquant.verification.measure.decoder import load_decoder
from accuquant.verification.measure.features import extract, load_features
from accuquant.verification.measure.metrics import mse, psnr

_BATCH = 16
#: Our own arms: what each of them changes on the command line. Any other name goes to --method.
ARMS: Mapping[str, tuple[str, ...]] = {
    "accuquant": (),
    "no-learning": ("--iterations", "0", "--shared-iterations", "0"),
    "independent": ("--gradient", "independent"),
    "minmax-groups": (
        *("--iterations", "0", "--shared-iterations", "0", "--observer", "minmax"),
        *("--no-refine", "--rounding", "nearest", "--symmetric"),
    ),
}


@dataclass(frozen=True)
class Setting:
    """Bits of weights and activations; `Setting.parse("W4A8")`."""

    weights: int
    activations: int

    @classmethod
    def parse(cls, text: str) -> Setting:
        """Read "W4A8"; ValueError where it is not of that form."""
        weights, letter, activations = text.upper().removeprefix("W").partition("A")
        if not letter:
            raise ValueError(f"{text}: expected bits such as W4A8")
        return cls(int(weights), int(activations))

    def __str__(self) -> str:
        return f"W{self.weights}A{self.activations}"


@dataclass(frozen=True)
class Cell:
    """One figure of the table before it is averaged: what is calibrated, how, and with which seed."""

    network: StudiedNetwork
    method: str
    setting: Setting
    seed: int
    words: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """What the cell's files are called."""
        options = "_".join(word.lstrip("-").replace("/", "-") for word in self.words)
        return "_".join(
            filter(None, (self.network.name, str(self.setting), self.method, options, f"s{self.seed}"))
        )

    def command(self, recipe: Path) -> list[str]:
        """Return the words of the command that calibrates."""
        method = ARMS.get(self.method, ("--method", self.method))
        bits = (
            "--weight-bits",
            str(self.setting.weights),
            "--activation-bits",
            str(self.setting.activations),
        )
        return [
            *(sys.executable, "-m", "accuquant", "calibrate", *self.network.words, "-o", str(recipe)),
            *(*bits, "--seed", str(self.seed), *method, *self.words),
        ]


@dataclass(frozen=True)
class Sampled:
    """Images of the judging seeds: latents after every step [T, N, ...], images and features [N, D]."""

    trajectory: Tensor
    images: Tensor
    features: npt.NDArray[Any]


@dataclass(frozen=True)
class Bench:
    """A network in full precision, with the images that every method is judged by, kept in `cache`."""

    network: StudiedNetwork
    cache: Path
    num_images: int
    first_seed: int

    @cached_property
    def source(self) -> Source:
        """The pipeline."""
        return load_source(str(self.network.folder))

    @cached_property
    def reference(self) -> Sampled:
        """What full precision makes of the judging seeds."""
        path = self.cache / f"{self.network.name}_fp32_{self.first_seed}_{self.num_images}.npy"
        if path.is_file():
            return self._sampled(torch.from_numpy(np.load(path)))
        sampled = self.sample(self.source.network)
        with atomic_write(path) as temporary, temporary.open("wb") as file:
            np.save(file, sampled.trajectory.numpy())
        return sampled

    @torch.no_grad()
    def sample(self, network: nn.Module) -> Sampled:
        """Run the sampler with `network` on every judging seed."""
        starter = open_starter(self.source, self.network.judged, steps=self.network.steps)
        parts = [
            _trajectory(starter.process, network, start)
            for start in starter.starts(self.num_images, _BATCH, seed=self.first_seed)
        ]
        starter.close()
        return self._sampled(torch.cat(parts, 1))

    def _sampled(self, trajectory: Tensor) -> Sampled:
        images = load_decoder(self.source)(trajectory[-1])
        extractor = load_features("fashion", (1, 32, 32))
        assert extractor is not None
        return Sampled(trajectory, images, extract(extractor, gray(images)))


def _trajectory(process: DenoisingProcess, network: nn.Module, start: Start) -> Tensor:
    """Return the latents after every step [T, B, ...]."""
    kept: list[Tensor] = []

    def keep(_step: int, _timestep: float, latents: Tensor) -> None:
        kept.append(latents)

    process.reset()
    predict = bound(network, start.conditioning)
    process.sample(predict, start.latents, start.fresh_generators(), callback=keep)
    return torch.stack(kept)


def gray(images: Tensor) -> Tensor:
    """Return images [N, C, H, W] as the bundled feature network takes them: [N, 1, 32, 32]."""
    return nn.functional.interpolate(images.mean(1, keepdim=True), size=32, mode="area")


def measured(cell: Cell, bench: Bench) -> dict[str, Any]:
    """Return the figures of a cell, from the cache or made now; the calibration resumes where it stopped."""
    path = figures_path(cell, bench)
    if path.is_file():
        figures: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return figures
    recipe = bench.cache / f"{cell.name}.safetensors"
    figures = {**_facts(cell), **_calibrated(cell, recipe)}
    network = simulate(bench.source.network, Recipe.load(recipe))
    figures |= compared(bench.sample(network), bench.reference)
    write_text(path, json.dumps(figures) + "\n")
    return figures


def figures_path(cell: Cell, bench: Bench) -> Path:
    """Return where a cell's figures are kept."""
    return bench.cache / f"{cell.name}_{bench.first_seed}_{bench.num_images}.json"


def _facts(cell: Cell) -> dict[str, Any]:
    facts = {"network": cell.network.name, "method": cell.method, "setting": str(cell.setting)}
    return {**facts, "seed": cell.seed, "options": list(cell.words)}


def _calibrated(cell: Cell, recipe: Path) -> dict[str, Any]:
    """Calibrate in a process of its own; seconds and peak memory are those of its last run."""
    note = recipe.with_suffix(".cost.json")
    if not (recipe.is_file() and note.is_file()):
        recipe.unlink(missing_ok=True)
        begun = time.perf_counter()
        child = subprocess.Popen(cell.command(recipe), stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        if child.returncode:
            raise SystemExit(f"{cell.name}: accuquant calibrate ended with {child.returncode}")
        cost = {
            "seconds": time.perf_counter() - begun,
            "cpu_seconds": usage.ru_utime + usage.ru_stime,
            "peak_mb": usage.ru_maxrss / 1000,
        }
        write_text(note, json.dumps(cost) + "\n")
    found: dict[str, Any] = json.loads(note.read_text(encoding="utf-8"))
    return found


def compared(sampled: Sampled, reference: Sampled) -> dict[str, Any]:
    """Return the figures of images against full precision's, image by image."""
    pairs = zip(sampled.trajectory, reference.trajectory, strict=True)
    return {
        "psnr": psnr(sampled.images, reference.images).tolist(),
        "latent_mse": mse(sampled.trajectory[-1], reference.trajectory[-1]).tolist(),
        "mse_of_step": [float(mse(one, other).median()) for one, other in pairs],
        "features": sampled.features.tolist(),
        "reference_features": reference.features.tolist(),
    }
