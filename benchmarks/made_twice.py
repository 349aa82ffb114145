"""Measure what it costs to make a simulated network's weights while layers run, and not to keep them.

    python benchmarks/made_twice.py

One call forward and one backward of the simulated network, its scales and the gains and shifts of its outputs
learning: with int8 levels that are dequantized in both directions (as calibrate does), with kept float
weights, and with levels and blocks checkpointed. Interleaved rounds, medians of the ratios; "kept" is what a
call leaves for its gradient, and "weights" what the network itself holds.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from report import add_json_option, print_report
from torch import Tensor, nn

from accuquant.bundled import FASHION_DDPM
from accuquant.calibration.activations import ActivationSampler, initial_qparams
from accuquant.calibration.output_correction import corrected
from accuquant.calibration.placement import place
from accuquant.groups import StepGroups
from accuquant.networks.network import call, count_macs, signature_of
from accuquant.networks.simulate import quantize_network, quantized_layers
from accuquant.pipelines.source import load_source

_MB = 1e6
Inputs = tuple[Tensor, dict[str, Tensor]]


class _Kept:
    """A layer's product with a weight that is kept in float, as simulated networks had it before."""

    def __init__(self, product: Any, weight: Tensor) -> None:
        self._product, self._weight = product, weight
        self.transposed, self.groups = product.transposed, product.groups

    def __call__(self, x: Tensor, make_weight: Callable[[], Tensor], bias: Tensor | None) -> Tensor:
        assert not self._product.padded
        output: Tensor = self._product.forward(x, self._weight, bias)
        return output


def bundled(batch: int) -> tuple[nn.Module, Inputs]:
    """Return the bundled image network, and a batch for it."""
    return load_source(FASHION_DDPM).network, (torch.randn(batch, 1, 32, 32), {})


def level(width: int, size: int, batch: int) -> tuple[nn.Module, Inputs]:
    """Return a UNet of one level of Stable Diffusion 1.5, random weights, and a batch for it."""
    torch.manual_seed(0)
    network = UNet2DConditionModel(
        sample_size=size,
        block_out_channels=(width,),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D",),
        up_block_types=("CrossAttnUpBlock2D",),
        cross_attention_dim=768,
        attention_head_dim=8,
    )
    text = torch.randn(batch, 77, 768)
    return network.eval().requires_grad_(False), (
        torch.randn(batch, 4, size, size),
        {"encoder_hidden_states": text},
    )


CASES: dict[str, Callable[[], tuple[nn.Module, Inputs]]] = {
    "bundled network, batch 8": lambda: bundled(8),
    "level of 320 channels, 32x32, batch 2": lambda: level(320, 32, 2),
    "level of 640 channels, 16x16, batch 2": lambda: level(640, 16, 2),
    "level of 1280 channels, 8x8, batch 2": lambda: level(1280, 8, 2),
    "level of 1280 channels, 8x8, batch 8": lambda: level(1280, 8, 8),
}


@torch.no_grad()
def simulated(network: nn.Module, inputs: Inputs) -> nn.Module:
    """Return the simulated network, W8A8, with scales of one call."""
    names = place(network, count_macs(network, signature_of(network))).quantized
    sampler = ActivationSampler(names, [1], 0)
    with sampler.watch(network):
        call(network, inputs[0], 500.0, inputs[1])
    qparams = initial_qparams(
        network, sampler.samples(), weight_bits=8, activation_bits=8, observer="minmax", affine=False
    )
    quantized = quantize_network(network, qparams.values(), StepGroups((1000.0, 0.0)))
    for layer in quantized_layers(quantized).values():
        layer.learning = True
    return quantized


def iteration(network: nn.Module, inputs: Inputs) -> tuple[float, int]:
    """Run forward and backward -> seconds, and the bytes that were kept in between."""
    own = {t.untyped_storage().data_ptr() for t in network.state_dict().values()}
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with corrected(quantized_layers(network)):
        begun = time.perf_counter()
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            loss = call(network, inputs[0], 500.0, inputs[1]).square().mean()
        loss.backward()
        return time.perf_counter() - begun, sum(kept.values())


def measure(name: str, rounds: int) -> dict[str, Any]:
    """Run the three ways in turn."""
    network, inputs = CASES[name]()
    levels, kept, blocks = (simulated(network, inputs) for _ in range(3))
    for layer in quantized_layers(kept).values():
        layer.product = _Kept(layer.product, layer.weight)  # type: ignore[assignment]
    blocks.enable_gradient_checkpointing()  # type: ignore[operator]
    ways = {"kept": kept, "levels": levels, "blocks": blocks}
    found: dict[str, list[tuple[float, int]]] = {way: [] for way in ways}
    for _ in range(rounds + 1):
        for way, quantized in ways.items():
            found[way].append(iteration(quantized, inputs))
    seconds = {way: [s for s, _ in runs[1:]] for way, runs in found.items()}
    ratio = {
        way: statistics.median(a / b for a, b in zip(values, seconds["kept"], strict=True))
        for way, values in seconds.items()
    }
    layers = quantized_layers(levels).values()
    return {
        "seconds": {way: statistics.median(values) for way, values in seconds.items()},
        "ratio": ratio,
        "kept": {way: runs[-1][1] for way, runs in found.items()},
        "weights": {
            "levels": sum(q.levels.nbytes for q in layers),
            "kept": 4 * sum(q.levels.nbytes for q in layers),
        },
    }


def main() -> None:
    """Measure each case and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    add_json_option(parser)
    given = parser.parse_args()
    results = {}
    for name in CASES:
        results[name] = measure(name, given.rounds)
        print(name, results[name]["ratio"], file=sys.stderr, flush=True)
    print_report(
        f"Forward and backward of a simulated network, {torch.get_num_threads()} threads; kept weights = 1",
        (
            "",
            "weights MB, kept / levels",
            "s, kept",
            "time, levels",
            "time, blocks",
            "activations MB",
            "blocks MB",
        ),
        [
            [
                name,
                f"{r['weights']['kept'] / _MB:.0f} / {r['weights']['levels'] / _MB:.0f}",
                f"{r['seconds']['kept']:.2f}",
                f"{r['ratio']['levels']:.2f}",
                f"{r['ratio']['blocks']:.2f}",
                f"{r['kept']['kept'] / _MB:.0f} -> {r['kept']['levels'] / _MB:.0f}",
                f"{r['kept']['blocks'] / _MB:.0f}",
            ]
            for name, r in results.items()
        ],
        record={"results": results},
        json_path=given.json,
    )


if __name__ == "__main__":
    main()
