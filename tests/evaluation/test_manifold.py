from __future__ import annotations

import numpy as np
import pytest

from accuquant.errors import UsageError
from accuquant.evaluation import manifold


@pytest.mark.parametrize("rows", [3, 256])
def test_precision_is_that_of_brute_force(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifold, "_ROWS", rows)
    monkeypatch.setattr(manifold, "_COLUMNS", rows + 1)
    rng = np.random.default_rng(0)
    real = (100 + rng.normal(size=(40, 5))).astype(np.float32)
    own = (100.7 + rng.normal(size=(25, 5))).astype(np.float32)
    distances = np.linalg.norm(real[:, None].astype(float) - real[None], axis=2)
    reach = np.sort(distances, axis=1)[:, 3]
    np.testing.assert_allclose(manifold.radii(real).numpy(), reach, rtol=1e-6)
    hits = (np.linalg.norm(own[:, None].astype(float) - real[None], axis=2) <= reach).any(1)
    assert manifold.inside(own, real, manifold.radii(real)).tolist() == hits.astype(float).tolist()
    assert 0 < hits.mean() < 1


def test_too_few_images_for_neighbours_are_refused() -> None:
    with pytest.raises(UsageError, match="precision: got 3 images, expected more than 3"):
        manifold.radii(np.zeros((3, 2), np.float32))
