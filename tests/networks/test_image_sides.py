"""Which image sizes a network takes."""

from __future__ import annotations

from dataclasses import replace

import pytest

from accuquant.errors import UsageError
from accuquant.networks.architectures import read_signature
from accuquant.networks.image_sides import check_sample, side_multiple

LEVELS = {"down_block_types": ["DownBlock2D"] * 4, "in_channels": 3, "out_channels": 3, "sample_size": 32}


def test_a_unet_that_doubles_what_it_halved_needs_sides_that_its_levels_divide() -> None:
    signature = read_signature("UNet2DModel", LEVELS)
    assert side_multiple("UNet2DModel", LEVELS) == 8
    check_sample(signature, LEVELS, (2, 3, 24, 40))
    with pytest.raises(
        UsageError, match=r"--image-size, network UNet2DModel: got a sample of 3x24x28, .*a multiple of 8"
    ):
        check_sample(signature, LEVELS, (2, 3, 24, 28))


def test_a_unet_that_upsamples_to_its_skip_connections_takes_every_side() -> None:
    assert side_multiple("UNet2DConditionModel", LEVELS) == 1
    signature = replace(read_signature("UNet2DModel", LEVELS), architecture="UNet2DConditionModel")
    check_sample(signature, LEVELS, (1, 3, 5, 7))


def test_a_network_of_one_size_takes_no_other() -> None:
    config = {"in_channels": 4, "out_channels": 8, "sample_size": 8, "num_embeds_ada_norm": 10}
    signature = read_signature("DiTTransformer2DModel", config)
    check_sample(signature, config, (3, 4, 8, 8))
    for shape in ((3, 4, 8, 16), (3, 5, 8, 8), (3, 4, 8)):
        with pytest.raises(
            UsageError, match=r"network DiTTransformer2DModel: got a sample of .*expected 4x8x8"
        ):
            check_sample(signature, config, shape)
