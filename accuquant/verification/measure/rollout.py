"""Run several networks through the same denoising process from the same seeds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from accuquant._util.progress import Progress
from accuquant.denoising.conditioning import Conditioning
from accuquant.denoising.process import DenoisingProcess, NetworkFn
from accuquant.denoising.start import Start
from accuquant.errors import VerificationError
from accuquant.verification.measure.metrics import mse

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
    latent, so nothing accumulates in it. `inputs` [T, copies * n, C', H, W]: what the reference network was
    given at each step, scaled and guided, under `conditioning`.
    """

    timesteps: tuple[float, ...]
    final: Mapping[str, Tensor]
    errors: Mapping[str, Tensor]
    step_errors: Mapping[str, Tensor]
    inputs: Tensor
    conditioning: Conditioning

    def network_call(self, step: int, count: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Return sample and conditioning of the network call at loop index `step`, `count` images at most."""
        copies = self.inputs.shape[1] // self.step_errors["engine"].shape[1]
        sample = Conditioning.from_batch({"sample": self.inputs[step]}, None, copies)
        members = slice(0, count)
        return sample.rows(members).arguments()["sample"], self.conditioning.rows(members).arguments()


@dataclass
class _Batch:
    """Latents by branch [T + 1, B, C, H, W], the initial ones first, and step errors [T, B]."""

    latents: dict[str, Tensor] = field(default_factory=dict)
    inputs: list[Tensor] = field(default_factory=list)
    step_errors: dict[str, Tensor] = field(default_factory=dict)


@torch.no_grad()
def roll_out(
    process: DenoisingProcess, branches: Branches, starts: Sequence[Start], *, progress: Progress
) -> Rollouts:
    """Sample from `starts` with every branch.

    The step errors come from the first batch. Raises VerificationError where a branch returns values that
    are not finite.
    """
    progress.stage("denoising with FP32, simulation and engine", len(process) * (3 * len(starts) + 2))
    batches = [
        _run_batch(process, branches, start, progress, with_step_errors=start is starts[0])
        for start in starts
    ]
    return _join(process, batches, starts[0].conditioning)


def _run_batch(
    process: DenoisingProcess, branches: Branches, start: Start, progress: Progress, *, with_step_errors: bool
) -> _Batch:
    batch = _Batch()
    reference = start.conditioning.bind(branches.reference)
    for name, branch in vars(branches).items():
        compared = reference if with_step_errors and name != "reference" else None
        seen = batch.inputs if with_step_errors and name == "reference" else None
        network = start.conditioning.bind(branch if seen is None else _watched(branch, seen))
        trajectory = _Trajectory(name, process, network, compared, progress)
        batch.latents[name], step_errors = trajectory.run(start)
        if step_errors:
            batch.step_errors[name] = torch.stack(step_errors)
    return batch


def _watched(branch: BranchFn, seen: list[Tensor]) -> BranchFn:
    def run(sample: Tensor, timestep: Tensor, conditioning: Mapping[str, Tensor]) -> Tensor:
        seen.append(sample)
        return branch(sample, timestep, conditioning)

    return run


@dataclass(frozen=True)
class _Trajectory:
    name: str
    process: DenoisingProcess
    network: NetworkFn
    reference: NetworkFn | None
    progress: Progress

    def run(self, start: Start) -> tuple[Tensor, list[Tensor]]:
        """Return the latents [T + 1, B, C, H, W] and, with a reference, the step errors."""
        process = self.process
        generators, latents = start.fresh_generators(), start.latents
        process.reset()  # a scheduler's history must not go on from the branch before
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
        return torch.stack(kept), step_errors

    def _check_finite(self, latents: Tensor, step: int) -> None:
        if not bool(torch.isfinite(latents).all()):
            raise VerificationError(
                f"{self.name} network, step {step + 1} (timestep {self.process.timesteps[step]:g})",
                got="latents that are not finite",
                expected="finite numbers",
                remedy="Calibrate and export again; with fp16, try --precision bf16 or fp32",
            )


def _join(process: DenoisingProcess, batches: Sequence[_Batch], conditioning: Conditioning) -> Rollouts:
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
        inputs=torch.stack(batches[0].inputs),
        conditioning=conditioning,
    )


def _errors(latents: Tensor, reference: Tensor) -> Tensor:
    return torch.stack([mse(x, y) for x, y in zip(latents[1:], reference[1:], strict=True)])
