"""The correction of a prediction is checked, and survives the recipe's file."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from accuquant.errors import RecipeError
from accuquant.groups import StepGroups
from accuquant.networks.signature import Signature, TensorSpec
from accuquant.prediction_correction import PredictionCorrection
from accuquant.recipe import Recipe

STEPS = StepGroups((1000.0, 500.0, 0.0))


def correction(**changes: Any) -> PredictionCorrection:
    fields: dict[str, Any] = {
        "steps": STEPS,
        "factor": np.array([[0.9, 0.8], [1.0, 0.7]], np.float32),
        "bias": np.array([[0.1, 0.0], [-0.2, 0.3]], np.float32),
    }
    return PredictionCorrection(**(fields | changes))


@pytest.fixture
def recipe() -> Recipe:
    image = TensorSpec("sample", ("batch", 2, "height", "width"))
    signature = Signature(
        "UNet2DModel", image, TensorSpec("timestep", ("steps",), "int64"), (),
        TensorSpec("out_sample", image.shape), {"batch": 1, "steps": 1, "height": 8, "width": 8},
    )  # fmt: skip
    return Recipe(STEPS, {}, signature, {}, "0" * 64, correction=correction())


def test_the_file_keeps_it(recipe: Recipe, tmp_path: Path) -> None:
    recipe.save(tmp_path / "r.safetensors")
    loaded = Recipe.load(tmp_path / "r.safetensors").correction
    assert loaded is not None
    assert loaded.steps == STEPS
    np.testing.assert_array_equal(loaded.factor, correction().factor)
    np.testing.assert_array_equal(loaded.bias, correction().bias)


def test_a_reader_that_knows_no_corrections_refuses_the_file(recipe: Recipe, tmp_path: Path) -> None:
    for held, version in ((recipe, 2), (replace(recipe, correction=None), 1)):
        held.save(tmp_path / "r.safetensors")
        with safe_open(tmp_path / "r.safetensors", framework="numpy") as file:
            metadata = json.loads(file.metadata()["accuquant"])
        assert metadata["format_version"] == version
        assert ("correction_edges" in metadata) == (version == 2)


@pytest.mark.parametrize("edit", [{"format_version": 1}, {"correction_edges": None}])
def test_a_version_that_does_not_fit_is_refused(recipe: Recipe, tmp_path: Path, edit: dict[str, Any]) -> None:
    path = tmp_path / "r.safetensors"
    recipe.save(path)
    with safe_open(path, framework="numpy") as file:
        metadata = json.loads(file.metadata()["accuquant"])
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    metadata.update(edit)
    metadata = {key: value for key, value in metadata.items() if value is not None}
    save_file(tensors, path, metadata={"accuquant": json.dumps(metadata)})
    with pytest.raises(RecipeError, match=r"got format version \d, expected version \d"):
        Recipe.load(path)


def test_a_missing_tensor_is_named(recipe: Recipe, tmp_path: Path) -> None:
    path = tmp_path / "r.safetensors"
    recipe.save(path)
    with safe_open(path, framework="numpy") as file:
        metadata = file.metadata()
    save_file({"prediction_factor": correction().factor}, path, metadata=metadata)
    with pytest.raises(RecipeError, match=r"no tensor 'prediction_bias' in the recipe"):
        Recipe.load(path)


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"factor": np.ones((3, 2), np.float32)}, r"a factor of type float32 and shape \(3, 2\)"),
        ({"bias": np.ones((2, 1), np.float32)}, r"a bias of type float32 and shape \(2, 1\)"),
        ({"bias": np.zeros((2, 2))}, r"a bias of type float64"),
        ({"bias": np.full((2, 2), np.nan, np.float32)}, r"a bias that is not finite"),
        ({"factor": np.zeros((2, 2), np.float32)}, r"a factor of 0, expected factors above 0"),
    ],
)
def test_what_cannot_be_a_correction_is_refused(changes: dict[str, Any], fault: str) -> None:
    with pytest.raises(RecipeError, match=fault):
        correction(**changes)


def test_channels_are_behind_the_batch_or_last_in_packed_patches() -> None:
    factor, bias = correction().along(4)
    assert factor.shape == bias.shape == (2, 2, 1, 1)
    assert correction().along(3)[0].shape == (2, 1, 2)
