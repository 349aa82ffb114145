"""What scripts do to a network of diffusers, done to an engine: refused with a remedy, or ignored aloud."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import (
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusionPipeline,
    UNet2DConditionModel,
    UNet2DModel,
)
from diffusers.models.attention_processor import (
    AttnProcessor,
    AttnProcessor2_0,
    FusedAttnProcessor2_0,
    IPAdapterAttnProcessor,
    PAGIdentitySelfAttnProcessor2_0,
    SlicedAttnProcessor,
)
from diffusers.models.modeling_utils import ModelMixin

from accuquant.errors import UsageError
from accuquant.runtime.engine_unet import EngineUNet
from accuquant.runtime.fixed_network import FixedNetwork


class Engine(FixedNetwork, ModelMixin):
    """The drop-in's bases, without an engine."""


class Pipeline(StableDiffusionPipeline):
    """The methods of a pipeline of diffusers, around nothing but a network."""

    def __init__(self) -> None:
        self.unet = Engine()

    def __setattr__(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)


@pytest.fixture
def engine() -> Engine:
    return Engine()


def test_the_drop_in_is_such_a_network() -> None:
    assert issubclass(EngineUNet, FixedNetwork)
    assert EngineUNet.enable_freeu is FixedNetwork.enable_freeu


@pytest.mark.parametrize(
    ("method", "arguments"),
    [
        ("enable_freeu", {"s1": 0.9, "s2": 0.2, "b1": 1.2, "b2": 1.4}),
        ("load_attn_procs", {"pretrained_model_name_or_path_or_dict": {}}),
        ("add_adapter", {"adapter_config": None}),
        ("enable_gradient_checkpointing", {}),
        ("fuse_lora", {"lora_scale": 0.8}),
        ("set_adapters", {"adapter_names": ["a"]}),
        ("enable_cache", {"config": None}),
        ("_load_ip_adapter_weights", {"state_dicts": []}),
    ],
)
def test_what_would_change_the_images_is_refused(
    engine: Engine, method: str, arguments: dict[str, Any]
) -> None:
    with pytest.raises(
        UsageError,
        match=rf"EngineUNet\.{method.replace('_load_ip_adapter_weights', 'load_ip')}.*"
        r"expected a network that stays as it was exported.*fixed the layers",
    ):
        getattr(engine, method)(**arguments)


def test_freeu_through_the_pipeline_is_refused_with_a_remedy() -> None:
    with pytest.raises(UsageError, match=r"EngineUNet.enable_freeu: got FreeU, .*Leave it out"):
        Pipeline().enable_freeu(s1=0.9, s2=0.2, b1=1.2, b2=1.4)


def test_fused_projections_through_the_pipeline_are_ignored_aloud() -> None:
    with pytest.warns(
        UserWarning, match=r"EngineUNet.\w+ does nothing: the network is a compiled engine"
    ) as said:
        Pipeline().fuse_qkv_projections(vae=False)
    assert [str(one.message).split()[0] for one in said] == [
        "EngineUNet.fuse_qkv_projections", "EngineUNet.set_attn_processor",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "processor",
    [
        AttnProcessor(),
        AttnProcessor2_0(),
        FusedAttnProcessor2_0(),
        SlicedAttnProcessor(2),
        {"a": AttnProcessor()},
    ],
)
def test_other_ways_to_compute_the_same_attention_are_ignored_aloud(engine: Engine, processor: Any) -> None:
    with pytest.warns(UserWarning, match=r"EngineUNet.set_attn_processor does nothing"):
        engine.set_attn_processor(processor)


class OwnProcessor:
    """A processor of a user's script, such as prompt-to-prompt has them."""


@pytest.mark.parametrize(
    "processor",
    [OwnProcessor(), {"a": AttnProcessor(), "b": OwnProcessor()}, PAGIdentitySelfAttnProcessor2_0(),
     IPAdapterAttnProcessor(8, 8)],
)  # fmt: skip
def test_processors_that_change_attention_are_refused(engine: Engine, processor: Any) -> None:
    with pytest.raises(
        UsageError, match=r"set_attn_processor: got a \w+, which changes what attention computes"
    ):
        engine.set_attn_processor(processor)


@pytest.mark.parametrize(
    ("method", "arguments"),
    [
        ("set_attention_slice", ("auto",)),
        ("set_attention_backend", ("native",)),
        ("enable_xformers_memory_efficient_attention", ()),
        ("enable_forward_chunking", (1,)),
        ("fuse_qkv_projections", ()),
    ],
)
def test_what_only_changes_how_is_ignored_aloud(
    engine: Engine, method: str, arguments: tuple[Any, ...]
) -> None:
    with pytest.warns(UserWarning, match=rf"EngineUNet.{method} does nothing"):
        getattr(engine, method)(*arguments)


def test_undoing_what_cannot_be_done_is_silent(engine: Engine) -> None:
    engine.disable_freeu()
    engine.unfuse_qkv_projections()
    engine.set_default_attn_processor()
    engine.disable_xformers_memory_efficient_attention()
    engine.disable_forward_chunking()
    engine.disable_gradient_checkpointing()
    engine.unload_lora()
    engine.disable_lora()
    engine.to(memory_format=torch.channels_last)  # type: ignore[call-arg]  # mypy binds no wrapped method
    assert engine.attn_processors == {}


@pytest.mark.parametrize("network", [UNet2DConditionModel, SD3Transformer2DModel, FluxTransformer2DModel])
def test_every_public_method_that_changes_a_network_has_an_answer(network: type) -> None:
    """A method that a later release adds is looked at before it is an AttributeError."""
    public = {name for name in dir(network) if not name.startswith("_")}
    configuration = set(dir(UNet2DModel))
    others = {
        "get_time_embed", "get_class_embed", "get_aug_embed", "process_encoder_hidden_states",  # in forward
        "from_single_file", "active_adapters", "is_cache_enabled", "text_encoder_name", "unet_name",
    }  # fmt: skip
    assert public - configuration - others - set(dir(EngineUNet)) == set()
