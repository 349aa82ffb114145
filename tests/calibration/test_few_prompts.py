"""Layers that see nothing but the tokens of a few prompts, judged by other prompts."""

from __future__ import annotations

import copy

import numpy as np
import pytest
from torch import Tensor, nn

from accuquant.bundled import FASHION_TEXT
from accuquant.calibration.activations import initial_qparams
from accuquant.calibration.rounding import compensate
from accuquant.calibration.row_store import RowSums
from accuquant.groups import StepGroups
from accuquant.networks.network import quantizable_layers, weight_of
from accuquant.networks.simulate import ActiveGroup, QuantizedLayer
from accuquant.pipelines.source import Source, load_source
from accuquant.pipelines.starts import open_starter
from accuquant.pipelines.task import Task
from accuquant.qparams import LayerQParams

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def source() -> Source:
    return load_source(FASHION_TEXT)


def tokens_of(source: Source, file: str, count: int) -> Tensor:
    """Return what the text layers see of `count` prompts and of the empty one [n, 64]."""
    prompts = tuple((FASHION_TEXT / file).read_text(encoding="utf-8").split("\n")[:count])
    starter = open_starter(source, Task(prompts=prompts), steps=2)
    (start,) = starter.starts(count, count, seed=0)
    starter.close()
    return start.conditioning.tensors["encoder_hidden_states"].flatten(0, 2)


def quantized(layer: nn.Module, qparams: LayerQParams) -> QuantizedLayer:
    return QuantizedLayer(copy.deepcopy(layer), qparams, ActiveGroup(StepGroups((1000, 0))))


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("prompts", [1, 4, 16])
def test_other_prompts_lose_no_more_than_by_rounding_to_nearest(
    source: Source, prompts: int, bits: int
) -> None:
    seen, others = tokens_of(source, "prompts.txt", prompts), tokens_of(source, "other-prompts.txt", 48)
    layers = quantizable_layers(source.network)
    names = [name for name in layers if name.endswith(("attn2.to_k", "attn2.to_v"))]
    sample = [seen.flatten().numpy()]
    nearest = initial_qparams(
        source.network, dict.fromkeys(names, sample), weight_bits=bits, activation_bits=8
    )
    ratios = []
    for name in names:
        store = RowSums(1, weight_of(layers[name]).shape[1])
        for _ in range(10):  # the same tokens come in every step
            store.add(seen)
        rounded = compensate(layers[name], nearest[name], store.moments())
        wanted = layers[name](others)
        errors = [
            float((quantized(layers[name], qparams)(others) - wanted).square().mean())
            for qparams in (nearest[name], rounded)
        ]
        ratios.append(errors[1] / errors[0])
    assert len(ratios) > 10
    assert np.median(ratios) <= 1.0
    assert max(ratios) < 1.3
