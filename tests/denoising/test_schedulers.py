"""Every supported scheduler: against the pipelines of diffusers, latent by latent, and its memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from accuquant.calibration.gradient import Segment, gradient_arm, rollout
from accuquant.calibration.learning import end_point_loss
from accuquant.calibration.stored_batch import StoredBatch, save_batch
from accuquant.calibration.trajectory import TrajectoryBatch, record_from, record_trajectories
from accuquant.denoising.conditioning import Conditioning
from accuquant.denoising.guidance import Guidance
from accuquant.denoising.process import DenoisingProcess, seeded_generators
from accuquant.denoising.schedulers import SCHEDULERS, scheduler_facts
from accuquant.denoising.start import Start
from accuquant.errors import CalibrationError, SourceError
from accuquant.groups import StepGroups
from accuquant.networks.network import call
from accuquant.networks.simulate import quantize_network, quantized_layers
from accuquant.qparams import LayerQParams, fingerprint

SEEDS = (5, 6)
STEPS = 6
_LATENT = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
#: Scheduler class and configuration, as Stable Diffusion and its users set them.
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "ddim": (
        "DDIMScheduler",
        {**_LATENT, "clip_sample": False, "set_alpha_to_one": False},
    ),
    "ddpm": ("DDPMScheduler", {**_LATENT, "clip_sample": False}),
    "pndm": ("PNDMScheduler", {**_LATENT, "skip_prk_steps": True}),
    "pndm-runge-kutta": ("PNDMScheduler", _LATENT),
    "euler": ("EulerDiscreteScheduler", _LATENT),
    "euler-karras-v": (
        "EulerDiscreteScheduler",
        {**_LATENT, "use_karras_sigmas": True, "prediction_type": "v_prediction"},
    ),
    "euler-ancestral": ("EulerAncestralDiscreteScheduler", _LATENT),
    "heun": ("HeunDiscreteScheduler", _LATENT),
    "dpm++2m": ("DPMSolverMultistepScheduler", _LATENT),
    "dpm++2m-karras": ("DPMSolverMultistepScheduler", {**_LATENT, "use_karras_sigmas": True}),
    "dpm++3m": ("DPMSolverMultistepScheduler", {**_LATENT, "solver_order": 3}),
    "dpm++sde": ("DPMSolverMultistepScheduler", {**_LATENT, "algorithm_type": "sde-dpmsolver++"}),
    "unipc": ("UniPCMultistepScheduler", _LATENT),
    "unipc3": ("UniPCMultistepScheduler", {**_LATENT, "solver_order": 3}),
    "lcm": ("LCMScheduler", {**_LATENT, "original_inference_steps": 50}),
    "flow": ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}),
}
every_scheduler = pytest.mark.parametrize("name", CASES)


def make_scheduler(name: str) -> Any:
    class_name, config = CASES[name]
    return getattr(diffusers, class_name)(**config)


def test_every_supported_scheduler_has_a_case() -> None:
    assert {class_name for class_name, _ in CASES.values()} == set(SCHEDULERS)


class Spy:
    """What a pipeline hands to its scheduler and gets back."""

    def __init__(self, scheduler: Any) -> None:
        self.latents: list[Tensor] = []
        self.timesteps: list[float] = []
        step = scheduler.step

        def spy(model_output: Tensor, timestep: Tensor, sample: Tensor, *args: Any, **kwargs: Any) -> Any:
            if not self.latents:
                self.latents.append(sample)
            result = step(model_output, timestep, sample, *args, **kwargs)
            self.latents.append(result[0])
            self.timesteps.append(float(timestep))
            return result

        spy.__wrapped__ = step  # type: ignore[attr-defined]
        scheduler.step = spy


def stable_diffusion(unet: nn.Module, scheduler: Any, text: Tensor, negative: Tensor, scale: float) -> Spy:
    """Run the pipeline of Stable Diffusion, or its loop where that cannot run flow matching."""
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline(
        vae=None, text_encoder=None, tokenizer=None, unet=unet, scheduler=scheduler, safety_checker=None,
        feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    spy = Spy(pipe.scheduler)
    pipe(
        prompt_embeds=text, negative_prompt_embeds=negative, guidance_scale=scale, height=64, width=64,
        num_inference_steps=STEPS, generator=seeded_generators(SEEDS), output_type="latent",
    )  # fmt: skip
    return spy


def flow_matching(unet: nn.Module, scheduler: Any, text: Tensor, negative: Tensor, scale: float) -> Spy:
    """Run the loop of the flow-matching pipelines: no scaling of the input, noise of deviation 1."""
    spy = Spy(scheduler)
    latents = torch.cat([torch.randn((1, 4, 8, 8), generator=g) for g in seeded_generators(SEEDS)])
    scheduler.set_timesteps(STEPS)
    with torch.no_grad():
        for timestep in scheduler.timesteps:
            both_texts = torch.cat([negative, text])
            both = unet(torch.cat([latents] * 2), timestep, encoder_hidden_states=both_texts).sample
            unconditional, conditional = both.chunk(2)
            guided = unconditional + scale * (conditional - unconditional)
            latents = scheduler.step(guided, timestep, latents).prev_sample
    return spy


@every_scheduler
def test_equals_the_pipeline_of_diffusers_latent_by_latent(
    name: str, make_text_unet: Callable[..., nn.Module]
) -> None:
    unet, scale = make_text_unet(), 3.5
    rng = torch.Generator().manual_seed(1)
    embeddings, negative = torch.randn(2, 2, 7, 16, generator=rng)
    run = flow_matching if name == "flow" else stable_diffusion
    theirs = run(unet, make_scheduler(name), embeddings, negative, scale)

    process = DenoisingProcess(make_scheduler(name), STEPS, Guidance("classifier-free", scale))
    generators = seeded_generators(SEEDS)
    latents = process.initial_latents((4, 8, 8), generators)
    text = torch.stack([negative, embeddings], dim=1)
    start = Start(
        latents, tuple(g.get_state() for g in generators), Conditioning({"encoder_hidden_states": text})
    )
    (ours,) = record_from(unet, process, [start])

    assert process.timesteps == theirs.timesteps
    assert len(ours.latents) == len(theirs.latents)
    assert all(torch.equal(a, b) for a, b in zip(ours.latents, theirs.latents, strict=True))


def recorded(name: str, network: nn.Module) -> tuple[DenoisingProcess, TrajectoryBatch]:
    process = DenoisingProcess(make_scheduler(name), STEPS)
    (batch,) = record_trajectories(network, process, (1, 4, 4), num_trajectories=2, batch_size=2, seed=7)
    return process, batch


class Wave(nn.Module):
    """eps(x, t) = w sin(x) + t / 2000: smooth, bounded, nonlinear, with one layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 1, 1, bias=False)
        nn.init.constant_(self.conv.weight, 0.8)

    def forward(self, sample: Tensor, timestep: Tensor, return_dict: bool = True) -> tuple[Tensor]:
        return (torch.sin(self.conv(sample)) + timestep / 2000,)


@every_scheduler
def test_every_state_gives_its_step_again_in_any_order(name: str) -> None:
    process, batch = recorded(name, Wave())
    order = list(range(len(process)))
    for step in [*reversed(order), *order[::2], *order]:
        generators = process.restore_state(batch.states[step])
        with torch.no_grad():
            after = process.step(batch.bind(Wave()), batch.latents[step], step, generators)
        assert torch.equal(after, batch.latents[step + 1])


@every_scheduler
def test_a_second_trajectory_knows_nothing_of_the_first(name: str) -> None:
    process, batch = recorded(name, Wave())
    (again,) = record_trajectories(Wave(), process, (1, 4, 4), num_trajectories=2, batch_size=2, seed=7)
    assert torch.equal(batch.latents, again.latents)


@every_scheduler
def test_a_resumed_calibration_reads_the_states_bit_for_bit(name: str, tmp_path: Path) -> None:
    process, batch = recorded(name, Wave())
    save_batch(tmp_path / "0.safetensors", batch)
    loaded = StoredBatch(tmp_path / "0.safetensors")
    assert torch.equal(loaded.latents, batch.latents)
    fresh = DenoisingProcess(make_scheduler(name), STEPS)
    for step in reversed(range(len(process))):
        generators = fresh.restore_state(loaded.state_before(step))
        with torch.no_grad():
            after = fresh.step(loaded.bind(Wave()), loaded.latents_before(step), step, generators)
        assert torch.equal(after, batch.latents[step + 1])


@every_scheduler
def test_a_step_is_differentiable_in_latents_and_prediction(name: str) -> None:
    process, batch = recorded(name, Wave())
    for step in (0, 1, len(process) - 2):
        latents = batch.latents[step].double()
        rng = torch.Generator().manual_seed(step)
        prediction, away, toward = torch.randn(3, *latents.shape, generator=rng, dtype=torch.float64)

        def run(x: Tensor, output: Tensor, step: int = step) -> Tensor:
            generators = process.restore_state(batch.states[step])
            return process.step(lambda _x, _t: output, x, step, generators)

        x, output = latents.requires_grad_(True), prediction.requires_grad_(True)
        # None for x: PNDM's second step goes on from the sample that it remembers
        gradients = torch.autograd.grad(run(x, output).sum(), (x, output), materialize_grads=True)
        with torch.no_grad():
            h = 1e-2
            change = run(x + h * away, output + h * toward) - run(x - h * away, output - h * toward)
        expected = float(change.double().sum() / (2 * h))
        found = float((gradients[0] * away).sum() + (gradients[1] * toward).sum())
        assert found == pytest.approx(expected, rel=2e-3, abs=2e-3)


def learner(process: DenoisingProcess) -> nn.Module:
    """Return the wave with a quantized layer whose scales are being learned."""
    groups = StepGroups.from_timesteps(process.timesteps, group_size=99, num_train_timesteps=1000)
    weight = Wave().conv.weight.detach().numpy()
    qparams = LayerQParams(
        "conv", "conv2d", weight.shape, fingerprint(weight), np.array([0.01], np.float32),
        np.array([0.3], np.float32), activation_bits=5,
    )  # fmt: skip
    network = quantize_network(Wave(), [qparams], groups)
    for layer in quantized_layers(network).values():
        layer.learning = True
    return network


def gradient_of(arm: str, process: DenoisingProcess, segment: Segment) -> tuple[float, Tensor]:
    network = learner(process)
    loss = gradient_arm(arm)(process, segment.batch.bind(network), segment, end_point_loss)
    (gradient,) = [p.grad for p in network.parameters() if p.requires_grad]
    assert gradient is not None
    return loss, gradient


@every_scheduler
@pytest.mark.parametrize("steps", [range(0, 4), range(2, 6)])
def test_checkpoint_passes_the_gradient_through_the_history(name: str, steps: range) -> None:
    process, batch = recorded(name, Wave())
    segment = Segment(batch, steps)
    loss, exact = gradient_of("exact", process, segment)
    again, checkpoint = gradient_of("checkpoint", process, segment)
    assert again == loss > 0
    torch.testing.assert_close(checkpoint, exact, rtol=1e-4, atol=1e-7)


@every_scheduler
def test_the_copied_gradient_is_finite_and_leaves_the_trajectory_alone(name: str) -> None:
    process, batch = recorded(name, Wave())
    before = batch.latents.clone()
    _, gradient = gradient_of("accuquant", process, Segment(batch, range(1, 5)))
    assert torch.isfinite(gradient).all()
    assert gradient.abs().max() > 0
    latents, _ = rollout(process, batch.bind(Wave()), Segment(batch, range(1, 5)))
    assert all(torch.equal(a, b) for a, b in zip(latents, before[1:6], strict=True))


@every_scheduler
def test_step_groups_cover_the_timesteps_of_any_number_of_steps(name: str) -> None:
    process = DenoisingProcess(make_scheduler(name), STEPS)
    groups = StepGroups.from_timesteps(
        process.timesteps, group_size=2, num_train_timesteps=process.num_train_timesteps
    )
    for count in (5, 13):
        found = [groups.find(t) for t in DenoisingProcess(make_scheduler(name), count).timesteps]
        assert found == sorted(found)
        assert {0, len(groups) - 1} <= set(found)


def test_heun_calls_the_network_twice_a_step_in_one_group() -> None:
    process = DenoisingProcess(make_scheduler("heun"), 4)
    assert len(process) == 2 * 4 - 1
    calls: list[float] = []

    def network(x: Tensor, timestep: Tensor) -> Tensor:
        calls.append(float(timestep))
        return 0.1 * x

    process.sample(network, torch.randn(1, 1, 4, 4))
    assert calls == process.timesteps
    assert len(set(calls)) == 4


def test_an_unknown_scheduler_is_refused_by_name_with_the_list() -> None:
    with pytest.raises(
        CalibrationError,
        match=r"scheduler DEISMultistepScheduler: .* expected DDIMScheduler or .*docs/pipelines.md",
    ):
        DenoisingProcess(diffusers.DEISMultistepScheduler(), STEPS)


def test_a_number_of_steps_that_the_scheduler_refuses_is_one_clear_line() -> None:
    with pytest.raises(CalibrationError, match=r"scheduler LCMScheduler, 60 steps: .*Give other --steps"):
        DenoisingProcess(make_scheduler("lcm"), 60)


def test_a_network_sees_one_copy_of_the_latents_for_each_prediction(
    make_text_unet: Callable[..., nn.Module],
) -> None:
    process = DenoisingProcess(make_scheduler("euler"), 3, Guidance("classifier-free", 2.0))
    latents = process.initial_latents((4, 8, 8), seeded_generators(SEEDS))
    seen: list[Tensor] = []

    def network(x: Tensor, timestep: Tensor) -> Tensor:
        seen.append(x)
        text = torch.zeros(len(x), 3, 16)
        return call(make_text_unet(), x, timestep, {"encoder_hidden_states": text})

    with torch.no_grad():
        process.step(network, latents, 0)
    assert torch.equal(seen[0][:2], seen[0][2:])
    sigma = float(process.scheduler.sigmas[0])
    torch.testing.assert_close(seen[0][:2], latents / (sigma**2 + 1) ** 0.5)


def test_a_prediction_that_no_scheduler_knows_is_refused_before_the_loop() -> None:
    scheduler = diffusers.EulerDiscreteScheduler(prediction_type="hope")
    with pytest.raises(SourceError, match=r"prediction_type 'hope', expected one of epsilon, sample, v_pred"):
        scheduler_facts(scheduler)
    assert scheduler_facts(diffusers.FlowMatchEulerDiscreteScheduler())
