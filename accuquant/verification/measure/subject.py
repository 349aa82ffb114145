"""What is verified: an exported folder, and the pipeline that it has to match."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path

from accuquant._util.processor import cpu_flags, saturates_8_bit_weights
from accuquant._util.progress import Progress
from accuquant.calibration.care import care_notes
from accuquant.denoising.guidance import Guidance
from accuquant.denoising.process import DenoisingProcess
from accuquant.errors import VerificationError
from accuquant.manifest import RECIPE_NAME, Manifest
from accuquant.networks.controlled import ControlledNetwork
from accuquant.networks.network import ConditioningTensors
from accuquant.pipelines.lora import check_loras
from accuquant.pipelines.source import Source
from accuquant.pipelines.starts import GivenStarter, Starter, open_starter
from accuquant.pipelines.task import Task
from accuquant.recipe import Recipe
from accuquant.runtime.engine_parts import engine_parts
from accuquant.runtime.parts_choice import ENGINES as PARTS_ENGINES
from accuquant.units.per_worker import PerWorker
from accuquant.verification.measure.pieces import Piece, pieces_of, whole_recipe
from accuquant.verification.measure.scheduler_check import check_scheduler, scheduler_config
from accuquant.verification.measure.stored_starts import MadeStarts, StoredStarts
from accuquant.verification.verification_settings import VerificationSettings

#: Engines for the CPU whose sums saturate without VNNI.
_SATURATING = {"openvino": "OpenVINO", "onnxruntime": "ONNX Runtime"}


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
        manifest, recipe = Manifest.load(folder), Recipe.load(folder / RECIPE_NAME)
        known, network = reference.called_as(recipe.signature), reference.network
        if isinstance(network, ControlledNetwork):
            recipe = whole_recipe(folder, manifest, recipe, network)
        return cls(folder, manifest, recipe, known, settings)

    def pieces(self) -> tuple[Piece, ...]:
        """Return the exported networks: one, or the UNet and the control networks beside it."""
        return pieces_of(self.folder, self.manifest, self.recipe, self.reference.network)

    def check(self) -> tuple[str, ...]:
        """Raise VerificationError unless folder and reference belong together; return notes."""
        check_loras(self.recipe.facts.loras, self.reference.loras)
        if self.reference.model_hash != self.manifest.model_hash:
            raise VerificationError(
                f"reference '{self.reference.name}'",
                got="weights other than those that were exported",
                expected=f"the weights of the exported pipeline ({self.manifest.source or 'unnamed'})",
                remedy="Pass that pipeline as --reference, or export this one",
            )
        if self.settings.layers and self.manifest.precision == "bf16":
            raise VerificationError(
                "--layers",
                got="a bf16 export, whose graph ONNX Runtime cannot run",
                expected="an export in fp32 or fp16: layers are compared in ONNX Runtime",
                remedy="Leave --layers out, or compare the layers of an export with --precision fp32",
            )
        notes = check_scheduler(
            self.recipe.scheduler,
            scheduler_config(self.reference.scheduler),
            allow_other=self.settings.allow_other_scheduler,
        )
        steps, calibrated = self.settings.steps, self.manifest.num_inference_steps
        if calibrated is not None and steps != calibrated:
            notes += (f"Sampled with {steps} steps; the recipe was calibrated with {calibrated}.",)
        return notes + self._seed_notes() + self._weight_notes() + care_notes(self.recipe.calibration)

    def _seed_notes(self) -> tuple[str, ...]:
        """Return a note where some images start from seeds that were calibrated on."""
        start = self.recipe.facts.settings.seed
        stop = start + self.recipe.facts.settings.num_trajectories
        seed, end = self.settings.seed, self.settings.seed + self.settings.num_images
        shared = min(stop, end) - max(start, seed)
        if shared <= 0:
            return ()
        return (f"{shared} of the seeds were calibrated on; other seeds judge the model more strictly.",)

    def _weight_notes(self) -> tuple[str, ...]:
        """Return a note where the engine cannot compute 8-bit weights exactly on this processor."""
        bits = max(layer.weight_bits for layer in self.recipe.layers.values())
        engine = _SATURATING.get(self.settings.engine)
        integers = self.recipe.format == "int8"
        if engine is None or bits < 8 or not integers or not saturates_8_bit_weights(cpu_flags()):
            return ()
        return (
            f"This processor has no int8 dot product: {engine}'s sums saturate with 8-bit weights. "
            "Calibrate with --weight-bits 7 for it.",
        )

    @property
    def encodes_itself(self) -> bool:
        """Whether the engine's prompts come from text encoders that are not the pipeline's.

        Those of the folder are, in float32, but for a few millionths.
        """
        return self.manifest.text_weights != "fp32" and self.settings.engine in PARTS_ENGINES

    def begin(
        self,
        task: Task,
        conditioning: ConditioningTensors | None,
        folder: Path,
        progress: Progress,
        *,
        own_text: bool = False,
    ) -> tuple[DenoisingProcess, StoredStarts]:
        """Return the sampler and the starts of all images, which lie in `folder`.

        What `task` leaves open is as it was calibrated; `conditioning` holds tensors [num_images, ...] for a
        network that is called without its pipeline. With `own_text` the export's text encoders encode.
        """
        settings = self.settings
        folder.mkdir(exist_ok=True)
        starter = self._starter(task, conditioning, own_text)
        starts = starter.starts(
            settings.num_images, settings.batch_size, seed=settings.seed, progress=progress
        )
        stored = StoredStarts(folder, starts)
        starter.close()
        return starter.process, stored

    def begin_anywhere(
        self, task: Task, conditioning: ConditioningTensors | None, *, own_text: bool = False
    ) -> tuple[DenoisingProcess, MadeStarts]:
        """Return the sampler, and starts that every process makes for itself: the same ones."""
        starter, settings = self._starter(task, conditioning, own_text), self.settings
        first = starter.start(settings.images(0), seed=settings.seed)
        starter.close()
        made = PerWorker(lambda: self._starter(task, conditioning, own_text))
        return starter.process, MadeStarts(made, settings, first)

    def _starter(self, task: Task, conditioning: ConditioningTensors | None, own_text: bool) -> Starter:
        if conditioning is not None:
            return self._given(conditioning)
        settings, whole = self.settings, task.with_defaults(self.recipe.facts.task)
        if not own_text:
            return open_starter(self.reference, whole, steps=settings.steps)
        parts = engine_parts(self.folder, settings.engine, check_hashes=False)
        encoders = {name: part for name, part in parts.items() if name != "vae"}
        alone = replace(self.reference, loras=())  # theirs are in the graphs
        return open_starter(alone, whole, steps=settings.steps, given=encoders)

    def guidance_notes(self, guidance: Guidance) -> tuple[str, ...]:
        """Return a note where the guidance is not the calibrated one."""
        if self.recipe.facts.guidance is None:
            return ()
        calibrated = asdict(self.recipe.facts.guidance)
        changed = [
            f"{name}: {calibrated.get(name)} -> {value}"
            for name, value in guidance.to_dict().items()
            if calibrated.get(name) != value
        ]
        if not changed:
            return ()
        return (f"The guidance is not the calibrated one ({'; '.join(changed)}).",)

    def _given(self, conditioning: ConditioningTensors) -> GivenStarter:
        settings, signature = self.settings, self.reference.signature
        names = [spec.name for spec in signature.conditioning]
        rows = [len(tensor) for tensor in conditioning.values()]
        if sorted(conditioning) != sorted(names) or any(n != settings.num_images for n in rows):
            raise VerificationError(
                f"pipeline '{self.reference.name}'",
                got=f"conditioning {sorted(conditioning)}",
                expected=f"{names}, one row for each of the {settings.num_images} images",
                remedy="Correct the conditioning",
            )
        process = DenoisingProcess(self.reference.scheduler, settings.steps)
        shape = signature.sample.resolve(signature.sizes | {"batch": 1})[1:]
        return GivenStarter(process, shape, conditioning)
