"""Where factors of channels fold: a normalization or linear layer, and all the layers that read it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from accuquant.networks.network import weight_shape


@dataclass(frozen=True)
class Place:
    """Channels of `producer` that only `consumers` read, with nothing between but sums over positions."""

    producer: str
    consumers: tuple[str, ...]


def folding_places(network: nn.Module) -> list[Place]:
    """Return the places of `network`, in its order.

    - Attention: its GroupNorm -> to_q, to_k, to_v; to_v -> to_out (a mean over tokens keeps channels).
    - BasicTransformerBlock with LayerNorms of their own weights: norm1 -> attn1.to_q, to_k, to_v; norm2 ->
      attn2.to_q; norm3 -> the feed-forward's first layer.
    - GEGLU: the first half of its outputs, which gates multiply, -> the feed-forward's second layer.
    A convolution behind GroupNorm and SiLU is none: SiLU(x / s) is not SiLU(x) / s.
    """
    found: list[Place] = []
    for name, module in network.named_modules():
        kind = type(module).__name__
        if kind == "Attention":
            found += _of_attention(name, module)
        elif kind == "BasicTransformerBlock":
            found += _of_block(name, module)
        elif kind == "FeedForward":
            found += _of_feed_forward(name, module)
    return found


def _of_attention(name: str, module: nn.Module) -> list[Place]:
    parts, found = dict(module.named_children()), []
    projections = tuple(f"{name}.{x}" for x in ("to_q", "to_k", "to_v"))
    if _has_weight(parts.get("group_norm")) and "add_k_proj" not in parts:
        same = all(weight_shape(parts[x])[1] == weight_shape(parts["to_q"])[1] for x in ("to_k", "to_v"))
        if same and not getattr(module, "is_cross_attention", False):
            found.append(Place(f"{name}.group_norm", projections))
    alone = "to_out" in parts and "add_v_proj" not in parts
    # grouped queries would share a value's channels
    if alone and weight_shape(parts["to_v"])[0] == weight_shape(module.get_submodule("to_out.0"))[1]:
        found.append(Place(f"{name}.to_v", (f"{name}.to_out.0",)))
    return found


def head_width(attention: nn.Module, values: nn.Linear) -> int:
    """Return the channels of a head of what `values`, the layer to_v of `attention`, returns."""
    heads = getattr(attention, "heads", 1)
    return values.out_features // int(heads) if values.out_features % int(heads) == 0 else 1


def _of_block(name: str, module: nn.Module) -> list[Place]:
    if getattr(module, "norm_type", "") != "layer_norm":
        return []
    parts, found = dict(module.named_children()), []
    self_attention = tuple(f"{name}.attn1.{x}" for x in ("to_q", "to_k", "to_v"))
    if _has_weight(parts.get("norm1")) and not getattr(module, "only_cross_attention", False):
        found.append(Place(f"{name}.norm1", self_attention))
    if _has_weight(parts.get("norm2")) and parts.get("attn2") is not None:
        itself = not getattr(parts["attn2"], "is_cross_attention", True)  # double self-attention
        readers = ("to_q", "to_k", "to_v") if itself else ("to_q",)
        found.append(Place(f"{name}.norm2", tuple(f"{name}.attn2.{x}" for x in readers)))
    if _has_weight(parts.get("norm3")):
        found.append(Place(f"{name}.norm3", (f"{name}.ff.net.0.proj",)))
    return found


def _of_feed_forward(name: str, module: nn.Module) -> list[Place]:
    first = module.get_submodule("net.0")
    return [Place(f"{name}.net.0.proj", (f"{name}.net.2",))] if type(first).__name__ == "GEGLU" else []


def _has_weight(module: nn.Module | None) -> bool:
    return isinstance(module, nn.GroupNorm | nn.LayerNorm) and module.weight is not None
