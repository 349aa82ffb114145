"""What is verified: an exported folder, and the pipeline that it has to match."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from accuquant.errors import VerificationError
from accuquant.manifest import RECIPE_NAME, Manifest
from accuquant.network import Conditioning, model_hash
from accuquant.pipelines import Source
from accuquant.recipe import Recipe
from accuquant.verification.scheduler_check import check_scheduler, scheduler_config
from accuquant.verification.settings import VerificationSettings

#: Folders of pipelines whose latents another network turns into images.
_DECODERS = ("vae", "vqvae", "movq")


@dataclass(frozen=True)
class Subject:
    """An exported folder with its manifest and recipe, its FP32 reference, and what to run."""

    folder: Path
    manifest: Manifest
    recipe: Recipe
    reference: Source
    settings: VerificationSettings

    @classmethod
    def load(cls, folder: Path, reference: Source, settings: VerificationSettings) -> Subject:
        """Read the folder. Raises EngineError or RecipeError where it is missing or damaged."""
        return cls(folder, Manifest.load(folder), Recipe.load(folder / RECIPE_NAME), reference, settings)

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """The shape [C, H, W] of one latent at the network's default size."""
        signature = self.reference.signature
        return signature.sample.resolve(signature.sizes | {"batch": 1})[1:]

    def check(self) -> tuple[str, ...]:
        """Raise VerificationError unless folder and reference belong together; return notes."""
        if model_hash(self.reference.network) != self.manifest.model_hash:
            raise VerificationError(
                f"reference '{self.reference.name}'",
                got="weights other than those that were exported",
                expected=f"the weights of the exported pipeline ({self.manifest.source or 'unnamed'})",
                remedy="Pass that pipeline as --reference, or export this one",
            )
        notes = check_scheduler(
            self.recipe.scheduler,
            scheduler_config(self.reference.scheduler),
            allow_other=self.settings.allow_other_scheduler,
        )
        steps, calibrated = self.settings.steps, self.manifest.num_inference_steps
        if steps != calibrated:
            notes += (f"Sampled with {steps} steps; the recipe was calibrated with {calibrated}.",)
        return notes

    def conditioning(self, given: Conditioning | None) -> dict[str, Tensor]:
        """Return what conditions each image; class labels are spread evenly where none are given."""
        count = self.settings.num_images
        names = [spec.name for spec in self.reference.signature.conditioning]
        classes = getattr(self.reference.network.config, "num_class_embeds", None)
        if given is None and names == ["class_labels"] and classes:
            return {"class_labels": torch.arange(count) % int(classes)}
        values = dict(given or {})
        if sorted(values) != sorted(names) or any(len(v) != count for v in values.values()):
            raise VerificationError(
                f"pipeline '{self.reference.name}'",
                got=f"conditioning {sorted(values)}",
                expected=f"{names}, one row for each of the {count} images",
                remedy="Call accuquant.verification.verify from Python with conditioning={name: tensor}",
            )
        return values

    def check_pixel_space(self) -> None:
        """Raise VerificationError where latents are not images."""
        if any((self.reference.folder / part).is_dir() for part in _DECODERS):
            raise VerificationError(
                f"pipeline '{self.reference.name}'",
                got="a pipeline whose latents are decoded to images by another network",
                expected="a pixel-space pipeline, or a decoder",
                remedy="Call accuquant.verification.verify from Python with decode=function",
            )
