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
from accuquant.units.tensor_tree import Tree
from accuquant.verification.measure.metrics import mse

#: (sample [B, C, H, W], timestep, conditioning by name) -> prediction [B, C, H, W]
BranchFn = Callable[[Tensor, Tensor, Mapping[str, Tensor]], Tensor]
#: What is compared: the name of the error, the branch, the branch that it is compared with.
_PAIRS = {
    "simulated": ("simulated", "reference"),
    "engine": ("engine", "reference"),
    "lowering": ("engine", "simulated"),
}


@dataclass(frozen=True)
class Branches:
    """The networks to compare: FP32, fake-quantized in PyTorch, and the engine."""

    reference: BranchFn
    simulated: BranchFn
    engine: BranchFn


@dataclass(frozen=True)
class Rollout:
    """What the branches did from the B seeds of one start over T steps.

    `final` maps "reference", "simulated" and "engine" to latents [B, C, H, W]. `errors` maps
    "simulated" and "engine" (against the reference) and "lowering" (engine against simulated) to the
    latent mean squared error after every step [T, B]. `step_errors` [T, B], where they are measured, holds
    what one step adds: the branch's step against the FP32 network's step from the branch's own latent, so
    nothing accumulates in it.
    """

    start: Start
    final: Mapping[str, Tensor]
    errors: Mapping[str, Tensor]
    step_errors: Mapping[str, Tensor]


@dataclass
class NetworkCalls:
    """What the reference network was given at each step, scaled and guided, for `num_images` at most.

    `samples` [T] of [n, copies, C', H, W], under the `conditioning` of the n images.
    """

    num_images: int
    samples: list[Tensor] = field(default_factory=list)
    conditioning: Conditioning = field(default_factory=Conditioning)

    def watched(self, branch: BranchFn, start: Start) -> BranchFn:
        """Return `branch`, whose calls from `start` are kept."""
        members = slice(0, self.num_images)
        self.conditioning = start.conditioning.rows(members)

        def run(sample: Tensor, timestep: Tensor, conditioning: Mapping[str, Tensor]) -> Tensor:
            copies = len(sample) // len(start)
            batch = Conditioning.from_batch({"sample": sample}, None, copies)
            self.samples.append(batch.tensors["sample"][members].clone())
            return branch(sample, timestep, conditioning)

        return run

    def at(self, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Return sample [copies * n, C', H, W] and conditioning of the network call at loop index `step`."""
        sample = Conditioning({"sample": self.samples[step]}).arguments()["sample"]
        return sample, self.conditioning.arguments()

    def to_tree(self) -> Tree:
        """Return what another process has seen; `take` reads it back."""
        return {"samples": self.samples, "conditioning": self.conditioning.to_tensors()}

    def take(self, tree: Tree) -> None:
        """Read what `to_tree` returned."""
        self.samples = list(tree["samples"])
        self.conditioning = Conditioning.from_tensors(tree["conditioning"])


@torch.no_grad()
def roll_out(
    process: DenoisingProcess,
    branches: Branches,
    start: Start,
    *,
    calls: NetworkCalls | None = None,
    engine_start: Start | None = None,
    progress: Progress,
) -> Rollout:
    """Sample from `start` with every branch; with `calls`, which are filled, measure the step errors too.

    `engine_start` is that of the engine, where its text encoders are not those of the others.
    `progress` is advanced as often as `advances` says. Raises VerificationError where a branch returns values
    that are not finite.
    """
    reference = start.conditioning.bind(branches.reference)
    latents: dict[str, list[Tensor]] = {}
    step_errors: dict[str, Tensor] = {}
    for name, branch in vars(branches).items():
        first, compared = calls is not None, name != "reference"
        network = calls.watched(branch, start) if calls is not None and not compared else branch
        own = engine_start if name == "engine" and engine_start is not None else start
        bound = own.conditioning.bind(network)
        trajectory = Trajectory(name, process, bound, reference if first and compared else None, progress)
        latents[name], alone = trajectory.run(own)
        if alone:
            step_errors[name] = torch.stack(alone)
    return Rollout(
        start=start,
        final={name: kept[-1] for name, kept in latents.items()},
        errors={pair: _errors(latents[one], latents[other]) for pair, (one, other) in _PAIRS.items()},
        step_errors=step_errors,
    )


def advances(process: DenoisingProcess, *, first: bool) -> int:
    """Return how many steps `roll_out` counts; the `first` start is that with the network's calls."""
    return len(process) * (5 if first else 3)


@dataclass(frozen=True)
class Trajectory:
    """The way of one branch; `reference` is a network whose single steps are compared with the branch's."""

    name: str
    process: DenoisingProcess
    network: NetworkFn
    reference: NetworkFn | None
    progress: Progress

    def run(self, start: Start) -> tuple[list[Tensor], list[Tensor]]:
        """Return the latents [B, C, H, W] after each step and, with a reference, the step errors [B]."""
        process = self.process
        generators, latents = start.fresh_generators(), start.latents
        process.reset()  # a scheduler's history must not go on from the branch before
        kept: list[Tensor] = []
        step_errors: list[Tensor] = []
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
        return kept, step_errors

    def _check_finite(self, latents: Tensor, step: int) -> None:
        if not bool(torch.isfinite(latents).all()):
            raise VerificationError(
                f"{self.name} network, step {step + 1} (timestep {self.process.timesteps[step]:g})",
                got="latents that are not finite",
                expected="finite numbers",
                remedy="Calibrate and export again; with fp16, try --precision bf16 or fp32",
            )


def _errors(latents: Sequence[Tensor], reference: Sequence[Tensor]) -> Tensor:
    return torch.stack([mse(x, y) for x, y in zip(latents, reference, strict=True)])
