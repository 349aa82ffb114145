from __future__ import annotations

import importlib.util

import numpy as np
import pytest
import torch
from torch import Tensor

from accuquant.errors import MissingDependencyError, UsageError, VerificationError
from accuquant.verification.measure.fashion import NUM_FEATURES, WEIGHTS, load_fashion_classifier
from accuquant.verification.measure.features import extract, fid_to_fp32, load_features

WITHOUT_FIDELITY = pytest.mark.skipif(
    importlib.util.find_spec("torch_fidelity") is not None, reason="torch-fidelity is installed"
)


def shapes(count: int) -> Tensor:
    """Return images [count, 1, 32, 32] of one bright rectangle each."""
    images = torch.zeros(count, 1, 32, 32)
    for k in range(count):
        images[k, :, 4 + k % 8 : 28, 6 + k % 5 : 20 + k % 7] = 0.3 + 0.7 * k / count
    return images


def flatten(images: Tensor) -> Tensor:
    return images.flatten(1)


def first_value(images: Tensor) -> Tensor:
    return images.flatten(1)[0]


NOT_A_FUNCTION = 3


def test_auto_takes_the_bundled_network_for_small_grayscale_images() -> None:
    extractor = load_features("auto", (1, 32, 32))
    assert extractor is not None
    assert extractor.name == "fashion"
    assert extract(extractor, shapes(3)).shape == (3, NUM_FEATURES)


@WITHOUT_FIDELITY
def test_auto_measures_nothing_where_no_network_fits() -> None:
    assert load_features("auto", (3, 64, 64)) is None


def test_the_bundled_weights_are_small() -> None:
    assert WEIGHTS.stat().st_size < 400_000
    assert sum(p.numel() for p in load_fashion_classifier().parameters()) <= 150_000


def test_the_bundled_network_is_smooth() -> None:
    network = load_fashion_classifier()
    images = shapes(4)
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    moved = [
        float((network.features(images + size * noise) - network.features(images)).norm())
        for size in (1e-3, 2e-3)
    ]
    assert moved[1] == pytest.approx(2 * moved[0], rel=0.05)


def test_distance_grows_with_the_noise() -> None:
    extractor = load_features("fashion", (1, 32, 32))
    assert extractor is not None
    images = shapes(40)
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    distances = [
        fid_to_fp32(extractor, (images + size * noise).clamp(0, 1), images) for size in (0.0, 0.05, 0.2)
    ]
    assert distances[0] == pytest.approx(0.0, abs=1e-6)
    assert distances[0] < distances[1] < distances[2]


def test_features_do_not_depend_on_the_batch() -> None:
    extractor = load_features("fashion", (1, 32, 32))
    assert extractor is not None
    images = shapes(70)
    one_by_one = np.concatenate([extract(extractor, image[None]) for image in images])
    np.testing.assert_allclose(extract(extractor, images), one_by_one, rtol=1e-4, atol=1e-5)


def test_other_images_than_clothes_are_refused() -> None:
    extractor = load_features("fashion", (1, 32, 32))
    assert extractor is not None
    with pytest.raises(VerificationError, match=r"images of shape \[3, 64, 64\].*--features inception"):
        extract(extractor, torch.zeros(2, 3, 64, 64))


def test_none_is_no_network() -> None:
    assert load_features("none", (1, 32, 32)) is None


def test_a_function_of_the_user_is_a_network() -> None:
    extractor = load_features(f"{__name__}:flatten", (1, 2, 2))
    assert extractor is not None
    assert extract(extractor, torch.ones(3, 1, 2, 2)).tolist() == [[1.0] * 4] * 3


def test_a_function_that_returns_another_shape_is_refused() -> None:
    extractor = load_features(f"{__name__}:first_value", (1, 2, 2))
    assert extractor is not None
    with pytest.raises(VerificationError, match=r"features of shape \(4,\) for 3 images"):
        extract(extractor, torch.ones(3, 1, 2, 2))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("inceptoin", "expected one of auto, fashion, inception, clean-fid, none"),
        ("no_such_module:features", "No module named 'no_such_module'"),
        ("math:no_such_function", "no_such_function"),
        (f"{__name__}:NOT_A_FUNCTION", "got a int"),
    ],
)
def test_unusable_names_are_refused(name: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load_features(name, (1, 32, 32))


@WITHOUT_FIDELITY
def test_inception_without_its_library_says_what_to_install() -> None:
    with pytest.raises(MissingDependencyError, match="pip install torch-fidelity"):
        load_features("inception", (3, 32, 32))
