"""Run several networks through the same denoising process from the same seeds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from accuquant.denoising import DenoisingProcess, NetworkFn, seeded_generators
from accuquant.errors import VerificationError
from accuquant.progress import Progress
from accuquant.verification.metrics import mse

#: (sample [B, C, H, W], timestep, conditioning by name) -> prediction [B, C, H, W]
BranchFn = Callable[[Tensor, Tensor, Mapping[str, Tensor]], Tensor]


@dataclass(frozen=True)
class Branches:
    """The networks to compare: FP32, fake-quantized in PyTorch, and the engine."""

    reference: BranchFn
    simulated: BranchFn
    engine: BranchFn


@dataclass(frozen=True)
class Rollouts:
    """What the branches did from the same N seeds over T steps.

    `final` maps "reference", "simulated" and "engine" to latents [N, C, H, W]. `errors` maps
    "simulated" and "engine" (against the reference) and "lowering" (engine against simulated) to the
    latent mean squared error after every step [T, N]. `step_errors` [T, n] holds, for the first n
    seeds, what one step adds: the branch's step against the FP32 network's step from the branch's own
    latent, so nothing accumulates in it. `inputs` [T, n, C, H, W]: what the reference saw at each step.
    """

    timesteps: tuple[float, ...]
    final: Mapping[str, Tensor]
    errors: Mapping[str, Tensor]
    step_errors: Mapping[str, Tensor]
    inputs: Tensor


@dataclass
class _Batch:
    """Latents by branch [T + 1, B, C, H, W], the initial ones first, and step errors [T, B]."""

    latents: dict[str, Tensor] = field(default_factory=dict)
    step_errors: dict[str, Tensor] = field(default_factory=dict)


@torch.no_grad()
def roll_out(
    process: DenoisingProcess,
    branches: Branches,
    shape: Sequence[int],
    *,
    num_images: int,
    seed: int,
    batch_size: int,
    conditioning: Mapping[str, Tensor] | None = None,
    progress: Progress,
) -> Rollouts:
    """Sample latents [num_images, *shape] with every branch; image k starts from seed + k.

    `conditioning` holds tensors [num_images, ...]. The step errors come from the first batch. Raises
    VerificationError where a branch returns values that are not finite.
    """
    starts = range(0, num_images, batch_size)
    progress.stage("denoising with FP32, simulation and engine", len(process) * (3 * len(starts) + 2))
    batches = []
    for start in starts:
        members = slice(start, min(start + batch_size, num_images))
        bound = {name: tensor[members] for name, tensor in (conditioning or {}).items()}
        seeds = range(seed + members.start, seed + members.stop)
        batches.append(
            _run_batch(process, branches, shape, seeds, bound, progress, with_step_errors=start == 0)
        )
    return _join(process, batches)


def _run_batch(
    process: DenoisingProcess,
    branches: Branches,
    shape: Sequence[int],
    seeds: range,
    conditioning: Mapping[str, Tensor],
    progress: Progress,
    *,
    with_step_errors: bool,
) -> _Batch:
    def bind(branch: BranchFn) -> NetworkFn:
        return lambda sample, timestep: branch(sample, timestep, conditioning)

    batch = _Batch()
    reference = bind(branches.reference)
    for name, branch in vars(branches).items():
        compared = reference if with_step_errors and name != "reference" else None
        trajectory = _Trajectory(name, process, bind(branch), compared, progress)
        batch.latents[name], step_errors = trajectory.run(shape, seeds)
        if step_errors:
            batch.step_errors[name] = torch.stack(step_errors)
    return batch


@dataclass(frozen=True)
class _Trajectory:
    name: str
    process: DenoisingProcess
    network: NetworkFn
    reference: NetworkFn | None
    progress: Progress

    def run(self, shape: Sequence[int], seeds: range) -> tuple[Tensor, list[Tensor]]:
        """Return the latents [T + 1, B, C, H, W] and, with a reference, the step errors."""
        process = self.process
        generators = seeded_generators(seeds)
        latents = process.initial_latents(tuple(shape), generators)
        start = process.save_state()
        kept, step_errors = [latents], []
        for step in range(len(process)):
            state = process.save_state(generators)
            after = process.step(self.network, latents, step, generators)
            self._check_finite(after, step)
            if self.reference is not None:
                after_state = process.save_state(generators)
                exact = process.step(self.reference, latents, step, process.restore_state(state))
                generators = process.restore_state(after_state)
                step_errors.append(mse(after, exact))
                self.progress.advance()
            latents = after
            kept.append(after)
            self.progress.advance()
        process.restore_state(start)  # a scheduler with a history must not carry it into the next branch
        return torch.stack(kept), step_errors

    def _check_finite(self, latents: Tensor, step: int) -> None:
        if not bool(torch.isfinite(latents).all()):
            raise VerificationError(
                f"{self.name} network, step {step + 1} (timestep {self.process.timesteps[step]:g})",
                got="latents that are not finite",
                expected="finite numbers",
                remedy="Calibrate and export again; with fp16, try --precision fp32",
            )


def _join(process: DenoisingProcess, batches: Sequence[_Batch]) -> Rollouts:
    pairs = {
        "simulated": ("simulated", "reference"),
        "engine": ("engine", "reference"),
        "lowering": ("engine", "simulated"),
    }
    return Rollouts(
        timesteps=tuple(process.timesteps),
        final={name: torch.cat([b.latents[name][-1] for b in batches]) for name in batches[0].latents},
        errors={
            pair: torch.cat([_errors(b.latents[name], b.latents[other]) for b in batches], dim=1)
            for pair, (name, other) in pairs.items()
        },
        step_errors=batches[0].step_errors,
        inputs=batches[0].latents["reference"][:-1],
    )


def _errors(latents: Tensor, reference: Tensor) -> Tensor:
    return torch.stack([mse(x, y) for x, y in zip(latents[1:], reference[1:], strict=True)])
