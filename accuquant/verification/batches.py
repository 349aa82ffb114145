"""Verify a batch: some seeds through FP32, simulation and engine, and what stays of their images."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn

from accuquant._util.progress import Progress
from accuquant.denoising.process import DenoisingProcess
from accuquant.denoising.start import Start
from accuquant.networks.simulate import simulate
from accuquant.runtime.engine_model import EngineModel
from accuquant.runtime.open_runner import precision_options
from accuquant.units.per_worker import PerWorker
from accuquant.units.tensor_tree import Tree
from accuquant.units.units import Engine
from accuquant.verification.branch_functions import export_branch, torch_branch
from accuquant.verification.measure.decoder import Decode, blank_end, load_decoder, unpacked
from accuquant.verification.measure.exported_decoder import exported_decoders
from accuquant.verification.measure.feature_networks import FeatureNetwork
from accuquant.verification.measure.features import load_features
from accuquant.verification.measure.rollout import Branches, NetworkCalls, Rollout, advances, roll_out
from accuquant.verification.measure.subject import Subject
from accuquant.verification.report.tally import measured

#: Images of a timed call, and of the comparison of layers.
SMALL_BATCH = 4


class BatchStarts(Protocol):
    """The starts of a run, batch by batch; each process may ask for any of them."""

    def batch(self, number: int) -> Start:
        """Return the start of a batch."""


@dataclass(frozen=True)
class Viewer:
    """What makes images of latents, and features of images; `extractor` None measures none.

    `exported` are the decoders of branches that have another than the pipeline's.
    """

    decode: Decode
    image_shape: tuple[int, ...]
    extractor: FeatureNetwork | None
    exported: Mapping[str, Decode] = field(default_factory=dict)

    @classmethod
    def of(cls, subject: Subject, decode: Decode | None, start: Start) -> Viewer:
        """Load the networks; on the way, the decoder shows what it makes of the latents of `start`."""
        exported = {} if decode is not None else exported_decoders(subject)
        decode = decode or load_decoder(subject.reference)
        latents = blank_end(subject.reference, start, 1)
        shape = tuple(decode(unpacked(latents, start.conditioning)).shape[1:])
        return cls(decode, shape, load_features(subject.settings.features, shape), exported)

    def images(self, rollout: Rollout) -> dict[str, Tensor]:
        """Return the images of each branch, [B, C, H, W] in [0, 1]."""
        conditioning = rollout.start.conditioning
        return {
            name: self.exported.get(name, self.decode)(unpacked(latents, conditioning))
            for name, latents in rollout.final.items()
        }


@dataclass(frozen=True)
class Networks:
    """The three networks, ready to run: each process opens its own, once."""

    branches: Branches
    simulated: nn.Module
    model: EngineModel
    stack: ExitStack

    @classmethod
    def of(cls, subject: Subject, *, trust_engines: bool, engine_precision: str) -> Networks:
        """Open them; the engine is active."""
        network, engine = subject.reference.network, subject.settings.engine
        simulated, around = simulate(network, subject.recipe), precision_options(engine, engine_precision)
        with ExitStack() as opening:
            model = opening.enter_context(
                EngineModel.from_folder(subject.folder, engine, trust_engines=trust_engines, **around)
            )
            model.activate()
            branch = export_branch(
                subject.folder, model, network, opening, engine, trust_engines=trust_engines, **around
            )
            branches = Branches(torch_branch(network), torch_branch(simulated), branch)
            return cls(branches, simulated, model, opening.pop_all())

    def close(self) -> None:
        """Free the engine."""
        self.stack.close()


@dataclass(frozen=True)
class Batches:
    """Computes a batch by its number; nothing that it needs depends on other batches.

    `engine_starts` are those of the engine, where its text encoders are not those of the others.
    A result is what `measured` returns, and of the first batch the network's calls besides. `shown` is told
    of every step in the process that holds it, and of nothing elsewhere.
    """

    subject: Subject
    process: DenoisingProcess
    starts: BatchStarts
    engine_starts: BatchStarts | None
    viewer: PerWorker[Viewer]
    networks: PerWorker[Networks]
    shown: Progress

    @torch.no_grad()
    def __call__(self, unit: str) -> Tree:
        """Return what stays of the images of a batch."""
        number, viewer = int(unit), self.viewer.get()
        calls = NetworkCalls(SMALL_BATCH) if number == 0 else None
        start, branches = self.starts.batch(number), self.networks.get().branches
        own = self.engine_starts.batch(number) if self.engine_starts else None
        rollout = roll_out(self.process, branches, start, calls=calls, engine_start=own, progress=self.shown)
        settings = self.subject.settings
        extractor = viewer.extractor if settings.num_images > 1 else None
        found = measured(rollout, viewer.images(rollout), extractor, settings.images(number).start)
        return found if calls is None else {**found, "calls": calls.to_tree()}


def compute(engine: Engine, batches: Batches, progress: Progress, take: Callable[[Tree], None]) -> None:
    """Give the results of all batches to `take`, in their order, each as soon as those before it are known.

    Computed here, one is in memory at a time; computed elsewhere, those that came early wait for the others.
    """
    units = [str(number) for number in range(batches.subject.settings.num_batches)]
    steps = {unit: advances(batches.process, first=unit == units[0]) for unit in units}
    progress.stage("denoising with FP32, simulation and engine", sum(steps.values()))
    early: dict[str, Tree] = {}
    waiting = iter(units)
    awaited = next(waiting, None)
    with closing(engine.results("batches", units, batches)) as results:
        for unit, early[unit] in results:
            if engine.away:
                progress.advance(steps[unit])
            while awaited in early:
                take(early.pop(awaited))
                awaited = next(waiting, None)
