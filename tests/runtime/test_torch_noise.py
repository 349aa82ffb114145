import numpy as np
import pytest
import torch

from accuquant.errors import UsageError
from accuquant.runtime.torch_noise import TorchNoise

SHAPES = [
    (1, 3, 32, 32),
    (3,),
    (16,),
    (1,),
    (17,),
    (15,),
    (2,),
    (1, 1, 5, 5),
    (31,),
    (7,),
    (0,),
    (1, 4, 64, 64),
]


@pytest.mark.parametrize("seed", [0, 1, 123456, 2**32 - 1, 2**32, 2**32 + 5, 2**63 - 1, 2**64 - 1, -1, -7])
def test_a_sequence_of_draws_equals_torch(seed: int) -> None:
    generator = torch.Generator("cpu").manual_seed(seed)
    noise = TorchNoise(seed)
    for shape in SHAPES * 2:
        drawn = noise.randn(shape)
        assert drawn.dtype == np.float32
        expected = torch.randn(shape, generator=generator)
        torch.testing.assert_close(torch.from_numpy(drawn), expected, rtol=1e-6, atol=1e-6)


def test_the_kept_second_value_survives_a_large_draw() -> None:
    # torch keeps every second value of a small draw; a block draw between must not touch it.
    generator = torch.Generator("cpu").manual_seed(5)
    noise = TorchNoise(5)
    for size in (1, 64, 1, 1, 33, 1):
        expected = torch.randn(size, generator=generator).numpy()
        np.testing.assert_allclose(noise.randn((size,)), expected, rtol=1e-6, atol=1e-6)


def test_extreme_uniforms_stay_close() -> None:
    generator = torch.Generator("cpu").manual_seed(3)
    drawn = TorchNoise(3).randn((1_000_000,))
    expected = torch.randn(1_000_000, generator=generator).numpy()
    assert np.abs(expected).max() > 4.5
    np.testing.assert_allclose(drawn, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("seed", [2**64, -(2**63) - 1])
def test_refuses_a_seed_that_torch_refuses(seed: int) -> None:
    with pytest.raises((RuntimeError, ValueError, OverflowError)):
        torch.Generator("cpu").manual_seed(seed)
    with pytest.raises(UsageError, match="expected an integer from"):
        TorchNoise(seed)
