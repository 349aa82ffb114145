"""Qwen-Image's transformer with padded prompts, told where patches stand as Flux is: by tensors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from accuquant.errors import SourceError, UsageError
from accuquant.networks.padding import filled, next_multiple
from accuquant.networks.rotation_tables import frequencies, rotations


def arguments(given: dict[str, Any]) -> dict[str, Any]:
    """Return a pipeline's arguments with a mask always, 32 k tokens, and `img_ids` [P, 3].

    diffusers leaves out a mask of ones, and says the sizes of images in a list for each row. Raises
    UsageError for images of several sizes.
    """
    own = dict(given)
    hidden = own["encoder_hidden_states"]
    mask = own.get("encoder_hidden_states_mask")
    if mask is None:
        mask = torch.ones(hidden.shape[:2], dtype=torch.bool, device=hidden.device)
    length = next_multiple(hidden.shape[1])
    own["encoder_hidden_states"] = filled(hidden, length)
    own["encoder_hidden_states_mask"] = filled(mask.bool(), length)
    shapes = own.pop("img_shapes", None)
    if shapes is not None:
        if any(list(row) != list(shapes[0]) for row in shapes):
            raise UsageError(
                "argument 'img_shapes' of the network",
                got="images of several sizes in one batch",
                expected="rows of one shape: a graph has rectangular inputs",
                remedy="Sample images of one size, or one image a batch",
            )
        images = shapes[0] if isinstance(shapes[0], list) else [shapes[0]]
        own["img_ids"] = _places(images).to(hidden.device)
    return own


def forward(
    network: Any,
    hidden_states: Tensor,
    encoder_hidden_states: Tensor,
    encoder_hidden_states_mask: Tensor,
    timestep: Tensor,
    img_ids: Tensor,
    additional_t_cond: Tensor | None = None,
) -> Tensor:
    """Predict for patches [B, P, C] and prompts [B, T, D] with a mask [B, T], as diffusers' forward does.

    `img_ids` [P, 3] holds image, row and column of each patch, the last two counted from the middle.
    """
    if network.config.use_layer3d_rope:
        raise SourceError(
            "network QwenImageTransformer2DModel",
            got="positions of layers (use_layer3d_rope)",
            expected="Qwen-Image, or its editing: one image, and images that it is told",
            remedy="Quantize another network: Qwen-Image-Layered is not supported",
        )
    hidden = network.img_in(hidden_states)
    timestep = timestep.to(hidden.dtype)
    of_edited = None
    if network.zero_cond_t:  # what is edited is always clean
        timestep = torch.cat([timestep, timestep * 0])
        of_edited = (img_ids[:, 0] > 0).int()[None]
    text = network.txt_in(network.txt_norm(encoder_hidden_states))
    temb = network.time_text_embed(timestep, hidden, additional_t_cond)
    turns = _turns(network.pos_embed, img_ids, text.shape[1])
    for block in network.transformer_blocks:
        text, hidden = block(
            hidden_states=hidden,
            encoder_hidden_states=text,
            encoder_hidden_states_mask=encoder_hidden_states_mask,
            temb=temb,
            image_rotary_emb=tuple(map(rotations, turns)),
            modulate_index=of_edited,
        )
    if network.zero_cond_t:
        temb = temb.chunk(2)[0]
    predicted: Tensor = network.proj_out(network.norm_out(hidden, temb))
    return predicted


def idle_layers(network: Any) -> frozenset[str]:
    """Return the layers behind the last attention that compute its text, which nothing reads."""
    last = len(network.transformer_blocks) - 1
    names = ("attn.to_add_out", "txt_mlp.net.0.proj", "txt_mlp.net.2")
    return frozenset(f"transformer_blocks.{last}.{name}" for name in names)


def _places(images: list[tuple[int, int, int]]) -> Tensor:
    """Return image, row and column of every patch, in float32 as Flux's: rows and columns from the middle."""
    places = [
        torch.cartesian_prod(
            torch.arange(index, index + frames),
            torch.arange(height) - (height - height // 2),
            torch.arange(width) - (width - width // 2),
        )
        for index, (frames, height, width) in enumerate(images)
    ]
    return torch.cat(places).float()


def _turns(embedder: Any, img_ids: Tensor, tokens: int) -> tuple[Tensor, Tensor]:
    """Return the angles of patches [P, d / 2] and of the prompt's tokens [T, d / 2], which come after."""
    axes = [frequencies(dim, embedder.theta).float().to(img_ids.device) for dim in embedder.axes_dim]
    image = torch.cat([img_ids[:, k : k + 1] * axis for k, axis in enumerate(axes)], dim=-1)
    first = img_ids[:, 1:].reshape(-1).amax(0) + 1
    places = first + torch.arange(tokens, device=img_ids.device)
    return image, places[:, None] * torch.cat(axes)
