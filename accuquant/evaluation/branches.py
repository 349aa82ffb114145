"""What an evaluation compares: FP32, the export, and maybe another export, opened when they are needed."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from accuquant.denoising.conditioning import Conditioning
from accuquant.denoising.process import DenoisingProcess
from accuquant.denoising.start import Start
from accuquant.pipelines.source import Source
from accuquant.pipelines.starts import Starter, open_starter
from accuquant.pipelines.task import Task
from accuquant.runtime.engine_model import EngineModel
from accuquant.runtime.open_runner import precision_options
from accuquant.verification.branch_functions import export_branch, torch_branch
from accuquant.verification.measure.decoder import Decode, load_decoder
from accuquant.verification.measure.exported_decoder import engine_decode
from accuquant.verification.measure.rollout import BranchFn

from .evaluation_settings import EvaluationSettings

#: The names of branches in figures.
FP32, INT8, OTHER = "fp32", "int8", "other"


@dataclass(frozen=True)
class Workshop:
    """All that images are made from; it travels to the workers of a cluster.

    `task` is whole: what was left open is as it was calibrated. `folders` are the exports by branch.
    """

    reference: Source
    folders: Mapping[str, Path]
    settings: EvaluationSettings
    task: Task
    steps: int


@dataclass(frozen=True)
class Tools:
    """The sampler, the branches by name and the decoder, ready to run: each process opens its own, once."""

    starter: Starter
    branches: Mapping[str, BranchFn]
    decode: Decode
    exported: Mapping[str, Decode]
    labels: tuple[int, ...] | None
    seed: int
    stack: ExitStack

    @classmethod
    def of(cls, shop: Workshop) -> Tools:
        """Open everything; the engines are active."""
        settings = shop.settings
        with ExitStack() as opening:
            starter = open_starter(shop.reference, shop.task, steps=shop.steps)
            opening.callback(starter.close)
            branches = {FP32: torch_branch(shop.reference.network)}
            for name, folder in shop.folders.items():
                model = EngineModel.from_folder(
                    folder,
                    settings.engine,
                    trust_engines=settings.trust_engines,
                    **precision_options(settings.engine, settings.engine_precision),
                )
                opening.enter_context(model)
                model.activate()
                branches[name] = export_branch(
                    folder,
                    model,
                    shop.reference.network,
                    opening,
                    settings.engine,
                    trust_engines=settings.trust_engines,
                    **precision_options(settings.engine, settings.engine_precision),
                )
            decode = load_decoder(shop.reference)
            found = {
                name: engine_decode(folder, shop.reference, settings.engine)
                for name, folder in shop.folders.items()
            }
            exported = {name: own for name, own in found.items() if own is not None}
            stack = opening.pop_all()
        return cls(starter, branches, decode, exported, settings.class_labels, settings.seed, stack)

    def images(self, branch: str, latents: Tensor) -> Tensor:
        """Return the images [N, C, H, W] in [0, 1] that a branch makes of latents."""
        return self.exported.get(branch, self.decode)(latents)

    def close(self) -> None:
        """Free the engines and the text encoders."""
        self.stack.close()

    @property
    def process(self) -> DenoisingProcess:
        """The sampler."""
        return self.starter.process

    def start(self, members: range) -> Start:
        """Return the start of some images: image k from seed + k, with prompt k and label k."""
        start = self.starter.start(members, seed=self.seed)
        if self.labels is None:
            return start
        labels = torch.tensor([self.labels[k % len(self.labels)] for k in members])
        return replace(start, conditioning=Conditioning.of({"class_labels": labels}))
