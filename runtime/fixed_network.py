"""What an engine answers to the methods by which diffusers changes a network: it is fixed."""

from __future__ import annotations

import warnings
from typing import Any, NoReturn

from accuquant.errors import UsageError

_CHANGED_BEFORE = "Change the float network before it is calibrated and exported"


class FixedNetwork:
    """The methods of diffusers' UNets and transformers that an engine has no layers for.

    What would change the images is refused with a remedy. What only changes how a network computes is
    ignored, because scripts call it for every pipeline: attention is the engine's own business. Undoing what
    cannot be done does nothing.
    """

    def enable_freeu(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refuse: FreeU scales features inside the network."""
        _refuse("enable_freeu", "FreeU, which scales features inside the network", "Sample without FreeU")

    def load_attn_procs(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refuse: attention processors with weights of their own."""
        _refuse("load_attn_procs", "weights for a compiled engine", _CHANGED_BEFORE)

    def add_adapter(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refuse: an adapter adds layers."""
        _refuse("add_adapter", "an adapter for a compiled engine", _CHANGED_BEFORE)

    def _load_ip_adapter_weights(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refuse: an IP-Adapter adds layers and inputs. `pipe.load_ip_adapter` calls this."""
        _refuse("load_ip_adapter", "an IP-Adapter for a compiled engine", "Run it with the float network")

    def enable_gradient_checkpointing(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refuse: an engine has no gradients."""
        _refuse("enable_gradient_checkpointing", "a compiled engine to train", "Train the float network")

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

    def disable_freeu(self) -> None:
        """Do nothing: there is no FreeU to switch off."""

    def unfuse_qkv_projections(self) -> None:
        """Do nothing: nothing was fused here."""

    def set_default_attn_processor(self) -> None:
        """Do nothing: the engine has its own attention."""

    def disable_xformers_memory_efficient_attention(self) -> None:
        """Do nothing: the engine has its own attention."""

    def disable_forward_chunking(self) -> None:
        """Do nothing: the engine plans its own memory."""

    def disable_gradient_checkpointing(self) -> None:
        """Do nothing: an engine has no gradients."""

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
