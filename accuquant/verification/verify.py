"""Verify an exported folder: the same seeds through FP32, simulation and engine, then the verdict."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import replace
from functools import reduce
from pathlib import Path

import torch
from torch import nn

from accuquant._util.progress import AtHome, Progress, Silent
from accuquant._util.real_model import real_model
from accuquant._util.scratch import scratch_folder
from accuquant.denoising.process import DenoisingProcess
from accuquant.denoising.start import Start
from accuquant.e4m3 import Format
from accuquant.errors import VerificationError
from accuquant.manifest import MANIFEST_NAME, Manifest
from accuquant.networks.device import device_of
from accuquant.networks.memory import StageWatch, memory_named
from accuquant.networks.network import ConditioningTensors
from accuquant.pipelines.source import Source
from accuquant.pipelines.source_job import source_job, source_roots
from accuquant.pipelines.task import Task
from accuquant.runtime.engine_model import EngineModel
from accuquant.runtime.openvino_runner import OpenVinoRunner
from accuquant.units.cluster import Cluster, engine_of
from accuquant.units.job import Job
from accuquant.units.per_worker import PerWorker
from accuquant.units.tensor_tree import Tree
from accuquant.verification.batches import SMALL_BATCH, Batches, BatchStarts, Networks, Viewer, compute
from accuquant.verification.branch_functions import export_branch
from accuquant.verification.measure.decoder import Decode, unpacked
from accuquant.verification.measure.embeddings import embedding_notes
from accuquant.verification.measure.engine_precision import judge_bfloat16
from accuquant.verification.measure.exported_decoder import decoder_notes
from accuquant.verification.measure.latency import Latency, measure_latencies
from accuquant.verification.measure.parity import LayerParity, layer_parity
from accuquant.verification.measure.rollout import Branches, BranchFn, NetworkCalls
from accuquant.verification.measure.subject import Subject
from accuquant.verification.report.assemble import assemble
from accuquant.verification.report.report import Report
from accuquant.verification.report.tally import Tally
from accuquant.verification.report.thresholds import Thresholds
from accuquant.verification.verification_settings import VerificationSettings


@torch.no_grad()
def verify(
    folder: str | os.PathLike[str],
    reference: Source,
    *,
    engine: str = "openvino",
    num_images: int = 64,
    steps: int | None = None,
    seed: int = 10_000,
    batch_size: int = 16,
    features: str = "auto",
    thresholds: Thresholds | None = None,
    layers: bool = False,
    allow_other_scheduler: bool = False,
    trust_engines: bool = False,
    engine_precision: str = "auto",
    task: Task | None = None,
    conditioning: ConditioningTensors | None = None,
    decode: Decode | None = None,
    float_engine: BranchFn | None = None,
    tf32: bool = False,
    cluster: Cluster | None = None,
    progress: Progress | None = None,
) -> Report:
    """Compare the exported `folder` with the pipeline it came from and judge it by `thresholds`.

    `steps` None takes the calibrated number. `trust_engines` runs TensorRT engines that came with a download.
    `engine_precision` is what OpenVINO computes in around int8.
    `task` holds prompts, images and guidance; what it leaves open is as it was calibrated. `conditioning`,
    tensors [num_images, ...] by name, is for a network without its pipeline. `decode` maps latents to images
    [N, C, H, W] in [0, 1]; the pipeline's own decoder by default. `float_engine` is a float32 engine to time
    beside the others. The workers of a `cluster`, who compute as `tf32` says, have to see the folder: they
    make the images, and the figures are the same on however many; what is timed is timed here.
    Memory does not grow with `num_images`: a batch leaves a few numbers an image, and ten pictures.
    Raises VerificationError where the folder belongs to another model or scheduler, and, with the stage,
    where memory runs out.
    """
    count = Manifest.load(Path(folder)).steps(steps)
    settings = VerificationSettings(
        engine, num_images, count, seed, batch_size, features, layers, allow_other_scheduler
    )
    limits, shown = thresholds or Thresholds(), StageWatch(progress or Silent())
    subject = Subject.load(Path(folder), reference, settings)
    reference = subject.reference
    notes, given = subject.check(), task or Task()
    with (
        memory_named(
            shown,
            device_of(reference.network),
            batch_size,
            error=VerificationError,
            kept="nothing was written",
        ),
        scratch_folder("verify") as scratch,
        engine_of(cluster, lambda: _job(subject, tf32), source_roots(reference), shown.message) as where,
    ):
        process, starts = (
            subject.begin_anywhere(given, conditioning)
            if where.away
            else subject.begin(given, conditioning, scratch, shown)
        )
        first = starts.batch(0)
        engine_starts: BatchStarts | None = None
        if subject.encodes_itself and conditioning is None:
            _, engine_starts = (
                subject.begin_anywhere(given, None, own_text=True)
                if where.away
                else subject.begin(given, None, scratch / "engine", shown, own_text=True)
            )
            notes += embedding_notes(first, engine_starts.batch(0), subject.manifest.text_weights)
        viewer = PerWorker(lambda: Viewer.of(subject, decode, first))
        notes += decoder_notes(subject, viewer.get().exported)
        extractor = viewer.get().extractor
        limits.check_measurable(
            fid=extractor is not None and num_images > 1, int8_share=engine == OpenVinoRunner.engine
        )
        tally, calls = Tally(extractor if num_images > 1 else None), NetworkCalls(SMALL_BATCH)
        networks = PerWorker(
            lambda: Networks.of(subject, trust_engines=trust_engines, engine_precision=engine_precision)
        )
        with closing(networks.get()) as opened:
            _probe(process, first, opened.branches.engine)
            batches = Batches(subject, process, starts, engine_starts, viewer, networks, AtHome(shown))

            def take(batch: Tree) -> None:
                tally.add(batch)
                if "calls" in batch:
                    calls.take(batch["calls"])

            compute(where, batches, shown, take)
            latencies = _latencies(
                opened.branches, float_engine, process, calls, engine, subject.recipe.format
            )
            int8_use = opened.model.int8_use
            notes += opened.model.chosen
        if engine == OpenVinoRunner.engine and engine_precision == "auto":
            show = viewer.get().decode
            with ExitStack() as around:

                def branch_of(model: EngineModel) -> BranchFn:
                    network, fresh = subject.reference.network, {"check_hashes": False}
                    return export_branch(subject.folder, model, network, around, engine, **fresh)

                notes += judge_bfloat16(
                    subject.folder, process, first, opened.branches.reference, branch_of,
                    lambda latents: show(unpacked(latents, first.conditioning)),
                )  # fmt: skip
        compared = _layers(subject, opened.simulated, process, calls, shown) if layers else None
    return assemble(
        subject,
        tally,
        timesteps=tuple(process.timesteps),
        image_shape=viewer.get().image_shape,
        prompts=given.prompts,
        thresholds=limits,
        latencies=latencies,
        layers=compared,
        notes=notes + subject.guidance_notes(process.guidance),
        int8_use=int8_use,
    )


def _job(subject: Subject, tf32: bool) -> Job:
    """Return what workers open: the pipeline, and they have to see the export."""
    manifest = subject.folder / MANIFEST_NAME
    return source_job(subject.reference, tf32=tf32, sees={str(manifest.absolute()): manifest.read_bytes()})


def _probe(process: DenoisingProcess, start: Start, engine: BranchFn) -> None:
    """Call the engine once: what it cannot run should show before the minutes that FP32 takes."""
    sample = process.guidance.expand(start.latents)
    start.conditioning.bind(engine)(sample, torch.tensor(process.timesteps[0]))


def _latencies(
    branches: Branches,
    float_engine: BranchFn | None,
    process: DenoisingProcess,
    calls: NetworkCalls,
    engine: str,
    levels: Format,
) -> tuple[Latency, ...]:
    step = len(process) // 2
    sample, rows = calls.at(step)
    timestep = torch.tensor(process.timesteps[step])
    networks = {"FP32 PyTorch": branches.reference}
    if float_engine is not None:
        networks[f"FP32 {engine}"] = float_engine
    networks[f"{levels} {engine}"] = branches.engine

    def timed(network: BranchFn) -> Callable[[], object]:
        return lambda: network(sample, timestep, rows)

    return measure_latencies({name: timed(f) for name, f in networks.items()}, batch_size=len(sample))


def _layers(
    subject: Subject, simulated: nn.Module, process: DenoisingProcess, calls: NetworkCalls, shown: Progress
) -> tuple[LayerParity, ...]:
    """Compare the levels at the first, the middle and the last step; each layer's counts are summed.

    The exported graph runs in ONNX Runtime: this checks the lowering. What the chosen engine adds shows in
    the lowering loss, since outputs added to a graph change what OpenVINO fuses and so its very levels.
    """
    last = len(process) - 1
    chosen = sorted({0, last // 2, last})
    pieces = subject.pieces()
    shown.stage("layer by layer", len(chosen))
    measured = []
    for step in chosen:
        timestep = process.timesteps[step]
        sample, conditioning = calls.at(step)
        found: list[LayerParity] = []
        for piece in pieces:
            called = piece.called(simulated, sample, timestep, conditioning)
            found += [
                replace(parity, name=piece.whole_name(parity.name))
                for parity in layer_parity(
                    real_model(piece.graph(timestep)),
                    called.network,
                    piece.recipe,
                    called.sample,
                    timestep,
                    conditioning=called.conditioning,
                    invoke=called.invoke,
                )
            ]
        measured.append(tuple(found))
        shown.advance()
    return tuple(reduce(LayerParity.merge, same) for same in zip(*measured, strict=True))
