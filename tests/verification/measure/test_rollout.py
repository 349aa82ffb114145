from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from torch import Tensor

from accuquant._util.progress import Silent
from accuquant.denoising.process import DenoisingProcess
from accuquant.denoising.start import Start, seeded_starts
from accuquant.errors import VerificationError
from accuquant.verification.measure.rollout import Branches, NetworkCalls, Rollout, advances, roll_out

SHAPE = (1, 2, 2)
BIAS = 0.01


def zero(sample: Tensor, timestep: Tensor, conditioning: Mapping[str, Tensor]) -> Tensor:
    return torch.zeros_like(sample)


def biased(sample: Tensor, timestep: Tensor, conditioning: Mapping[str, Tensor]) -> Tensor:
    return torch.full_like(sample, BIAS)


def linear(sample: Tensor, timestep: Tensor, conditioning: Mapping[str, Tensor]) -> Tensor:
    return 0.3 * sample


def broken(sample: Tensor, timestep: Tensor, conditioning: Mapping[str, Tensor]) -> Tensor:
    return sample if timestep > 500 else sample * float("nan")


def ddim(steps: int) -> DenoisingProcess:
    return DenoisingProcess(DDIMScheduler(clip_sample=False), steps)


@dataclass(frozen=True)
class Joined:
    """The rollouts of all batches, behind one another."""

    final: dict[str, Tensor]
    errors: dict[str, Tensor]
    step_errors: dict[str, Tensor]
    calls: NetworkCalls


def join(rollouts: list[Rollout], calls: NetworkCalls) -> Joined:
    return Joined(
        {name: torch.cat([r.final[name] for r in rollouts]) for name in rollouts[0].final},
        {name: torch.cat([r.errors[name] for r in rollouts], 1) for name in rollouts[0].errors},
        dict(rollouts[0].step_errors),
        calls,
    )


def rolled_out(
    process: DenoisingProcess, branches: Branches, starts: list[Start], calls: NetworkCalls
) -> list[Rollout]:
    return [
        roll_out(process, branches, start, calls=None if number else calls, progress=Silent())
        for number, start in enumerate(starts)
    ]


def run(process: DenoisingProcess, branches: Branches, *, num_images: int = 3, batch_size: int = 2) -> Joined:
    starts = list(seeded_starts(process, SHAPE, count=num_images, batch_size=batch_size, seed=5))
    calls = NetworkCalls(4)
    return join(rolled_out(process, branches, starts, calls), calls)


def ddim_coefficients(process: DenoisingProcess) -> list[tuple[float, float]]:
    """Return (a_t, b_t) of x_{t-1} = a_t x_t + b_t eps (DDIM, arXiv 2010.02502, eq. 12, sigma 0)."""
    alphas = process.scheduler.alphas_cumprod.double().numpy()
    stride = 1000 // len(process)
    pairs = []
    for timestep in map(int, process.timesteps):
        before = alphas[timestep]
        after = alphas[timestep - stride] if timestep >= stride else 1.0
        a = np.sqrt(after / before)
        pairs.append((float(a), float(np.sqrt(1 - after) - a * np.sqrt(1 - before))))
    return pairs


def test_errors_accumulate_by_the_ddim_recursion() -> None:
    process = ddim(4)
    rollouts = run(process, Branches(zero, biased, zero))
    wanted, drift = [], 0.0
    for a, b in ddim_coefficients(process):
        drift = a * drift + b * BIAS
        wanted.append(drift**2)
    for image in range(3):
        assert rollouts.errors["simulated"][:, image].tolist() == pytest.approx(wanted, rel=1e-4)
    assert not rollouts.errors["engine"].any()
    torch.testing.assert_close(rollouts.errors["lowering"], rollouts.errors["simulated"])


def test_step_errors_do_not_accumulate() -> None:
    process = ddim(4)
    rollouts = run(process, Branches(linear, lambda x, t, c: linear(x, t, c) + BIAS, linear))
    wanted = [(b * BIAS) ** 2 for _, b in ddim_coefficients(process)]
    assert rollouts.step_errors["simulated"].shape == (4, 2)
    assert rollouts.step_errors["simulated"][:, 0].tolist() == pytest.approx(
        wanted, rel=1e-2
    )  # float32 latents near 1
    assert not rollouts.step_errors["engine"].any()


def test_every_branch_gets_the_same_noise_of_an_ancestral_sampler() -> None:
    process = DenoisingProcess(DDPMScheduler(clip_sample=False), 5)
    rollouts = run(process, Branches(linear, linear, linear))
    assert not rollouts.errors["simulated"].any()
    assert not rollouts.step_errors["engine"].any()
    assert float(rollouts.final["reference"].std()) > 0


def test_images_do_not_depend_on_the_batch_size() -> None:
    process = DenoisingProcess(DDPMScheduler(clip_sample=False), 3)
    whole = run(process, Branches(linear, zero, zero), batch_size=3)
    single = run(process, Branches(linear, zero, zero), batch_size=1)
    torch.testing.assert_close(whole.final["reference"], single.final["reference"])
    torch.testing.assert_close(whole.errors["simulated"], single.errors["simulated"])


def test_image_k_starts_from_seed_plus_k() -> None:
    rollouts = run(ddim(2), Branches(zero, zero, zero))
    wanted = torch.randn((1, *SHAPE), generator=torch.Generator().manual_seed(6))
    torch.testing.assert_close(rollouts.calls.at(0)[0][1], wanted[0])


def test_conditioning_follows_its_image() -> None:
    labels = torch.arange(3)

    def conditioned(sample: Tensor, timestep: Tensor, conditioning: Mapping[str, Tensor]) -> Tensor:
        return torch.zeros_like(sample) + conditioning["class_labels"].view(-1, 1, 1, 1)

    process = ddim(1)
    starts = list(
        seeded_starts(process, SHAPE, count=3, batch_size=2, seed=0, conditioning={"class_labels": labels})
    )
    calls = NetworkCalls(1)
    branches = Branches(zero, conditioned, zero)
    rollouts = join(rolled_out(process, branches, starts, calls), calls)
    ((_, b),) = ddim_coefficients(ddim(1))
    assert rollouts.errors["simulated"][0].tolist() == pytest.approx([0.0, b**2, 4 * b**2], rel=1e-4)


def test_the_calls_that_are_kept_are_those_of_the_first_images() -> None:
    process = ddim(3)
    starts = list(
        seeded_starts(
            process, SHAPE, count=5, batch_size=4, seed=5, conditioning={"class_labels": torch.arange(5)}
        )
    )
    calls, seen = NetworkCalls(2), []

    def watched(sample: Tensor, timestep: Tensor, conditioning: Mapping[str, Tensor]) -> Tensor:
        seen.append(sample)
        return linear(sample, timestep, conditioning)

    rolled_out(process, Branches(watched, zero, zero), starts, calls)
    assert len(calls.samples) == 3
    for step in range(3):
        sample, conditioning = calls.at(step)
        torch.testing.assert_close(sample, seen[step][:2])
        assert conditioning["class_labels"].tolist() == [0, 1]


def test_values_that_are_not_finite_name_the_branch_and_the_step() -> None:
    with pytest.raises(VerificationError, match=r"engine network, step 2 \(timestep 500\)"):
        run(ddim(4), Branches(zero, zero, broken))


def test_calls_of_another_process_are_those_that_it_has_seen() -> None:
    process, calls, read = ddim(2), NetworkCalls(2), NetworkCalls(2)
    labels = {"class_labels": torch.arange(3)}
    starts = list(seeded_starts(process, SHAPE, count=3, batch_size=3, seed=1, conditioning=labels))
    rolled_out(process, Branches(linear, zero, zero), starts, calls)
    read.take(calls.to_tree())
    for step in range(2):
        (ours, given), (theirs, wanted) = read.at(step), calls.at(step)
        assert torch.equal(ours, theirs)
        assert torch.equal(given["class_labels"], wanted["class_labels"])


@pytest.mark.parametrize("first", [True, False])
def test_a_rollout_counts_as_many_steps_as_it_says(first: bool) -> None:
    class Counter(Silent):
        done = 0

        def advance(self, units: int = 1) -> None:
            self.done += units

    counter, process = Counter(), ddim(4)
    (start,) = seeded_starts(process, SHAPE, count=3, batch_size=3, seed=0)
    calls = NetworkCalls(1) if first else None
    roll_out(process, Branches(zero, zero, zero), start, calls=calls, progress=counter)
    assert counter.done == advances(process, first=first) == 4 * (5 if first else 3)
