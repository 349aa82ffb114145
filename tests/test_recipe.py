"""The recipe file: what is saved is loaded, and what is damaged is refused."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import math
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import save_file
from safetensors.torch import save_file as save_torch_file

from accuquant.errors import RecipeError
from accuquant.groups import StepGroups
from accuquant.networks.signature import Signature, TensorSpec
from accuquant.qparams import LayerQParams, fingerprint
from accuquant.recipe import GroupResult, Recipe

RNG = np.random.default_rng(0)
WEIGHTS = {
    "down.conv": RNG.normal(size=(4, 3, 3, 3)).astype(np.float32),
    "up.conv": RNG.normal(size=(3, 5, 2, 2)).astype(np.float32),
    "mid.to_q": RNG.normal(size=(6, 2)).astype(np.float32),
}


def layer(name: str, kind: str, axis: int, **changes: Any) -> LayerQParams:
    weight = WEIGHTS[name]
    fields: dict[str, Any] = {
        "weight_scale": np.linspace(0.1, 0.2, weight.shape[axis], dtype=np.float32),
        "activation_scale": np.array([0.3, 1e-7], np.float32),
    }
    return LayerQParams(name, kind, weight.shape, fingerprint(weight), **(fields | changes))


@pytest.fixture
def recipe() -> Recipe:
    levels = RNG.integers(-8, 8, (3, 5, 2, 2)).astype(np.int8)
    layers = (
        layer("down.conv", "conv2d", 0, bias_correction=np.array([0.1, -0.2, 0, 1e-9], np.float32)),
        layer("up.conv", "conv_transpose2d", 1, weight_bits=4, weight_levels=levels),
        layer("mid.to_q", "linear", 0, activation_bits=6, zero_point=-32),
    )
    image = ("batch", 3, "height", "width")
    return Recipe(
        groups=StepGroups((1000, 450.5, 0)),
        layers={item.name: item for item in layers},
        signature=Signature(
            "UNet2DModel",
            TensorSpec("sample", image),
            TensorSpec("timestep", ("steps",), "int64"),
            (TensorSpec("class_labels", ("batch",), "int64"),),
            TensorSpec("out_sample", image),
            {"batch": 1, "steps": 1, "height": 8, "width": 8},
        ),
        scheduler={"_class_name": "DDIMScheduler", "beta_start": 0.0001, "trained_betas": None},
        model_hash="ab" * 32,
        calibration={"settings": {"include": ["mid.*"]}, "task": {}, "source": "z\u00fcrich"},
        results=(GroupResult(0.5, 0.25), GroupResult(math.nan, 1.0, "rolled_back", "the loss became nan")),
    )


@pytest.fixture
def saved(recipe: Recipe, tmp_path: Path) -> Path:
    path = tmp_path / "recipe.safetensors"
    recipe.save(path)
    return path


def assert_same(left: Recipe, right: Recipe) -> None:
    assert list(left.layers) == list(right.layers)
    for one, other in zip(left.layers.values(), right.layers.values(), strict=True):
        for field in vars(one):
            a, b = getattr(one, field), getattr(other, field)
            if isinstance(a, np.ndarray):
                assert a.dtype == b.dtype
                assert np.array_equal(a, b)
            else:
                assert type(a) is type(b)
                assert a == b
    for field in ("groups", "signature", "scheduler", "model_hash", "calibration"):
        assert getattr(left, field) == getattr(right, field)
    assert repr(left.results) == repr(right.results)  # nan != nan


def rewrite(path: Path, edit: Callable[[dict[str, Any], dict[str, Any]], None]) -> None:
    """Save the recipe again with edited tensors and metadata."""
    with safe_open(path, framework="numpy") as file:
        metadata = json.loads(file.metadata()["accuquant"])
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    edit(tensors, metadata)
    save_file(tensors, path, metadata={"accuquant": json.dumps(metadata)})


def test_save_load_gives_the_same(recipe: Recipe, saved: Path) -> None:
    assert_same(Recipe.load(saved), recipe)


def test_the_same_recipe_has_the_same_bytes(recipe: Recipe, saved: Path, tmp_path: Path) -> None:
    recipe.save(tmp_path / "again.safetensors")
    Recipe.load(saved).save(tmp_path / "reloaded.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == saved.read_bytes()
    assert (tmp_path / "reloaded.safetensors").read_bytes() == saved.read_bytes()


def test_the_sha256_is_that_of_the_file(recipe: Recipe, saved: Path) -> None:
    assert recipe.sha256() == hashlib.sha256(saved.read_bytes()).hexdigest()


def test_layers_keep_their_order(recipe: Recipe, saved: Path) -> None:
    assert list(Recipe.load(saved).layers) == ["down.conv", "up.conv", "mid.to_q"]


def test_the_file_is_safetensors_with_json_and_no_pickle(saved: Path) -> None:
    data = saved.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    assert json.loads(header["__metadata__"]["accuquant"])["format_version"] == 1
    tensors = {key for key in header if key != "__metadata__"}
    assert tensors == {
        *(f"{name}.{kind}" for name in WEIGHTS for kind in ("weight_scale", "activation_scale")),
        "up.conv.weight_levels",
        "down.conv.bias_correction",
    }
    assert len(data) == 8 + length + max(header[key]["data_offsets"][1] for key in tensors)


def test_loading_never_unpickles(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("unpickled")

    monkeypatch.setattr("pickle.load", refuse)
    monkeypatch.setattr("pickle.loads", refuse)
    monkeypatch.setattr("torch.load", refuse)
    assert len(Recipe.load(saved).layers) == 3


def test_refuses_a_pickle(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(1)}, tmp_path / "recipe.pt")
    with pytest.raises(RecipeError, match=r"an unreadable file .* expected a safetensors file"):
        Recipe.load(tmp_path / "recipe.pt")


def test_a_missing_file_says_so(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"no such file.*calibrate first"):
        Recipe.load(tmp_path / "none.safetensors")


def test_a_folder_is_not_a_recipe(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"a .safetensors file from"):
        Recipe.load(tmp_path)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.9, 0.999])
def test_refuses_a_truncated_file(saved: Path, share: float) -> None:
    data = saved.read_bytes()
    saved.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(RecipeError, match=r"an unreadable file"):
        Recipe.load(saved)


def test_refuses_random_bytes(tmp_path: Path) -> None:
    (tmp_path / "r.safetensors").write_bytes(np.random.default_rng(0).bytes(4096))
    with pytest.raises(RecipeError, match=r"an unreadable file"):
        Recipe.load(tmp_path / "r.safetensors")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_refuses_a_plain_checkpoint(tmp_path: Path, dtype: torch.dtype) -> None:
    save_torch_file({"weight": torch.zeros(2, dtype=dtype)}, tmp_path / "unet.safetensors", {"format": "pt"})
    with pytest.raises(RecipeError, match=r"safetensors without AccuQuant metadata"):
        Recipe.load(tmp_path / "unet.safetensors")


@pytest.mark.parametrize("metadata", ["[]", "3", "null", "{not json"])
def test_refuses_metadata_that_is_not_an_object(tmp_path: Path, metadata: str) -> None:
    save_file({"a": np.zeros(1)}, tmp_path / "r.safetensors", metadata={"accuquant": metadata})
    with pytest.raises(RecipeError, match=r"without AccuQuant metadata|an unreadable file"):
        Recipe.load(tmp_path / "r.safetensors")


@pytest.mark.parametrize("version", [0, 2, "1", None])
def test_refuses_another_format_version(saved: Path, version: object) -> None:
    rewrite(saved, lambda _, metadata: metadata.update(format_version=version))
    with pytest.raises(RecipeError, match=r"got format version .* expected version 1. Upgrade AccuQuant"):
        Recipe.load(saved)


@pytest.mark.parametrize(
    "key",
    [
        "down.conv.weight_scale",
        "mid.to_q.activation_scale",
        "up.conv.weight_levels",
        "down.conv.bias_correction",
    ],
)
def test_refuses_a_missing_tensor(saved: Path, key: str) -> None:
    rewrite(saved, lambda tensors, _: tensors.pop(key))
    with pytest.raises(RecipeError, match=rf"no tensor '{key}' in the recipe"):
        Recipe.load(saved)


@pytest.mark.parametrize("value", [0.0, -0.5, math.nan, math.inf])
@pytest.mark.parametrize("key", ["down.conv.weight_scale", "mid.to_q.activation_scale"])
def test_refuses_a_scale_that_is_not_positive_and_finite(saved: Path, key: str, value: float) -> None:
    def edit(tensors: dict[str, Any], _: object) -> None:
        tensors[key] = tensors[key].copy()
        tensors[key][-1] = value

    rewrite(saved, edit)
    with pytest.raises(RecipeError, match=r"scale\[\d\] = .* expected a finite value above 0"):
        Recipe.load(saved)


@pytest.mark.parametrize(
    "key",
    [
        "down.conv.weight_scale",
        "mid.to_q.activation_scale",
        "up.conv.weight_levels",
        "down.conv.bias_correction",
    ],
)
def test_refuses_a_tensor_of_another_shape(saved: Path, key: str) -> None:
    rewrite(saved, lambda tensors, _: tensors.update({key: tensors[key][:-1]}))
    with pytest.raises(RecipeError, match=r"shape \(.*expected .*(calibrate|checkpoint)"):
        Recipe.load(saved)


@pytest.mark.parametrize("dtype", [np.float64, np.float16, np.int32])
def test_refuses_a_scale_of_another_type(saved: Path, dtype: Any) -> None:
    key = "down.conv.weight_scale"
    rewrite(saved, lambda tensors, _: tensors.update({key: np.ones(4, dtype)}))
    with pytest.raises(RecipeError, match=rf"'{key}' of type {np.dtype(dtype)}, expected float32"):
        Recipe.load(saved)


def test_refuses_another_number_of_groups(saved: Path) -> None:
    rewrite(saved, lambda _, metadata: metadata.update(group_edges=[1000, 600, 300, 0]))
    with pytest.raises(RecipeError, match=r"one scale for each step group"):
        Recipe.load(saved)


def replaced(path: str, value: object) -> Callable[[dict[str, Any], dict[str, Any]], None]:
    """Return an edit that sets `path` (keys and indices joined by '/') of the metadata."""

    def edit(_: object, metadata: dict[str, Any]) -> None:
        *parents, last = [int(part) if part.isdigit() else part for part in path.split("/")]
        node: Any = metadata
        for part in parents:
            node = node[part]
        node[last] = value

    return edit


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("group_edges", [0, 1000]),
        ("group_edges", [1000, math.nan, 0]),
        ("group_edges", "fast"),
        ("group_edges", None),
        ("layers", None),
        ("layers", {"a": 1}),
        ("layers/0/weight_bits", 9),
        ("layers/0/weight_bits", "eight"),
        ("layers/0/weight_bits", math.inf),
        ("layers/0/activation_bits", 1),
        ("layers/0/kind", "conv3d"),
        ("layers/0/weight_shape", []),
        ("layers/0/weight_shape", 4),
        ("layers/2/zero_point", 300),
        ("signature", None),
        ("signature/inputs", []),
        ("signature/sizes", [1, 2]),
        ("scheduler", 3),
        ("calibration", None),
        ("calibration/settings", [1]),
        ("calibration/settings/steps", "50"),
        ("calibration/settings/steps", 0.5),
        ("calibration/settings/steps", 10**400),
        ("calibration/settings/steps", {}),
        ("calibration/settings/seed", math.inf),
        ("calibration/loras", {"name": "a"}),
        ("calibration/loras", [3]),
        ("calibration/loras", [{"name": "a", "scale": "much", "sha256": "0" * 64}]),
        ("calibration/loras", [{"name": "a\x1b[2J", "scale": 1.0, "sha256": "0" * 64}]),
        ("calibration/task", "sample"),
        ("calibration/task/guidance_scale", math.nan),
        ("calibration/task/image_size", [64]),
        ("calibration/guidance", {"scale": []}),
        ("calibration/sensitivity", {"a": "b"}),
        ("calibration/int8_mac_share", 2),
        ("calibration/method", 5),
        ("model_hash", 3),
        ("layers/0/name", ["a"]),
        ("layers/0/weight_levels", "yes"),
        ("layers/0/weight_shape", [10**400, 1]),
        ("signature/sizes/height", 10**12),
        ("signature/inputs/0/dtype", "object"),
        ("results", [{"loss": 1}]),
        ("results", 5),
    ],
)
def test_every_damaged_field_is_a_recipe_error(saved: Path, path: str, value: object) -> None:
    rewrite(saved, replaced(path, value))
    with pytest.raises(RecipeError, match=r"[Cc]alibrate|is damaged"):
        Recipe.load(saved)


@pytest.mark.parametrize(
    "key", ["group_edges", "layers", "signature", "scheduler", "model_hash", "calibration", "results"]
)
def test_every_missing_field_is_a_recipe_error(saved: Path, key: str) -> None:
    rewrite(saved, lambda _, metadata: metadata.pop(key))
    with pytest.raises(RecipeError, match=rf"got no field '{key}'"):
        Recipe.load(saved)


def test_a_flipped_byte_in_the_header_never_escapes_as_another_error(saved: Path) -> None:
    data = saved.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    rng = np.random.default_rng(3)
    for position in rng.integers(0, 8 + length, 150):
        damaged = bytearray(data)
        damaged[position] ^= int(rng.integers(1, 256))
        saved.write_bytes(damaged)
        with contextlib.suppress(RecipeError):
            assert Recipe.load(saved).layers.keys()


def test_accepts_the_weights_that_were_calibrated(recipe: Recipe) -> None:
    recipe.check_weights(WEIGHTS)
    recipe.check_weights({name: weight.astype(np.float16) for name, weight in WEIGHTS.items()})
    recipe.check_weights(WEIGHTS | {"conv_in": np.zeros((1, 1, 1, 1), np.float32)})


def test_refuses_another_checkpoint(recipe: Recipe) -> None:
    other = WEIGHTS | {"mid.to_q": WEIGHTS["mid.to_q"] + np.float32(0.01)}
    with pytest.raises(RecipeError, match=r"layer 'mid.to_q'.*calibrated from another checkpoint"):
        recipe.check_weights(other)


def test_refuses_another_model(recipe: Recipe) -> None:
    with pytest.raises(RecipeError, match=r"no such layer in the model.*calibrated from another model"):
        recipe.check_weights({"down.conv": WEIGHTS["down.conv"]})
    with pytest.raises(RecipeError, match=r"no such layer"):
        recipe.check_weights({})


def test_refuses_a_weight_of_another_shape(recipe: Recipe) -> None:
    with pytest.raises(
        RecipeError, match=r"a weight \[2, 6\] with other values, expected the weight \[6, 2\]"
    ):
        recipe.check_weights(WEIGHTS | {"mid.to_q": WEIGHTS["mid.to_q"].T})


def test_a_failed_save_keeps_the_old_recipe(
    recipe: Recipe, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = saved.read_bytes()

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match=r"No space left"):
        recipe.save(saved)
    assert saved.read_bytes() == before
    assert [path.name for path in saved.parent.iterdir()] == [saved.name]


def test_fields_and_tensors_of_a_later_release_are_ignored(recipe: Recipe, saved: Path) -> None:
    def edit(tensors: dict[str, Any], metadata: dict[str, Any]) -> None:
        tensors["down.conv.smoothing"] = np.ones(3, np.float64)
        metadata["of a later release"] = [1]
        metadata["layers"][0]["smoothing"] = True
        metadata["signature"]["layout"] = "NCHW"
        metadata["results"][0]["seconds"] = 3.5

    rewrite(saved, edit)
    assert_same(Recipe.load(saved), recipe)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.bfloat16])
def test_refuses_a_tensor_that_numpy_cannot_hold(saved: Path, dtype: torch.dtype) -> None:
    with safe_open(saved, framework="pt") as file:
        metadata = file.metadata()
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    tensors["down.conv.weight_scale"] = tensors["down.conv.weight_scale"].to(dtype)
    save_torch_file(tensors, saved, metadata=metadata)
    with pytest.raises(RecipeError, match=r"tensor 'down.conv.weight_scale' of type (F8_E|BF16)"):
        Recipe.load(saved)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000])
def test_refuses_metadata_that_is_nested_without_end(saved: Path, text: str) -> None:
    save_file({"a": np.zeros(1, np.float32)}, saved, metadata={"accuquant": text})
    with pytest.raises(RecipeError, match="nested more than 64 deep"):
        Recipe.load(saved)


def test_the_facts_of_a_calibration_are_typed(recipe: Recipe) -> None:
    assert recipe.facts.settings.steps is None
    made = dataclasses.replace(recipe, calibration={"settings": {"steps": 20, "rounding": "gptq"}})
    assert made.facts.settings.steps == 20
    with pytest.raises(RecipeError, match="loras"):
        _ = dataclasses.replace(recipe, calibration={"loras": 3}).facts


def fp8_recipe(recipe: Recipe) -> Recipe:
    levels = RNG.integers(-127, 127, (3, 5, 2, 2)).astype(np.int8)
    layers = (
        layer("down.conv", "conv2d", 0, format="fp8"),
        layer(
            "up.conv", "conv_transpose2d", 1, format="fp8", weight_levels=np.where(levels == -1, 0, levels)
        ),
    )
    return dataclasses.replace(recipe, layers={item.name: item for item in layers})


def test_an_fp8_recipe_has_a_version_of_its_own(recipe: Recipe, tmp_path: Path) -> None:
    made, path = fp8_recipe(recipe), tmp_path / "fp8.safetensors"
    made.save(path)
    loaded = Recipe.load(path)
    assert_same(loaded, made)
    assert loaded.format == "fp8"
    with safe_open(path, framework="numpy") as file:
        metadata = json.loads(file.metadata()["accuquant"])
    assert (metadata["format_version"], metadata["format"]) == (3, "fp8")


def test_an_int8_recipe_is_what_it_was_before_there_was_another_format(saved: Path) -> None:
    with safe_open(saved, framework="numpy") as file:
        metadata = json.loads(file.metadata()["accuquant"])
    assert metadata["format_version"] == 1
    assert "format" not in metadata
    assert all("format" not in entry for entry in metadata["layers"])
    assert Recipe.load(saved).format == "int8"


def test_refuses_an_fp8_recipe_of_another_version(recipe: Recipe, tmp_path: Path) -> None:
    path = tmp_path / "fp8.safetensors"
    fp8_recipe(recipe).save(path)
    rewrite(path, lambda _, metadata: metadata.update(format_version=1))
    with pytest.raises(RecipeError, match=r"format version 1, expected version 3"):
        Recipe.load(path)
    rewrite(path, lambda _, metadata: metadata.update(format_version=3, format="fp4"))
    with pytest.raises(RecipeError, match=r"Upgrade AccuQuant"):
        Recipe.load(path)


def test_refuses_layers_of_two_formats(recipe: Recipe) -> None:
    mixed = recipe.layers | {"down.conv": layer("down.conv", "conv2d", 0, format="fp8")}
    with pytest.raises(RecipeError, match="layers of the formats fp8 and int8, expected one format"):
        dataclasses.replace(recipe, layers=mixed)


@pytest.mark.parametrize("changes", [{"zero_point": 3}, {"weight_bits": 4}, {"activation_bits": 6}])
def test_fp8_has_neither_zero_points_nor_other_bits(changes: dict[str, int]) -> None:
    with pytest.raises(RecipeError, match=r"expected 8 bits and zero_point 0"):
        layer("down.conv", "conv2d", 0, format="fp8", **changes)


def test_fp8_levels_are_numbers() -> None:
    levels = np.zeros((4, 3, 3, 3), np.int8)
    levels[1, 2, 0, 0] = 0x7F
    with pytest.raises(RecipeError, match="NaN in E4M3"):
        layer("down.conv", "conv2d", 0, format="fp8", weight_levels=levels)
    with pytest.raises(RecipeError, match="format 'fp4', expected int8 or fp8"):
        layer("down.conv", "conv2d", 0, format="fp4")
