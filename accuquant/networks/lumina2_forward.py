"""Lumina 2's transformer with padded captions: diffusers reads their lengths off the mask in Python."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from accuquant.networks.rotation_tables import angle_table, looked_up, rotations


def forward(
    network: Any,
    hidden_states: Tensor,
    timestep: Tensor,
    encoder_hidden_states: Tensor,
    encoder_attention_mask: Tensor,
) -> Tensor:
    """Predict for hidden_states [B, C, H, W] and captions [B, T, D] of which a mask [B, T] tells the length.

    As Lumina2Transformer2DModel.forward, where every row of the joint sequence is its caption, then its
    image, and padding behind. Here padding is between the two and masked: attention has no order but that
    of the positions.
    """
    count, _, height, width = hidden_states.shape
    patch = network.config.patch_size
    rows, columns = height // patch, width // patch
    lengths = encoder_attention_mask.sum(1)
    places = torch.arange(encoder_attention_mask.shape[1], device=hidden_states.device)
    real = places < lengths[:, None]

    temb, caption = network.time_caption_embed(hidden_states, timestep, encoder_hidden_states)
    caption_turns, image_turns = _turns(network.rope_embedder, places, lengths, rows, columns)
    patches = hidden_states.reshape(count, -1, rows, patch, columns, patch).permute(0, 2, 4, 3, 5, 1)
    image = network.x_embedder(patches.flatten(3).flatten(1, 2))

    for layer in network.context_refiner:
        caption = layer(caption, encoder_attention_mask, rotations(caption_turns))
    for layer in network.noise_refiner:
        image = layer(image, None, rotations(image_turns), temb)
    joint = torch.cat([caption * real[..., None], image], dim=1)
    mask = torch.cat([real, torch.ones_like(image[..., 0], dtype=torch.bool)], dim=1)
    turns = torch.cat([caption_turns, image_turns], dim=1)
    for layer in network.layers:
        joint = layer(joint, mask, rotations(turns), temb)

    tokens = network.norm_out(joint, temb)[:, places.shape[0] :]
    tokens = tokens.reshape(count, rows, columns, patch, patch, network.out_channels)
    predicted: Tensor = tokens.permute(0, 5, 1, 3, 2, 4).reshape(count, -1, height, width)
    return predicted


def _turns(embedder: Any, places: Tensor, lengths: Tensor, rows: int, columns: int) -> tuple[Tensor, Tensor]:
    """Return the angles of captions and of images, [B, T, d / 2] and [B, P, d / 2].

    A caption's token stands at (place, 0, 0), a patch at (length of the caption, row, column).
    """
    device, count = places.device, lengths.shape[0]
    tables = [
        angle_table(length, dim, embedder.theta, device)
        for length, dim in zip(embedder.axes_lens, embedder.axes_dim, strict=True)
    ]
    zeros = torch.zeros_like(places)
    caption = torch.stack([places, zeros, zeros], dim=-1).expand(count, -1, -1)
    row = torch.arange(rows, device=device)[:, None].expand(rows, columns).reshape(-1)
    column = torch.arange(columns, device=device).expand(rows, columns).reshape(-1)
    behind = lengths[:, None].expand(-1, row.shape[0])
    image = torch.stack([behind, row.expand(count, -1), column.expand(count, -1)], dim=-1)
    return looked_up(tables, caption), looked_up(tables, image)
