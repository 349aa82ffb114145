"""Videos as metrics and pages take them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers import LTXPipeline
from torch import Tensor

from accuquant.networks.call_form import CallForm, Path, Place
from accuquant.networks.signature import Signature, TensorSpec
from accuquant.verification.measure.metrics import psnr, ssim, worst_frame_psnr
from accuquant.verification.measure.video import every_frame, strip, to_videos, unpacked_video

SPEC = TensorSpec("hidden_states", ("batch", 60, 8))
SIGNATURE = Signature("Net", SPEC, TensorSpec("timestep", ("steps",)), (), SPEC, {})


def told(**constants: Any) -> Signature:
    """Return the signature of a network that is told numbers beside its tensors."""
    given: dict[Path, Any] = {(name,): value for name, value in constants.items()}
    return replace(SIGNATURE, call=CallForm({}, Place((0,)), given))


@pytest.mark.parametrize("patch", [(1, 1), (1, 2), (2, 2)])
def test_unpacking_is_that_of_ltx(patch: tuple[int, int]) -> None:
    frames, side = patch
    latents = torch.randn(2, 3, 3 * frames, 4 * side, 5 * side)
    packed = LTXPipeline._pack_latents(latents, side, frames)
    assert torch.equal(unpacked_video(packed, told(num_frames=3, height=4, width=5), patch), latents)


def test_latents_that_nobody_packed_stay_as_they_are() -> None:
    packed, whole = torch.zeros(1, 60, 8), torch.zeros(1, 3, 2, 4, 4)
    for signature in (SIGNATURE, told(height=4, width=5)):
        assert unpacked_video(packed, signature, (1, 1)) is packed
    assert unpacked_video(whole, told(num_frames=2, height=4, width=4), (1, 1)) is whole


def videos() -> tuple[Tensor, Tensor]:
    """Return two videos of 4 frames, the second frame of the second changed by 0.1."""
    reference = torch.full((2, 4, 3, 8, 8), 0.5)
    changed = reference.clone()
    changed[1, 1] += 0.1
    return changed, reference


def test_a_videos_ratio_is_over_all_frames_and_its_worst_frame_is_told() -> None:
    # one frame of four errs by 0.01 squared: 20 dB of the frame, 10 log10(4) more of the video
    torch.testing.assert_close(psnr(*videos()), torch.tensor([100.0, 26.0206]).double(), rtol=0, atol=1e-3)
    torch.testing.assert_close(worst_frame_psnr(*videos()), torch.tensor([100.0, 20.0]).double())


def test_a_videos_similarity_is_the_mean_of_its_frames() -> None:
    generator = torch.Generator().manual_seed(0)
    one, other = torch.rand(2, 2, 3, 3, 12, 12, generator=generator)
    frames = [ssim(one[:, k], other[:, k]) for k in range(3)]
    torch.testing.assert_close(ssim(one, other), torch.stack(frames).mean(0))


def test_frames_come_one_by_one_and_side_by_side() -> None:
    video = torch.arange(9.0).reshape(1, 9, 1, 1, 1).expand(1, 9, 3, 2, 2)
    assert torch.equal(every_frame(video)[:, 0, 0, 0], torch.arange(9.0))
    assert strip(video).shape == (1, 3, 2, 10)
    assert strip(video)[0, 0, 0, ::2].tolist() == [0, 2, 4, 6, 8]
    images = torch.zeros(2, 3, 4, 4)
    assert every_frame(images) is images
    assert strip(images) is images


def test_a_decoders_channels_before_frames_become_frames_before_channels() -> None:
    decoded = torch.tensor([-2.0, 0.0, 1.0]).reshape(1, 1, 3, 1, 1).expand(1, 3, 3, 2, 2)
    assert to_videos(decoded)[0, :, 0, 0, 0].tolist() == [0.0, 0.5, 1.0]
    assert to_videos(decoded).shape == (1, 3, 3, 2, 2)
