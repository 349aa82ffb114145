"""Evaluate an exported folder on many images."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import torch

import accuquant
from accuquant._util.lock import only_writer
from accuquant._util.progress import Progress, Silent
from accuquant._util.scratch import scratch_beside
from accuquant.errors import VerificationError
from accuquant.manifest import MANIFEST_NAME, Manifest
from accuquant.networks.device import device_of
from accuquant.networks.memory import StageWatch, memory_named
from accuquant.pipelines.source import Source
from accuquant.pipelines.source_job import source_job, source_roots
from accuquant.pipelines.task import Task
from accuquant.units.cluster import Cluster, engine_of
from accuquant.units.job import Job
from accuquant.units.per_worker import PerWorker
from accuquant.units.units import Engine, KeptUnits, Units
from accuquant.verification.measure.decoder import blank_end, unpacked
from accuquant.verification.measure.features import extract_all
from accuquant.verification.measure.frechet import Gaussian

from .assemble import assemble
from .branches import FP32, INT8, OTHER, Tools, Workshop
from .evaluation_settings import EvaluationSettings, unit_name
from .figures import Judge
from .gathered import Gathered, RealSet
from .metrics import METRICS, needed_outputs
from .real_images import RealImages, check_width
from .result import Evaluation
from .shard import Meters, RealShards, Shards
from .store import EvaluationStore
from .subject_checks import check_features, check_other, check_real, check_task, check_videos, load_subject


@torch.no_grad()
def evaluate(
    folder: str | os.PathLike[str],
    reference: Source,
    settings: EvaluationSettings,
    *,
    steps: int | None = None,
    task: Task | None = None,
    work: str | os.PathLike[str] | None = None,
    tf32: bool = False,
    cluster: Cluster | None = None,
    units: Callable[[Path, Engine], Units] = KeptUnits,
    progress: Progress | None = None,
) -> Evaluation:
    """Sample images with FP32 and with the exported `folder` from the same seeds, and measure them.

    `steps` None takes the calibrated number; what `task` leaves open is as it was calibrated. Finished shards
    lie in the folder `work`, `<folder>.evaluation` by default, which is gone at the end unless it was named;
    the same call goes on where it was interrupted, to the same result bit for bit, and with more images where
    fewer ended. The workers of a `cluster` have to see both folders; the figures are the same on however
    many. `tf32` says how they compute, and `units` makes what keeps shards. Memory does not grow with the
    number of images but for a few numbers an image; features are on disk.
    Raises UsageError for metrics that cannot be measured, MissingDependencyError and VerificationError where
    a metric's library or weights are missing, all before the first image; VerificationError with the stage
    where memory runs out.
    """
    root, shown = Path(folder), StageWatch(progress or Silent())
    place = root.with_name(root.name + ".evaluation") if work is None else Path(work)
    device = device_of(reference.network)
    with (
        only_writer(place),
        memory_named(
            shown, device, settings.batch_size, error=VerificationError, kept="finished shards stay"
        ),
    ):
        run = _Run(root, reference, settings, Manifest.load(root).steps(steps), task or Task(), shown)
        with engine_of(cluster, lambda: run.job(tf32), source_roots(reference), shown.message) as engine:
            result, store = run.result(place, units, engine)
        if work is None:
            store.remove()
        return result


class _Run:
    """An evaluation whose inputs are checked."""

    def __init__(
        self,
        folder: Path,
        reference: Source,
        settings: EvaluationSettings,
        steps: int,
        task: Task,
        progress: Progress,
    ) -> None:
        self._settings, self._steps, self._progress = settings, steps, progress
        self._subject = load_subject(folder, reference, settings, steps)
        reference = self._subject.reference
        self._notes = self._subject.check()
        folders = {INT8: folder}
        if settings.against is not None:
            check_other(settings.against, self._subject.manifest)
            load_subject(settings.against, reference, settings, steps).check()
            folders[OTHER] = settings.against
        self._task = task.with_defaults(self._subject.recipe.facts.task)
        check_task(reference, self._task, settings)
        self._real = None if settings.real is None else RealImages.open(settings.real)
        if self._real is not None:
            check_real(self._real, settings)
        self._folders = tuple(folders.values())
        self.shop = Workshop(reference, folders, settings, self._task, steps)

    def job(self, tf32: bool) -> Job:
        """Return what workers open: the pipeline, and they have to see the exports."""
        sees = {str((f / MANIFEST_NAME).absolute()): (f / MANIFEST_NAME).read_bytes() for f in self._folders}
        return source_job(self.shop.reference, tf32=tf32, sees=sees)

    def result(
        self, place: Path, units: Callable[[Path, Engine], Units], engine: Engine
    ) -> tuple[Evaluation, EvaluationStore]:
        """Compute what is missing, and judge all of it."""
        self._progress.stage("opening networks and engines", 0)
        shop = self.shop  # what travels refers to this alone
        tools = PerWorker(lambda: Tools.of(shop))
        with closing(tools.get()) as opened:
            shape = self._image_shape(opened)
            check_videos(shape, self._settings)
            meters = PerWorker(lambda: Meters(shop, shape))
            store = EvaluationStore(
                place, self._identity(self._check_networks(meters.get(), shape)), units, engine
            )
            return self._measured(store, place, Shards(shop, tools, meters), shape), store

    def _measured(
        self, store: EvaluationStore, place: Path, shards: Shards, shape: tuple[int, ...]
    ) -> Evaluation:
        settings = self._settings
        with scratch_beside(place) as scratch:
            keep = "precision" in settings.metrics
            gathered = Gathered(scratch, settings.num_images, keep_features=keep)
            names = "FP32, int8 and the other export" if settings.against else "FP32 and int8"
            self._progress.stage(f"images through {names}", settings.num_images)
            for shard in store.shards("images", settings.units, shards, self._progress):
                gathered.add(shard)
            real_set = self._real_set(store, scratch, shards.meters)
            self._progress.stage("figures and their intervals", 0)
            judge = Judge(
                gathered, (FP32, *self.shop.folders), resamples=settings.resamples,
                real=self._statistics(real_set), real_set=real_set if keep else None,
            )  # fmt: skip
            return self._assembled(judge, gathered, shards, shape)

    def _assembled(
        self, judge: Judge, gathered: Gathered, shards: Shards, shape: tuple[int, ...]
    ) -> Evaluation:
        features = shards.meters.get().features().name if needed_outputs(self._settings.metrics) else "none"
        guidance = shards.tools.get().process.guidance
        return assemble(
            self._subject,
            self._settings,
            judge,
            gathered,
            image_shape=shape,
            features=features,
            notes=self._notes + self._subject.guidance_notes(guidance),
        )

    def _image_shape(self, tools: Tools) -> tuple[int, ...]:
        """Decode one latent; on the way, sampler, decoder and engines show what they cannot do."""
        start = tools.start(range(1))
        for branch in tools.branches.values():
            tools.process.reset()
            tools.process.step(start.conditioning.bind(branch), start.latents, 0, start.fresh_generators())
        end = blank_end(self.shop.reference, start, 1)
        return tuple(tools.decode(unpacked(end, start.conditioning)).shape[1:])

    def _check_networks(self, meters: Meters, shape: tuple[int, ...]) -> dict[str, int]:
        """Load every network that a metric needs; return the width of what the feature network gives."""
        wanted = needed_outputs(self._settings.metrics)
        extractor = meters.features() if wanted else None
        check_features(extractor, self._settings)
        black = torch.zeros(2, *shape)
        for score in meters.pairs().values():
            score(black, black)
        for judge in meters.prompts().values():
            judge(black, [self._task.prompts[0]] * 2)
        if extractor is None:
            return {}
        width = {name: values.shape[1] for name, values in extract_all(extractor, black, wanted).items()}
        if self._real is not None:
            for output, statistics in self._real.statistics.items():
                if output in width:
                    check_width(self._real.path, extractor.name, statistics, width[output])
        return width

    def _real_set(self, store: EvaluationStore, scratch: Path, meters: PerWorker[Meters]) -> RealSet | None:
        """Measure the real images, where statistics alone do not do."""
        real, settings = self._real, self._settings
        asked = [METRICS[name] for name in settings.metrics if METRICS[name].real]
        if real is None or all(m.sets and m.output in real.statistics for m in asked):
            return None
        found = RealSet(
            scratch, needed_outputs(m.name for m in asked), keep_features="precision" in settings.metrics
        )
        names = [
            unit_name(first, min(first + settings.shard_size, real.count))
            for first in range(0, real.count, settings.shard_size)
        ]
        self._progress.stage("real images", real.count)
        for shard in store.shards("real", names, RealShards(real, meters), self._progress):
            found.add(shard)
        return found

    def _statistics(self, real_set: RealSet | None) -> Mapping[str, Gaussian]:
        """Return what FID and sFID compare with: statistics that came with the images before our own."""
        measured = {} if real_set is None else {k: m.gaussian for k, m in real_set.moments.items()}
        return measured | ({} if self._real is None else self._real.statistics)

    def _identity(self, width: Mapping[str, int]) -> dict[str, Any]:
        """Return all that a shard depends on."""
        settings, reference = self._settings, self._subject.reference
        return {
            "version": accuquant.__version__,
            "torch": torch.__version__,
            "device": device_of(reference.network).type,
            "model_hash": reference.model_hash,
            "exports": [_export_identity(folder) for folder in self._folders],
            "task": self._task.to_dict(),
            "steps": self._steps,
            "metrics": sorted(settings.metrics),
            "width": dict(width),
            "real": None if self._real is None else [str(self._real.path.resolve()), self._real.count],
            "weights": {name: str(path) for name, path in settings.weights.items()},
            "class_labels": settings.class_labels,
            "keep_images": None if settings.keep_images is None else str(settings.keep_images.resolve()),
            **{
                name: getattr(settings, name)
                for name in ("seed", "batch_size", "shard_size", "engine", "engine_precision", "features")
            },
        }


def _export_identity(folder: Path) -> str:
    """Return a digest of the manifest, which names the digests of all other files."""
    return hashlib.sha256(Manifest.load(folder).to_json().encode()).hexdigest()
