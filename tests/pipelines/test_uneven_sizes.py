"""An image size is taken by every stage, or by none."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import diffusers
import pytest
from tiny_pipelines import SD_NOISE, clip, save_pipeline, text_unet, vae

from accuquant.cli.main import main
from accuquant.errors import UsageError
from accuquant.pipelines.source import load_source
from accuquant.pipelines.starts import open_starter
from accuquant.pipelines.task import Task

QUICK = [
    "--steps", "2", "--group-size", "2", "--num-trajectories", "1", "--iterations", "0",
    "--shared-iterations", "0", "--rounding", "nearest", "--observer", "minmax", "--no-refine",
    "--weight-bits", "7", "--quiet",
]  # fmt: skip


@pytest.mark.slow
def test_a_size_of_eights_goes_through_every_stage_of_three_halvings(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer, encoder = clip(tmp_path)
    unet = text_unet(
        block_out_channels=(8,) * 4,
        down_block_types=("CrossAttnDownBlock2D", *("DownBlock2D",) * 3),
        up_block_types=(*("UpBlock2D",) * 3, "CrossAttnUpBlock2D"),
    )
    diffusers.StableDiffusionPipeline(
        vae(), encoder, tokenizer, unet, diffusers.DDIMScheduler(**SD_NOISE, clip_sample=False), None, None,
        requires_safety_checker=False,
    ).save_pretrained(tmp_path / "sd")  # fmt: skip
    source, recipe, out = (str(tmp_path / name) for name in ("sd", "recipe.safetensors", "out"))
    assert main(["calibrate", source, "--image-size", "40x24", "--prompt", "a", "-o", recipe, *QUICK]) == 0
    assert main(["export", source, "--recipe", recipe, "-o", out, "--target", "cpu", "--quiet"]) == 0
    sample = ["sample", out, "--prompt", "a", "--num-images", "2", "--output-dir", str(tmp_path / "images")]
    assert main([*sample, "--quiet"]) == 0
    verify = ["verify", out, "--reference", source, "--prompt", "b", "--num-images", "2", "--quiet"]
    main(verify)
    assert re.search("PASSED|FAILED", capsys.readouterr().out)  # a verdict, no refusal


def test_a_size_that_the_network_cannot_take_is_refused_before_it_is_called(
    tiny_text_pipeline: Callable[[str], Path], tmp_path: Path
) -> None:
    source = load_source(tiny_text_pipeline("pixart"))
    with pytest.raises(
        UsageError,
        match=r"--image-size, network PixArtTransformer2DModel: got a sample of 4x12x12, expected 4x8x8",
    ):
        open_starter(source, Task(prompts=("a",), image_size=24), steps=2)


def test_super_resolution_of_a_side_that_its_levels_do_not_divide_is_refused(
    tmp_path: Path, picture_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tiny_pipelines import PIPELINES, seeded

    class_name, parts = PIPELINES["super-resolution"](tmp_path)
    parts["unet"] = seeded(
        0, diffusers.UNet2DModel, sample_size=8, in_channels=6, out_channels=3, layers_per_block=1,
        block_out_channels=(8,) * 4, norm_num_groups=4, add_attention=False,
        down_block_types=("DownBlock2D",) * 4, up_block_types=("UpBlock2D",) * 4,
    )  # fmt: skip
    monkeypatch.setitem(PIPELINES, "four-levels", lambda _folder: (class_name, parts))
    source = load_source(save_pipeline("four-levels", tmp_path))
    task = Task(images=(str(picture_folder / "images" / "0.png"),), image_size=12)
    with pytest.raises(UsageError, match=r"network UNet2DModel: got a sample of 6x12x12, .*a multiple of 8"):
        open_starter(source, task, steps=2)
