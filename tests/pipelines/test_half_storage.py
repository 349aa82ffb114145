"""Text encoders in half precision: as large as their files, and what float32 computes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_pipelines import save_pipeline

from accuquant.networks.stored_weights import compute_in_float32
from accuquant.pipelines.half_storage import half_type_of
from accuquant.pipelines.lora import find_loras
from accuquant.pipelines.real_pipeline import open_pipeline
from accuquant.pipelines.source import load_source
from accuquant.pipelines.task import Task

HALVES = [torch.float16, torch.bfloat16]


def stored(encoder: Any) -> dict[torch.dtype, int]:
    """Return the number of values that a model holds, by type."""
    counts: dict[torch.dtype, int] = {}
    for tensor in encoder.state_dict().values():
        counts[tensor.dtype] = counts.get(tensor.dtype, 0) + tensor.numel()
    return counts


def save_in(half: torch.dtype, folder: Path) -> None:
    for path in folder.glob("*.safetensors"):
        save_file({k: v.to(half) for k, v in load_file(path).items()}, path, {"format": "pt"})


@pytest.fixture(params=HALVES, ids=["float16", "bfloat16"])
def half(request: pytest.FixtureRequest) -> torch.dtype:
    assert isinstance(request.param, torch.dtype)
    return request.param


@pytest.mark.parametrize("kind", ["sd3", "flux", "pixart"])
def test_prompts_are_encoded_as_in_float32_from_half_of_the_bytes(
    kind: str, half: torch.dtype, tmp_path: Path
) -> None:
    pipeline = save_pipeline(kind, tmp_path)
    encoders = sorted(path.name for path in pipeline.glob("text_encoder*"))
    for part in encoders:
        save_in(half, pipeline / part)
        assert half_type_of((pipeline / part).glob("*.safetensors")) == half
    source, task = load_source(pipeline), Task(prompts=("a cat", "two dogs"))
    pipe = open_pipeline(source, task)
    for part in encoders:
        encoder = getattr(pipe, part)
        counts = stored(encoder)
        linear = sum(m.weight.numel() for m in encoder.modules() if isinstance(m, torch.nn.Linear))
        # transformers itself keeps one matrix of T5's layers in float32 where the file has float16
        assert counts[half] == linear or (encoder.config.model_type == "t5" and half == torch.float16)
        assert counts[half] > 0
        assert encoder.dtype == torch.float32
    others = dict.fromkeys({"flux": ["prompt_2"], "sd3": ["prompt_2", "prompt_3"]}.get(kind, []))
    ours = pipe.encode_prompt(["a cat", "two dogs"], **others)
    plain = type(pipe).from_pretrained(pipeline).to(torch.float32)
    theirs = plain.encode_prompt(["a cat", "two dogs"], **others)
    assert len(ours) == len(theirs)
    for mine, expected in zip(ours, theirs, strict=True):
        assert (mine is None) == (expected is None)
        if mine is not None:
            assert mine.dtype == expected.dtype
            assert torch.equal(mine, expected)
    assert pipe.vae.dtype == torch.float32


def test_a_lora_is_fused_into_a_text_encoder_in_half_precision(half: torch.dtype, tmp_path: Path) -> None:
    pipeline = save_pipeline("sd", tmp_path)
    save_in(half, pipeline / "text_encoder")
    generator = torch.Generator().manual_seed(0)
    additions = {
        f"text_encoder.text_model.encoder.layers.{k}.self_attn.{layer}.lora_{which}.weight": torch.randn(
            (2, 16) if which == "A" else (16, 2), generator=generator
        )
        for k in range(2)
        for layer in ("q_proj", "v_proj", "out_proj")
        for which in "AB"
    }
    save_file(additions, tmp_path / "lora.safetensors")
    source = load_source(pipeline, find_loras([str(tmp_path / "lora.safetensors")]))
    encoder = open_pipeline(source, Task(prompts=("a",))).text_encoder
    plain = open_pipeline(load_source(pipeline), Task(prompts=("a",))).text_encoder
    counts = stored(encoder)
    assert counts[half] > 0
    changed = 0
    for name, module in encoder.named_modules():
        if isinstance(module, torch.nn.Linear):
            before = plain.get_submodule(name).weight
            assert module.weight.dtype == before.dtype == torch.float32
            changed += not torch.equal(module.weight, before)
    assert changed == 6


def test_files_of_several_types_are_no_half_precision(tmp_path: Path) -> None:
    assert half_type_of(tmp_path.glob("*.safetensors")) is None
    save_file({"a": torch.ones(2), "b": torch.ones(2).half()}, tmp_path / "model.safetensors")
    assert half_type_of(tmp_path.glob("*.safetensors")) is None
    save_file({"a": torch.ones(2)}, tmp_path / "model.safetensors")
    assert half_type_of(tmp_path.glob("*.safetensors")) is None


def test_float32_models_are_left_as_they_are(tiny_text_pipeline: Callable[[str], Path]) -> None:
    encoder = open_pipeline(load_source(tiny_text_pipeline("sd")), Task(prompts=("a",))).text_encoder
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    compute_in_float32(encoder)
    after = encoder.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert set(stored(encoder)) == {torch.float32}
