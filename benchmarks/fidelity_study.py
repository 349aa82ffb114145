"""One fidelity study: a pipeline, its judging seeds, the layers that every method quantizes, a cache."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from competitors import NetworkCall, trajectory_calls
from float_graph import FloatGraph, open_float_graph
from torch import Tensor

from accuquant._util.files import atomic_write, write_text
from accuquant._util.progress import Progress
from accuquant.calibration import CalibrationSettings, calibrate
from accuquant.calibration.placement import Placement, place
from accuquant.calibration.trajectory import record_trajectories
from accuquant.denoising.process import DenoisingProcess, NetworkFn, seeded_generators
from accuquant.networks.network import call, count_macs, model_hash
from accuquant.pipelines.source import Source
from accuquant.recipe import Recipe


@dataclass(frozen=True)
class Study:
    """What all methods have in common.

    `settings` are those of our own W8A8 calibration; the others take its steps, trajectories and layers.
    Image k starts from `seed` + k. Everything in `cache` is named by a hash of what made it, so that a run
    goes on where it stopped, and processes with different methods may share it. The hash does not cover
    AccuQuant's own code: use a fresh folder after changing it.
    """

    source: Source
    settings: CalibrationSettings
    cache: Path
    num_images: int
    seed: int
    batch_size: int
    engine: str
    threads: int

    @cached_property
    def process(self) -> DenoisingProcess:
        """The sampler."""
        return DenoisingProcess(self.source.scheduler, self.settings.steps)

    @cached_property
    def sampling(self) -> dict[str, Any]:
        """What decides the reference images."""
        return {
            "model": model_hash(self.source.network),
            "scheduler": type(self.source.scheduler).__name__,
            "steps": self.settings.steps,
            "num_images": self.num_images,
            "seed": self.seed,
            "batch_size": self.batch_size,
        }

    def file(self, name: str, settings: Mapping[str, Any], suffix: str) -> Path:
        """Return the file of the cache that holds what `name` made with `settings`; note them beside it."""
        text = json.dumps(settings, sort_keys=True, default=str)
        path = self.cache / f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:12]}{suffix}"
        note = path.with_suffix(".settings.json")
        if not note.is_file():
            write_text(note, json.dumps(settings, indent=2, sort_keys=True, default=str) + "\n")
        return path

    def recipe(self, name: str, settings: CalibrationSettings, progress: Progress) -> Path:
        """Return a recipe of `settings`; calibrate where it does not exist yet."""
        made_by = {**settings.to_dict(), "model": self.sampling["model"]}
        path = self.file(f"recipe-{name}", made_by, ".safetensors")
        if not path.is_file():
            calibrate(self.source, settings, output=path, progress=progress)
        return path

    def placement(self, progress: Progress) -> Placement:
        """Return the layers that every method quantizes; the float budget is spent by W8A8's sensitivity."""
        chosen = place(
            self.source.network,
            count_macs(self.source.network, self.source.signature),
            include=self.settings.include,
            exclude=self.settings.exclude,
        )
        if not self.settings.float_budget:
            return chosen
        start = replace(self.settings, iterations=0, shared_iterations=0)
        spent = Recipe.load(self.recipe("placement", start, progress)).calibration["float_by_budget"]
        return chosen.without(spent)

    def calls(self, progress: Progress) -> list[NetworkCall]:
        """Return the float network's calls on the trajectories that our own calibration learns from."""
        settings, signature = self.settings, self.source.signature
        batches = -(-settings.num_trajectories // settings.batch_size)
        progress.stage("full-precision trajectories", batches * settings.steps)
        return trajectory_calls(
            self.process,
            record_trajectories(
                self.source.network,
                self.process,
                signature.sample.resolve(signature.sizes | {"batch": 1})[1:],
                num_trajectories=settings.num_trajectories,
                batch_size=settings.batch_size,
                seed=settings.seed,
                before_step=lambda _step: progress.advance(),
            ),
        )

    def float_graph(self) -> FloatGraph:
        """Return the float network as ONNX."""
        return open_float_graph(self.source, self.file("float", {"model": self.sampling["model"]}, ".onnx"))

    def reference(self, progress: Progress) -> Tensor:
        """Return the FP32 pipeline's latents [N, C, H, W]."""
        path = self.file("reference", self.sampling, ".npy")
        if path.is_file():
            return self.load(path)
        return self.sample(path, lambda sample, t: call(self.source.network, sample, t), progress)

    def load(self, path: Path) -> Tensor:
        """Return cached latents."""
        return torch.from_numpy(np.load(path))

    @torch.no_grad()
    def sample(self, path: Path, network: NetworkFn, progress: Progress) -> Tensor:
        """Run the sampler on every seed -> the last latents [N, C, H, W], kept in `path`."""
        signature = self.source.signature
        shape = signature.sample.resolve(signature.sizes | {"batch": 1})[1:]
        chunks = [self._sample(seeds, shape, network, progress) for seeds in self._seeds(path, progress)]
        latents = torch.cat(chunks)
        with atomic_write(path) as temporary:
            np.save(temporary, latents.numpy())
        return latents

    def _seeds(self, path: Path, progress: Progress) -> list[range]:
        stop = self.seed + self.num_images
        chunks = [range(s, min(s + self.batch_size, stop)) for s in range(self.seed, stop, self.batch_size)]
        progress.stage(f"sampling {path.stem}", len(chunks) * len(self.process))
        return chunks

    def _sample(
        self, seeds: Sequence[int], shape: tuple[int, ...], network: NetworkFn, progress: Progress
    ) -> Tensor:
        generators = seeded_generators(seeds)
        start = self.process.initial_latents(shape, generators)
        return self.process.sample(network, start, generators, callback=lambda *_state: progress.advance())
