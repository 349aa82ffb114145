"""Compare bfloat16 around int8 with float32 around it, for whoever asks OpenVINO for "auto" afterwards."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import torch
from torch import Tensor

from accuquant._util.real_model import real_model
from accuquant.denoising.process import DenoisingProcess
from accuquant.denoising.start import Start
from accuquant.manifest import Manifest
from accuquant.runtime.cpu_forms.precision_verdict import PrecisionVerdict, keep_verdict
from accuquant.runtime.cpu_forms.select import graph_digest, name_of_place
from accuquant.runtime.engine_model import EngineModel
from accuquant.verification.measure.latency import measure_latencies
from accuquant.verification.measure.metrics import psnr
from accuquant.verification.measure.rollout import BranchFn


def judge_bfloat16(
    folder: Path,
    process: DenoisingProcess,
    start: Start,
    reference: BranchFn,
    branch_of: Callable[[EngineModel], BranchFn],
    images: Callable[[Tensor], Tensor],
) -> tuple[str, ...]:
    """Compare the two on the images of `start` and keep the verdict on this machine -> a note for the report.

    `reference` is the FP32 network, `images` maps latents to images [N, C, H, W] in [0, 1]. Nothing is done,
    and nothing noted, on a processor without bfloat16.
    """
    import openvino

    place = name_of_place(openvino.Core())
    if "BF16" not in place:
        return ()
    with ExitStack() as stack:

        def engine(precision: str) -> BranchFn:
            model = EngineModel.from_folder(folder, "openvino", check_hashes=False, precision=precision)
            return branch_of(stack.enter_context(model))

        verdict = compare_precisions(process, start, reference, engine("fp32"), engine("bf16"), images)
    for graph in Manifest.load(folder).graph_paths(folder):
        keep_verdict(graph_digest(real_model(graph)), place, verdict)
    taken = "takes bf16" if verdict.takes_bf16 else "stays with fp32"
    return (f"{verdict}: on this machine --engine-precision auto {taken} from now on.",)


def compare_precisions(
    process: DenoisingProcess,
    start: Start,
    reference: BranchFn,
    fp32: BranchFn,
    bf16: BranchFn,
    images: Callable[[Tensor], Tensor],
) -> PrecisionVerdict:
    """Sample from `start` with all three, and time one call of both engines in turn."""
    branches = {"reference": reference, "fp32": fp32, "bf16": bf16}
    made = {name: images(_final(process, start, branch)) for name, branch in branches.items()}
    sample, timestep = process.guidance.expand(start.latents), torch.tensor(process.timesteps[0])

    def timed(branch: BranchFn) -> Callable[[], object]:
        network = start.conditioning.bind(branch)
        return lambda: network(sample, timestep)

    calls = {name: timed(branches[name]) for name in ("fp32", "bf16")}
    times = {taken.name: taken.median_ms for taken in measure_latencies(calls, batch_size=len(sample))}
    decibels = {name: float(psnr(made[name], made["reference"]).median()) for name in calls}
    return PrecisionVerdict(decibels["fp32"], decibels["bf16"], times["fp32"], times["bf16"])


def _final(process: DenoisingProcess, start: Start, branch: BranchFn) -> Tensor:
    """Return the last latents of a trajectory."""
    network, generators, latents = start.conditioning.bind(branch), start.fresh_generators(), start.latents
    process.reset()
    for step in range(len(process)):
        latents = process.step(network, latents, step, generators)
    return latents
