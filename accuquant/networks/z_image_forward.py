"""Z-Image's transformer on batches: diffusers takes lists of images and captions, each of its own length."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from accuquant.errors import SourceError
from accuquant.networks.padding import MULTIPLE, filled, next_multiple
from accuquant.networks.rotation_tables import angle_table, looked_up, rotations


def arguments(given: dict[str, Any]) -> dict[str, Any]:
    """Return a pipeline's arguments with x [B, C, 1, H, W], cap_feats [B, T, D] and cap_feats_mask [B, T].

    T is a multiple of 32. Raises SourceError for the lists of lists of Z-Image-Omni.
    """
    own = dict(given)
    images, captions = own["x"], own["cap_feats"]
    if isinstance(images, Tensor):
        return own
    if isinstance(images[0], list):
        raise SourceError(
            "network ZImageTransformer2DModel",
            got="several images a row (Z-Image-Omni)",
            expected="one image a row",
            remedy="Sample with ZImagePipeline",
        )
    lengths = torch.tensor([len(caption) for caption in captions], device=captions[0].device)
    padded = pad_sequence(list(captions), batch_first=True)
    own["x"] = torch.stack(list(images))
    own["cap_feats"] = filled(padded, next_multiple(padded.shape[1]))
    places = torch.arange(own["cap_feats"].shape[1], device=padded.device)
    own["cap_feats_mask"] = places < lengths[:, None]
    return own


def forward(
    network: Any,
    x: Tensor,
    t: Tensor,
    cap_feats: Tensor,
    cap_feats_mask: Tensor,
    patch_size: int = 2,
    f_patch_size: int = 1,
) -> Tensor:
    """Predict for x [B, C, 1, H, W] and captions [B, T, D] of which a mask [B, T] tells the length.

    As ZImageTransformer2DModel.forward without its omni mode.
    """
    key, count = f"{patch_size}-{f_patch_size}", x.shape[0]
    temb = network.t_embedder(t * network.t_scale).type_as(x)
    grid = (x.shape[2] // f_patch_size, x.shape[3] // patch_size, x.shape[4] // patch_size)
    patches = _patches(x, patch_size, f_patch_size)
    # sequences are filled to a multiple of 32 with a learned token, which is attended to
    lengths = (cap_feats_mask.sum(1) + (MULTIPLE - 1)) // MULTIPLE * MULTIPLE
    seen = torch.arange(cap_feats.shape[1], device=x.device) < lengths[:, None]
    image_turns, caption_turns = _turns(network.rope_embedder, grid, lengths, cap_feats.shape[1])

    image = network.all_x_embedder[key](patches)
    if missing := image_turns.shape[1] - image.shape[1]:
        image = torch.cat([image, network.x_pad_token.expand(count, missing, -1)], dim=1)
    for layer in network.noise_refiner:
        image = layer(image, None, rotations(image_turns), temb)

    caption = torch.where(cap_feats_mask[..., None], network.cap_embedder(cap_feats), network.cap_pad_token)
    caption = caption * seen[..., None]
    for layer in network.context_refiner:
        caption = layer(caption, seen, rotations(caption_turns))

    joint = torch.cat([image, caption * seen[..., None]], dim=1)
    mask = torch.cat([torch.ones_like(image[..., 0], dtype=torch.bool), seen], dim=1)
    turns = torch.cat([image_turns, caption_turns], dim=1)
    for layer in network.layers:
        joint = layer(joint, mask, rotations(turns), temb)
    tokens = network.all_final_layer[key](joint, c=temb)[:, : patches.shape[1]]
    return _image(tokens, grid, network.out_channels, patch_size, f_patch_size)


def _patches(x: Tensor, side: int, frames: int) -> Tensor:
    count, channels, depth, height, width = x.shape
    cut = x.reshape(count, channels, depth // frames, frames, height // side, side, width // side, side)
    return cut.permute(0, 2, 4, 6, 3, 5, 7, 1).flatten(4).flatten(1, 3)


def _image(tokens: Tensor, grid: tuple[int, int, int], channels: int, side: int, frames: int) -> Tensor:
    depth, rows, columns = grid
    cut = tokens.reshape(tokens.shape[0], depth, rows, columns, frames, side, side, channels)
    return cut.permute(0, 7, 1, 4, 2, 5, 3, 6).reshape(
        tokens.shape[0], channels, depth * frames, rows * side, columns * side
    )


def _turns(embedder: Any, grid: tuple[int, int, int], lengths: Tensor, tokens: int) -> tuple[Tensor, Tensor]:
    """Return the angles of images [B, P, d / 2] and of captions [B, T, d / 2].

    A caption's token stands at (1 + place, 0, 0), a patch at (1 + length of the caption, row, column) and
    what fills the image at (0, 0, 0).
    """
    device, count = lengths.device, lengths.shape[0]
    tables = [
        angle_table(length, dim, embedder.theta, device)
        for length, dim in zip(embedder.axes_lens, embedder.axes_dims, strict=True)
    ]
    places = torch.arange(1, tokens + 1, device=device)
    zeros = torch.zeros_like(places)
    caption = torch.stack([places, zeros, zeros], dim=-1).expand(count, -1, -1)
    at = torch.cartesian_prod(*(torch.arange(extent, device=device) for extent in grid))
    offset = (lengths + 1)[:, None, None] * torch.tensor([1, 0, 0], device=device)
    image = at[None] + offset
    if missing := -at.shape[0] % MULTIPLE:
        image = torch.cat([image, image.new_zeros((1, missing, 3)).expand(count, -1, -1)], dim=1)
    return looked_up(tables, image), looked_up(tables, caption)
