from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure

from accuquant.denoising.conditioning import Conditioning
from accuquant.denoising.start import Start
from accuquant.verification.measure.metrics import mse
from accuquant.verification.measure.rollout import Rollout
from accuquant.verification.report.tally import Tally, measured

Array = npt.NDArray[np.float64]
IMAGES, STEPS, WIDTH = 21, 3, 5
PAIRS = {
    "fidelity": ("engine", "reference"),
    "quantization": ("simulated", "reference"),
    "lowering": ("engine", "simulated"),
}
ERRORS = {"fidelity": "engine", "quantization": "simulated", "lowering": "lowering"}


@dataclass(frozen=True)
class Projection:
    """Features [N, WIDTH] with a large mean, as those behind a ReLU have.

    Summed in float64, so that they are the same in batches of any size.
    """

    name: str = "projection"

    def __call__(self, images: Tensor) -> Tensor:
        weight = torch.randn(12 * 12, WIDTH, generator=torch.Generator().manual_seed(3))
        return (images.flatten(1).double() @ weight.double() + 100).float()


@pytest.fixture(scope="module")
def latents() -> dict[str, Tensor]:
    """Return the latents of all branches after every step, [STEPS, IMAGES, 1, 12, 12]."""
    generator = torch.Generator().manual_seed(0)
    reference = torch.randn(STEPS, IMAGES, 1, 12, 12, generator=generator)
    simulated = reference + 0.05 * torch.randn(reference.shape, generator=generator)
    engine = simulated + 0.02 * torch.randn(reference.shape, generator=generator)
    return {"reference": reference, "simulated": simulated, "engine": engine}


def pictures(latents: Tensor) -> Tensor:
    return (latents / 6 + 0.5).clamp(0, 1)


def tallied(latents: dict[str, Tensor], batch_size: int) -> Tally:
    tally = Tally(Projection())
    for first in range(0, IMAGES, batch_size):
        part = {name: values[:, first : first + batch_size] for name, values in latents.items()}
        errors = {
            ERRORS[pair]: torch.stack([mse(x, y) for x, y in zip(part[one], part[other], strict=True)])
            for pair, (one, other) in PAIRS.items()
        }
        final = {name: values[-1] for name, values in part.items()}
        alone = {"engine": errors["engine"] / 2, "simulated": errors["simulated"] / 2} if first == 0 else {}
        start = Start(part["reference"][0], (), Conditioning())
        rollout = Rollout(start, final, errors, alone)
        shown = {name: pictures(values) for name, values in final.items()}
        tally.add(measured(rollout, shown, Projection(), first))
    return tally


def numpy_distance(first: Array, second: Array) -> float:
    """Return the Frechet distance of features [N, D] from all of them at once."""
    covariances = [np.cov(x, rowvar=False) for x in (first, second)]
    cross = np.sqrt(np.linalg.eigvals(covariances[0] @ covariances[1]).real.clip(0)).sum()
    shift = first.mean(0) - second.mean(0)
    return float(shift @ shift + sum(np.trace(c) for c in covariances) - 2 * cross)


def test_figures_of_batches_are_those_of_all_images_at_once(latents: dict[str, Tensor]) -> None:
    tally = tallied(latents, 4)
    found = tally.comparisons()
    arrays = {name: values.double().numpy() for name, values in latents.items()}
    for pair, (one, other) in PAIRS.items():
        x, y = arrays[one], arrays[other]
        images = [pictures(latents[name][-1]) for name in (one, other)]
        error = ((images[0].double() - images[1].double()) ** 2).mean((1, 2, 3)).numpy()
        np.testing.assert_allclose(found[pair].psnr, -10 * np.log10(error), rtol=1e-12)
        np.testing.assert_allclose(
            found[pair].ssim,
            structural_similarity_index_measure(
                images[0].double(), images[1].double(), data_range=1.0, reduction="none"
            ),
            rtol=1e-6,
        )
        flat = [final[-1].reshape(IMAGES, -1) for final in (x, y)]
        norms = np.linalg.norm(flat[0], axis=1) * np.linalg.norm(flat[1], axis=1)
        np.testing.assert_allclose(found[pair].cosine, (flat[0] * flat[1]).sum(1) / norms, rtol=1e-9)
        by_step = ((x - y) ** 2).reshape(STEPS, IMAGES, -1).mean(2)
        np.testing.assert_allclose(found[pair].latent_mse, by_step[-1], rtol=1e-9)
        np.testing.assert_allclose(found[pair].by_step.p90, np.percentile(by_step, 90, axis=1), rtol=1e-9)
        np.testing.assert_allclose(found[pair].by_step.median, np.median(by_step, axis=1), rtol=1e-9)
        alone = found[pair].step_error
        if pair == "lowering":
            assert alone is None
        else:
            assert alone is not None
            np.testing.assert_allclose(alone.mean, by_step[:, :4].mean(1) / 2, rtol=1e-9)


def test_the_distance_from_moments_is_that_from_all_features(latents: dict[str, Tensor]) -> None:
    fid = tallied(latents, 4).fid()
    assert fid is not None
    assert fid.extractor == "projection"
    features = {name: Projection()(pictures(x[-1])).double().numpy() for name, x in latents.items()}
    for name in ("engine", "simulated"):
        wanted = numpy_distance(features["reference"], features[name])
        assert getattr(fid, name) == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize("batch_size", [1, 8, IMAGES])
def test_the_size_of_the_batches_does_not_matter(latents: dict[str, Tensor], batch_size: int) -> None:
    one, other = tallied(latents, 4), tallied(latents, batch_size)
    for pair, comparison in one.comparisons().items():
        again = replace(other.comparisons()[pair], step_error=None)
        assert again == replace(comparison, step_error=None)
    assert one.pictures.gallery(seed=1) == other.pictures.gallery(seed=1)
    before, after = one.fid(), other.fid()
    assert before is not None
    assert after is not None
    assert after.engine == pytest.approx(before.engine, rel=1e-6)


def test_without_features_no_distance_is_measured(latents: dict[str, Tensor]) -> None:
    assert Tally(None).fid() is None


def test_features_of_videos_are_those_of_their_frames_and_pages_show_strips(
    latents: dict[str, Tensor],
) -> None:
    final = {name: pictures(values[-1]) for name, values in latents.items()}
    videos = {name: values.reshape(IMAGES // 3, 3, 1, 12, 12) for name, values in final.items()}
    rollout = Rollout(Start(videos["reference"], (), Conditioning()), videos, dict.fromkeys(
        ERRORS.values(), torch.zeros(STEPS, IMAGES // 3)
    ), {})  # fmt: skip
    tally = Tally(Projection())
    tally.add(measured(rollout, videos, Projection(), 0))
    by_image, by_video = tallied(latents, IMAGES).fid(), tally.fid()
    assert by_image is not None
    assert by_video == by_image
    fidelity = tally.comparisons()["fidelity"]
    assert len(fidelity.psnr) == len(fidelity.worst_frame) == 7
    frames = tallied(latents, IMAGES).comparisons()["fidelity"].psnr
    assert fidelity.worst_frame[2] == pytest.approx(min(frames[6:9]))
    assert fidelity.metrics["worst_frame_psnr"] == fidelity.worst_frame
    assert tally.pictures.gallery(seed=0).ratio == 3.0
