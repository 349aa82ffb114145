"""Time a learning iteration of a network as large as Stable Diffusion 1.5's, and its memory, on a device.

    python benchmarks/device_iteration.py --device cuda             # float32, TF32, bfloat16
    python benchmarks/device_iteration.py --device cpu --size 16    # without TF32 where there is no GPU

Random weights, min-max scales of one call, one denoising step forward and backward (the copied gradient is
one such call a step), medians of interleaved rounds. Calibration computes in float32, or in TF32 where
it is told to; "bf16 products" (torch.autocast) shows what lower precision would bring. "peak" is that of
each arm alone, the network included.
"""

from __future__ import annotations

import argparse
import statistics
import time
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from large_networks import CONFIGURATIONS, small_inputs
from report import add_json_option, print_report

from accuquant.calibration.activations import ActivationSampler, initial_qparams
from accuquant.calibration.placement import place
from accuquant.groups import StepGroups
from accuquant.networks.device import choose_device, describe, repeatable
from accuquant.networks.network import call, count_macs, signature_of
from accuquant.networks.simulate import quantize_network, quantized_layers


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="auto")
    parser.add_argument("--model", default="sd15", choices=sorted(CONFIGURATIONS))
    parser.add_argument("--size", type=int, default=64, help="latent height and width (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5)
    add_json_option(parser)
    given = parser.parse_args()
    device = choose_device(given.device)
    network, sample, conditioning = _simulated(given.model, given.size, device)
    arms = ["float32", *(["TF32"] if device.type == "cuda" else []), "bf16 products"]
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    peaks: dict[str, float] = {}
    for _ in range(given.rounds + 1):
        for name in arms:
            _forget_peak(device)
            with repeatable(device, tf32=name == "TF32"), _precision(device, bf16=name == "bf16 products"):
                seconds[name].append(_iteration(network, sample, conditioning, device))
            peaks[name] = _peak_gb(device)
    medians = {name: statistics.median(values[1:]) for name, values in seconds.items()}
    print_report(
        f"One step of an iteration of {given.model}, batch 1, latent {given.size}x{given.size}, "
        f"{describe(device)}",
        ("", "seconds", "times float32", "peak GB"),
        [
            [name, f"{s:.3f}", f"{medians['float32'] / s:.2f}", f"{peaks[name]:.2f}" if peaks[name] else ""]
            for name, s in medians.items()
        ],
        record={"device": describe(device), "seconds": seconds, "peak_gb": peaks},
        json_path=given.json,
    )


def _simulated(
    model: str, size: int, device: torch.device
) -> tuple[Any, torch.Tensor, dict[str, torch.Tensor]]:
    network = UNet2DConditionModel(**CONFIGURATIONS[model]).eval().requires_grad_(False).to(device)
    signature = signature_of(network)
    sample, conditioning = small_inputs(signature, size=size)
    sample, conditioning = sample.to(device), {name: t.to(device) for name, t in conditioning.items()}
    names = place(network, count_macs(network, signature)).quantized
    sampler = ActivationSampler(names, [1], 0)
    with sampler.watch(network), torch.no_grad():
        call(network, sample, 500.0, conditioning)
    layers = initial_qparams(
        network, sampler.samples(), weight_bits=8, activation_bits=8, observer="minmax", affine=False
    )
    simulated = quantize_network(network, layers.values(), StepGroups((1000.0, 0.0)))
    for layer in quantized_layers(simulated).values():
        layer.learning = True
    return simulated, sample, conditioning


def _precision(device: torch.device, *, bf16: bool) -> AbstractContextManager[Any]:
    return torch.autocast(device.type, dtype=torch.bfloat16) if bf16 else nullcontext()


def _forget_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def _peak_gb(device: torch.device) -> float:
    """Return the most memory of an NVIDIA GPU since _forget_peak; 0 elsewhere, where torch counts none."""
    return torch.cuda.max_memory_allocated(device) / 1e9 if device.type == "cuda" else 0.0


def _iteration(network: Any, sample: torch.Tensor, conditioning: Any, device: torch.device) -> float:
    begun = time.perf_counter()
    call(network, sample, 500.0, conditioning).float().square().mean().backward()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - begun


if __name__ == "__main__":
    main()
