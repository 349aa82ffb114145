"""What an engine answers to the methods by which diffusers changes a network: it is fixed."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, NoReturn

from accuquant.errors import UsageError

_CHANGED_BEFORE = "Change the float network before it is calibrated and exported"
_LORA_BEFORE = "Give a LoRA to `accuquant calibrate --lora`, and export again"


def _refusing(method: str, got: str, remedy: str) -> Callable[..., NoReturn]:
    """Return a method that refuses, whatever it is given."""

    def refuse(_self: object, *args: Any, **kwargs: Any) -> NoReturn:
        _refuse(method, got, remedy)

    refuse.__name__, refuse.__doc__ = method, f"Refuse: {got}."
    return refuse


def _nothing_to_undo(method: str) -> Callable[..., None]:
    """Return a method that does nothing: what it undoes cannot have been done."""

    def nothing(_self: object, *args: Any, **kwargs: Any) -> None:
        return None

    nothing.__name__, nothing.__doc__ = method, "Do nothing: there is nothing to undo."
    return nothing


class FixedNetwork:
    """The methods of diffusers' UNets and transformers that an engine has no layers for.

    What would change the images is refused with a remedy. What only changes how a network computes is
    ignored, because scripts call it for every pipeline: attention is the engine's own business. Undoing what
    cannot be done does nothing.
    """

    enable_freeu = _refusing(
        "enable_freeu", "FreeU, which scales features inside the network", "Leave it out"
    )
    enable_cache = _refusing("enable_cache", "a cache that leaves layers out in some steps", "Leave it out")
    load_attn_procs = _refusing("load_attn_procs", "weights for a compiled engine", _CHANGED_BEFORE)
    save_attn_procs = _refusing("save_attn_procs", "a compiled engine to save", "Save the float network")
    add_adapter = _refusing("add_adapter", "an adapter for a compiled engine", _CHANGED_BEFORE)
    # pipe.load_ip_adapter calls this
    _load_ip_adapter_weights = _refusing(
        "load_ip_adapter", "an IP-Adapter for a compiled engine", "Run it with the float network"
    )
    enable_gradient_checkpointing = _refusing(
        "enable_gradient_checkpointing", "a compiled engine to train", "Train the float network"
    )
    set_adapter = _refusing("set_adapter", "a LoRA for a compiled engine", _LORA_BEFORE)
    set_adapters = _refusing("set_adapters", "a LoRA for a compiled engine", _LORA_BEFORE)
    delete_adapters = _refusing("delete_adapters", "a LoRA for a compiled engine", _LORA_BEFORE)
    enable_adapters = _refusing("enable_adapters", "a LoRA for a compiled engine", _LORA_BEFORE)
    fuse_lora = _refusing("fuse_lora", "a LoRA for a compiled engine", _LORA_BEFORE)
    enable_lora = _refusing("enable_lora", "a LoRA for a compiled engine", _LORA_BEFORE)
    enable_lora_hotswap = _refusing("enable_lora_hotswap", "a LoRA for a compiled engine", _LORA_BEFORE)
    save_lora_adapter = _refusing("save_lora_adapter", "a LoRA for a compiled engine", _LORA_BEFORE)

    disable_freeu = _nothing_to_undo("disable_freeu")
    disable_cache = _nothing_to_undo("disable_cache")
    disable_adapters = _nothing_to_undo("disable_adapters")
    disable_lora = _nothing_to_undo("disable_lora")
    unfuse_lora = _nothing_to_undo("unfuse_lora")
    unload_lora = _nothing_to_undo("unload_lora")
    unfuse_qkv_projections = _nothing_to_undo("unfuse_qkv_projections")
    set_default_attn_processor = _nothing_to_undo("set_default_attn_processor")
    disable_xformers_memory_efficient_attention = _nothing_to_undo("disable_xformers")
    disable_forward_chunking = _nothing_to_undo("disable_forward_chunking")
    disable_gradient_checkpointing = _nothing_to_undo("disable_gradient_checkpointing")

    def set_attn_processor(self, processor: Any) -> None:
        """Do nothing for diffusers' own ways to compute the same attention; refuse every other processor."""
        for one in processor.values() if isinstance(processor, dict) else [processor]:
            if not _computes_the_same(one):
                got = f"a {type(one).__name__}, which changes what attention computes"
                _refuse("set_attn_processor", got, "Run it with the float network")
        _ignore("set_attn_processor")

    def fuse_qkv_projections(self) -> None:
        """Do nothing: the exporter joins projections where it pays, and the result is the same."""
        _ignore("fuse_qkv_projections")

    def set_attention_slice(self, slice_size: Any = "auto") -> None:
        """Do nothing: how attention is computed is the engine's own business."""
        _ignore("set_attention_slice")

    def set_attention_backend(self, backend: str) -> None:
        """Do nothing: how attention is computed is the engine's own business."""
        _ignore("set_attention_backend")

    def enable_xformers_memory_efficient_attention(self, attention_op: Any = None) -> None:
        """Do nothing: how attention is computed is the engine's own business."""
        _ignore("enable_xformers_memory_efficient_attention")

    def enable_forward_chunking(self, chunk_size: int | None = None, dim: int = 0) -> None:
        """Do nothing: the engine plans its own memory."""
        _ignore("enable_forward_chunking")

    @property
    def attn_processors(self) -> dict[str, Any]:
        """No attention processors: they are compiled."""
        return {}


def _computes_the_same(processor: Any) -> bool:
    """Say whether an attention processor is diffusers' own, without weights or guidance inside."""
    kind = type(processor)
    weights = any(True for _ in processor.parameters()) if hasattr(processor, "parameters") else False
    changing = any(word in kind.__name__ for word in ("PAG", "IPAdapter", "Custom"))
    return kind.__module__.startswith("diffusers.") and not weights and not changing


def _refuse(method: str, got: str, remedy: str) -> NoReturn:
    raise UsageError(
        f"EngineUNet.{method}",
        got=got,
        expected="a network that stays as it was exported",
        remedy=f"{remedy}: `accuquant export` fixed the layers of this one",
    )


def _ignore(method: str) -> None:
    warnings.warn(
        f"EngineUNet.{method} does nothing: the network is a compiled engine, which computes as exported.",
        stacklevel=3,
    )
