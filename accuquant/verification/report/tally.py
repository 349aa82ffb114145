"""The figures of a report, taken batch by batch, so that no image and no latent has to stay."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from accuquant.units.tensor_tree import Tree
from accuquant.verification.measure.feature_networks import FeatureExtractor
from accuquant.verification.measure.features import extract
from accuquant.verification.measure.frechet import Moments, frechet_distance
from accuquant.verification.measure.metrics import Curve, cosine, psnr, ssim, worst_frame_psnr
from accuquant.verification.measure.rollout import Rollout
from accuquant.verification.measure.video import every_frame, strip
from accuquant.verification.report.pictures import Selection
from accuquant.verification.report.report import Comparison, FidFigure

#: Field of `Report`: the errors of a rollout, the branch, the branch that it is compared with.
_COMPARED = {
    "fidelity": ("engine", "engine", "reference"),
    "quantization": ("simulated", "simulated", "reference"),
    "lowering": ("lowering", "engine", "simulated"),
}
_BRANCHES = ("reference", "simulated", "engine")


@dataclass
class _PairTally:
    """Numbers of one pair of branches: one an image, and [T, B] a batch."""

    psnr: list[float] = field(default_factory=list)
    ssim: list[float] = field(default_factory=list)
    cosine: list[float] = field(default_factory=list)
    errors: list[Tensor] = field(default_factory=list)
    step_errors: list[Tensor] = field(default_factory=list)
    worst_frame: list[float] = field(default_factory=list)

    def comparison(self) -> Comparison:
        """Return the figures of all images."""
        errors = torch.cat(self.errors, dim=1)
        alone = Curve.of(torch.cat(self.step_errors, dim=1).numpy()) if self.step_errors else None
        return Comparison(
            psnr=tuple(self.psnr),
            ssim=tuple(self.ssim),
            cosine=tuple(self.cosine),
            latent_mse=tuple(errors[-1].tolist()),
            by_step=Curve.of(errors.numpy()),
            step_error=alone,
            worst_frame=tuple(self.worst_frame),
        )


def measured(
    rollout: Rollout, images: Mapping[str, Tensor], extractor: FeatureExtractor | None, begin: int
) -> Tree:
    """Return what a report needs of a rollout, whose final latents became `images` [B, C, H, W] in [0, 1].

    `images` are by branch; the first of them is image `begin` of the run. All of it may travel: numbers, and
    the few pictures that may be shown. Videos [B, F, C, H, W] are shown as strips, and features are those
    of every frame.
    """
    pictures, pairs = Selection(begin=begin), {}
    for pair, (errors, name, other) in _COMPARED.items():
        pairs[pair] = {
            "psnr": psnr(images[name], images[other]),
            "ssim": ssim(images[name], images[other]),
            "cosine": cosine(rollout.final[name], rollout.final[other]),
            "errors": rollout.errors[errors],
        }
        if errors in rollout.step_errors:
            pairs[pair]["step_errors"] = rollout.step_errors[errors]
        if images[name].ndim == 5:
            pairs[pair]["worst_frame"] = worst_frame_psnr(images[name], images[other])
    pictures.add(strip(images["reference"]), strip(images["engine"]), pairs["fidelity"]["psnr"])
    features = (
        {name: torch.from_numpy(extract(extractor, every_frame(images[name]))) for name in _BRANCHES}
        if extractor
        else {}
    )
    return {"pairs": pairs, "pictures": pictures.to_tree(), "features": features}


class Tally:
    """What a report says of the images; `extractor` None measures no FID2FP32.

    What stays of an image is a few numbers: four metrics of each pair of branches, its latent error at each
    step. Features stay as their moments, and pictures only where the page shows them.
    """

    def __init__(self, extractor: FeatureExtractor | None) -> None:
        self.pictures = Selection()
        self._extractor = extractor
        self._pairs = {name: _PairTally() for name in _COMPARED}
        self._moments = {name: Moments() for name in _BRANCHES}

    def add(self, batch: Tree) -> None:
        """Take in what `measured` says of the next batch."""
        for pair, figures in batch["pairs"].items():
            tally = self._pairs[pair]
            tally.psnr += figures["psnr"].tolist()
            tally.ssim += figures["ssim"].tolist()
            tally.cosine += figures["cosine"].tolist()
            tally.errors.append(figures["errors"])
            if "step_errors" in figures:
                tally.step_errors.append(figures["step_errors"])
            if "worst_frame" in figures:
                tally.worst_frame += figures["worst_frame"].tolist()
        self.pictures.take(batch["pictures"])
        for name, features in batch["features"].items():
            self._moments[name].add(features.numpy())

    def comparisons(self) -> dict[str, Comparison]:
        """Return "fidelity", "quantization" and "lowering": which pair is compared says `Report`."""
        return {name: tally.comparison() for name, tally in self._pairs.items()}

    def fid(self) -> FidFigure | None:
        """Return FID2FP32 of the engine and of the simulation; None where it is not measured."""
        if self._extractor is None:
            return None
        reference = self._moments["reference"]
        distances = {
            name: frechet_distance(reference, self._moments[name]) for name in ("engine", "simulated")
        }
        return FidFigure(self._extractor.name, **distances)
