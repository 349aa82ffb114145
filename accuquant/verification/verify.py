"""Verify an exported folder: the same seeds through FP32, simulation and engine, then the verdict."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import reduce
from pathlib import Path

import torch
from torch import Tensor, nn

from accuquant._util.progress import Progress, Silent
from accuquant._util.real_model import real_model
from accuquant._util.scratch import scratch_folder
from accuquant.denoising.process import DenoisingProcess
from accuquant.denoising.start import Start
from accuquant.errors import VerificationError
from accuquant.manifest import Manifest
from accuquant.networks.device import device_of
from accuquant.networks.memory import StageWatch, memory_named
from accuquant.networks.network import ConditioningTensors
from accuquant.networks.simulate import simulate
from accuquant.pipelines.source import Source
from accuquant.pipelines.task import Task
from accuquant.runtime.engine_model import EngineModel
from accuquant.runtime.open_runner import precision_options
from accuquant.runtime.openvino_runner import OpenVinoRunner
from accuquant.verification.branch_functions import engine_branch, torch_branch
from accuquant.verification.measure.decoder import Decode, load_decoder, unpacked
from accuquant.verification.measure.engine_precision import judge_bfloat16
from accuquant.verification.measure.features import load_features
from accuquant.verification.measure.latency import Latency, measure_latencies
from accuquant.verification.measure.parity import LayerParity, layer_parity
from accuquant.verification.measure.rollout import Branches, BranchFn, NetworkCalls, Rollout, roll_out
from accuquant.verification.measure.subject import Subject
from accuquant.verification.report.assemble import assemble
from accuquant.verification.report.report import Report
from accuquant.verification.report.tally import Tally
from accuquant.verification.report.thresholds import Thresholds
from accuquant.verification.verification_settings import VerificationSettings

#: Images of a timed call, and of the comparison of layers.
_SMALL_BATCH = 4


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
    progress: Progress | None = None,
) -> Report:
    """Compare the exported `folder` with the pipeline it came from and judge it by `thresholds`.

    `steps` None takes the calibrated number. `trust_engines` runs TensorRT engines that came with a download.
    `engine_precision` is what OpenVINO computes in around int8.
    `task` holds prompts, images and guidance; what it leaves open is as it was calibrated. `conditioning`,
    tensors [num_images, ...] by name, is for a network without its pipeline. `decode` maps latents to images
    [N, C, H, W] in [0, 1]; the pipeline's own decoder by default. `float_engine` is a float32 engine to time
    beside the others.
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
    ):
        decode = decode or load_decoder(reference)
        process, starts = subject.begin(given, conditioning, scratch, shown)
        image_shape = _image_shape(decode, starts.first)
        extractor = load_features(features, image_shape)
        limits.check_measurable(
            fid=extractor is not None and num_images > 1, int8_share=engine == OpenVinoRunner.engine
        )
        tally, calls = Tally(extractor if num_images > 1 else None), NetworkCalls(_SMALL_BATCH)
        simulated = simulate(reference.network, subject.recipe)
        around = precision_options(engine, engine_precision)
        with EngineModel.from_folder(subject.folder, engine, trust_engines=trust_engines, **around) as model:
            model.activate()
            branches = Branches(
                torch_branch(reference.network), torch_branch(simulated), engine_branch(model)
            )
            _probe(process, starts.first, branches.engine)
            for rollout in roll_out(process, branches, starts, calls=calls, progress=shown):
                tally.add(rollout, _images(decode, rollout))
            latencies = _latencies(branches, float_engine, process, calls, engine)
            int8_use = model.int8_use
            notes += model.chosen
        if engine == OpenVinoRunner.engine and engine_precision == "auto":
            notes += judge_bfloat16(
                subject.folder, process, starts.first, branches.reference, engine_branch,
                lambda latents: decode(unpacked(latents, starts.first.conditioning)),
            )  # fmt: skip
        compared = _layers(subject, simulated, process, calls, shown) if layers else None
    return assemble(
        subject,
        tally,
        timesteps=tuple(process.timesteps),
        image_shape=image_shape,
        prompts=given.prompts,
        thresholds=limits,
        latencies=latencies,
        layers=compared,
        notes=notes + subject.guidance_notes(process.guidance),
        int8_use=int8_use,
    )


def _images(decode: Decode, rollout: Rollout) -> dict[str, Tensor]:
    conditioning = rollout.start.conditioning
    return {name: decode(unpacked(latents, conditioning)) for name, latents in rollout.final.items()}


def _image_shape(decode: Decode, start: Start) -> tuple[int, ...]:
    latents = torch.zeros_like(start.latents[:1])
    return tuple(decode(unpacked(latents, start.conditioning)).shape[1:])


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
) -> tuple[Latency, ...]:
    step = len(process) // 2
    sample, rows = calls.at(step)
    timestep = torch.tensor(process.timesteps[step])
    networks = {"FP32 PyTorch": branches.reference}
    if float_engine is not None:
        networks[f"FP32 {engine}"] = float_engine
    networks[f"int8 {engine}"] = branches.engine

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
    graphs, last = subject.manifest.graph_paths(subject.folder), len(process) - 1
    chosen = sorted({0, last // 2, last})
    shown.stage("layer by layer", len(chosen))
    measured = []
    for step in chosen:
        timestep = process.timesteps[step]
        sample, conditioning = calls.at(step)
        graph = graphs[subject.recipe.groups.find(timestep) if len(graphs) > 1 else 0]
        parity = layer_parity(
            real_model(graph),
            simulated,
            subject.recipe,
            sample,
            timestep,
            conditioning=conditioning,
        )
        measured.append(parity)
        shown.advance()
    return tuple(reduce(LayerParity.merge, same) for same in zip(*measured, strict=True))
