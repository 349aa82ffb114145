"""Which layers stay float, by name: the defaults, and what --include and --exclude change."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

from accuquant.networks.control_signature import part_of_layer

#: Layers that stay float unless --include names them. A name without * is a whole name: blocks inside a
#: network have a `proj_out` too.
DEFAULT_EXCLUDE = (
    # first and last layer: all of the image passes through them
    "conv_in",
    "conv_out",
    "post_quant_conv",  # an autoencoder's decoder
    "decoder.conv_in",
    "decoder.conv_out",
    "pos_embed.proj",
    "x_embedder",
    "norm_out.linear",
    "proj_out",
    "proj_out_1",
    "proj_out_2",
    # 1x1 shortcuts carry the residual stream and cost few operations
    "*conv_shortcut",
    # what embeds the timestep, classes and pooled text: one row a sample, nothing to gain
    "time_embedding.*",
    "add_embedding.*",
    "class_embedding.*",
    "time_proj*",
    "*time_emb_proj",
    "time_text_embed.*",
    "adaln_single.*",
    "*timestep_embedder.*",
    "time_step_proj.*",  # AuraFlow
    # modulation of transformer blocks (adaLN): one row a sample, and it scales every token
    "*.norm1.linear",
    "*.norm1_context.linear",
    "*.norm.linear",
    # text enters once, in its encoder's range, which has outliers
    "context_embedder",
    "caption_projection.*",
    "encoder_hid_proj.*",  # and an IP-Adapter's image
    # a control network's image enters, and its residuals leave in 1x1 convolutions: first and last layers
    "controlnet_cond_embedding.conv_in",
    "controlnet_down_blocks.*",
    "controlnet_mid_block",
)


def stays_float(name: str, include: Sequence[str], exclude: Sequence[str], ends: Sequence[str] = ()) -> bool:
    """Say whether layer `name` stays float: `exclude` first, then `include`, then DEFAULT_EXCLUDE.

    `ends` are names of first and last layers, where a network has names of its own. The defaults are names
    inside a network: `unet.conv_in` beside a control network is `conv_in`.
    """
    if any(fnmatchcase(name, pattern) for pattern in exclude):
        return True
    if any(fnmatchcase(name, pattern) for pattern in include):
        return False
    inside = part_of_layer(name)[1]
    return name in ends or any(fnmatchcase(inside, pattern) for pattern in DEFAULT_EXCLUDE)
