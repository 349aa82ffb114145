"""How many inputs will differ, told from two calls, against a recording of them all."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from accuquant.calibration.input_moments import MomentSampler, moments_of, plan_rows
from accuquant.calibration.seen_inputs import InputWatch, Recorded

IMAGES, PROMPTS, BATCH, STEPS, TOKENS = 8, 4, 4, 3, 5


class Reader(nn.Module):
    """Reads text, an image and the timestep, each by a layer of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.text, self.again = nn.Linear(6, 2), nn.Linear(6, 2)
        self.image = nn.Linear(3, 2)
        self.time = nn.Linear(4, 2)
        self.conv = nn.Conv2d(1, 1, 3)

    def forward(self, text: Tensor, image: Tensor, time: Tensor, pixels: Tensor) -> None:
        self.text(text), self.again(text), self.image(image), self.time(time), self.conv(pixels)


def inputs(batch: int, step: int) -> tuple[Tensor, ...]:
    """Return what a batch sees at a step: its own image, one of four prompts, the step's time."""
    seeds = [torch.Generator().manual_seed(k % PROMPTS) for k in range(BATCH)]
    prompts = [torch.rand(TOKENS, 6, generator=seed) for seed in seeds]
    rng = torch.Generator().manual_seed(100 * batch + step)
    image, pixels = torch.rand(BATCH, 7, 3, generator=rng), torch.rand(BATCH, 1, 9, 9, generator=rng)
    return torch.stack(prompts), image, torch.full((BATCH, 4), float(step)), pixels


@pytest.fixture
def network() -> Reader:
    return Reader()


@pytest.fixture
def watch(network: Reader) -> InputWatch:
    names = ["text", "again", "image", "time", "conv"]
    watch = InputWatch(names)
    for step in (0, STEPS - 1):
        with watch.watch(network):
            network(*inputs(0, step))
    return watch


def test_the_bound_holds_in_a_recording_and_is_met_where_inputs_come_back(
    network: Reader, watch: InputWatch, tmp_path: Path
) -> None:
    calls = IMAGES // BATCH * STEPS
    layers = dict(network.named_children())
    facts = watch.rounding_facts(layers, Recorded(IMAGES, PROMPTS, BATCH, STEPS, calls))
    path = tmp_path / "rows"
    sampler = MomentSampler(layers, plan_rows(layers, calls), 0, path)
    with sampler.watch():
        for batch in range(IMAGES // BATCH):
            for step in range(STEPS):
                network(*inputs(batch, step))
    drawn = [(sampler.finish(), path)]
    for name, fact in facts.items():
        seen = moments_of(name, layers[name], drawn)
        assert fact["rows"] == seen.rows, name
        assert fact["distinct"] >= seen.distinct, name
    assert facts["text"]["distinct"] == facts["again"]["distinct"] == PROMPTS * TOKENS
    assert facts["time"]["distinct"] == STEPS
    assert facts["image"]["distinct"] == IMAGES * STEPS * 7
    assert facts["conv"]["distinct"] == facts["conv"]["rows"]


def test_a_tensor_that_two_layers_read_is_one_input(watch: InputWatch) -> None:
    sizes = sorted(watch.sizes())
    assert sizes == sorted([BATCH * TOKENS * 6, BATCH * 7 * 3, BATCH * 4, BATCH * 81])
