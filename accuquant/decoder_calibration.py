"""Calibrate the decoder of a pipeline's autoencoder on the latents that the pipeline's loop ends with."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from accuquant._util.progress import Progress, Silent
from accuquant.calibration import CalibrationSettings
from accuquant.calibration.calibrate import calibrate
from accuquant.calibration.trajectory import bound
from accuquant.denoising.conditioning import Conditioning
from accuquant.denoising.one_step import OneStepScheduler
from accuquant.denoising.process import DenoisingProcess, seeded_generators
from accuquant.denoising.start import Start
from accuquant.networks.device import device_of, repeatable
from accuquant.pipelines.called_source import called_source
from accuquant.pipelines.decoder_source import decoder_source
from accuquant.pipelines.source import Source
from accuquant.pipelines.starts import open_starter
from accuquant.pipelines.task import Task
from accuquant.recipe import Recipe
from accuquant.verification.measure.decoder import preparation, unpacked


def calibrate_decoder(
    source: Source,
    settings: CalibrationSettings,
    *,
    output: Path,
    task: Task | None = None,
    tf32: bool = False,
    progress: Progress | None = None,
) -> Recipe:
    """Learn the quantization parameters of the decoder of `source` and write them to `output`.

    The float network makes `settings.num_trajectories` latents in `settings.steps` steps, with the prompts
    and the guidance of `task`; the decoder is then a process of one step that starts from them. They are the
    float network's, so that the recipe serves every recipe of the network. An interrupted run makes the
    latents again. Raises SourceError for a pipeline without a decoder that is known, and what `calibrate`
    raises.
    """
    shown = progress or Silent()
    decoder = decoder_source(source)
    with repeatable(device_of(source.network), tf32=tf32):
        latents = last_latents(source, settings, task or Task(), shown)
    prepared = preparation(source, decoder.autoencoder)(latents)
    one = replace(settings, steps=1, calibration_steps=None, group_size=1)
    return calibrate(
        decoder.of_size(prepared.shape[2:]),
        one,
        output=output,
        tf32=tf32,
        starter=LatentStarter(prepared),
        progress=shown,
    )


@torch.no_grad()
def last_latents(source: Source, settings: CalibrationSettings, task: Task, progress: Progress) -> Tensor:
    """Return the latents [N, C, h, w] that the loop of `source` ends with, in float, on the CPU."""
    source = called_source(source, task, settings.steps)
    starter = open_starter(source, task, steps=settings.steps)
    process, network, found = starter.process, source.network, []
    size, count = settings.batch_size, settings.num_trajectories
    starts = list(starter.starts(count, size, seed=settings.seed, progress=progress))
    starter.close()
    progress.stage("latents to decode", len(starts) * len(process))
    for start in starts:
        there = start.to(device_of(network))
        process.reset()
        end = process.sample(
            bound(network, there.conditioning),
            there.latents,
            there.fresh_generators(),
            callback=lambda *_: progress.advance(),
        )
        found.append(unpacked(end.cpu(), start.conditioning))
    return torch.cat(found)


@dataclass(frozen=True)
class LatentStarter:
    """Starts from given latents [N, C, h, w], one an image."""

    latents: Tensor

    @cached_property
    def process(self) -> DenoisingProcess:
        """A decoder's one step."""
        return DenoisingProcess(OneStepScheduler(), 1)

    def starts(
        self, count: int, batch_size: int, *, seed: int, progress: Progress | None = None
    ) -> Iterator[Start]:
        """Yield batches of starts; image k comes from latent k."""
        for first in range(0, count, batch_size):
            yield self.start(range(first, min(first + batch_size, count)), seed=seed)

    def start(self, members: range, *, seed: int) -> Start:
        """Return the start of some images."""
        generators = seeded_generators([seed + k for k in members])
        states = tuple(generator.get_state() for generator in generators)
        return Start(self.latents[members.start : members.stop].clone(), states, Conditioning())

    def close(self) -> None:
        """Do nothing: the latents stay."""
