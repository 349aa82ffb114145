"""Mutated recipes, manifests, engine manifests, configurations and reports: refused in one line, or taken."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fuzz.mutators import Mutator, mutate_json_text, mutate_safetensors

from accuquant._util.facts import read_facts
from accuquant.engine_manifest import EngineManifest
from accuquant.errors import AccuQuantError
from accuquant.hub.model_card import model_card, read_report
from accuquant.hub.published import published_files, published_recipe
from accuquant.manifest import RECIPE_NAME, Manifest
from accuquant.networks.architectures import read_signature
from accuquant.pipelines.task import Task
from accuquant.recipe import Recipe
from accuquant.runtime.class_labels import labels_of_images
from accuquant.runtime.engine_files import check_origin
from accuquant.runtime.engine_model import EngineModel
from accuquant.runtime.sample import runs_without_torch, sampler_config, to_images
from accuquant.runtime.samplers import Schedule, sample_ddim
from accuquant.verification.report.facts import group_figures, layer_sensitivities

#: Of the five kinds together: 300 in the suite, 10,000 in the slow run.
FEW, MANY = 60, 2000


@dataclass(frozen=True)
class Kind:
    """A file of an export, how it is damaged, and everything that reads it."""

    name: str
    mutate: Mutator
    use: Callable[[Path], Any]


def use_recipe(folder: Path) -> None:
    recipe = Recipe.load(folder / RECIPE_NAME)
    Task(prompts=("a",), images=("a.png",), masks=("m.png",)).with_defaults(recipe.facts.task)
    group_figures(recipe)
    layer_sensitivities(recipe)
    published_recipe(recipe).to_bytes()


def use_manifest(folder: Path) -> None:
    manifest = Manifest.load(folder)
    EngineModel.from_folder(folder, "openvino").close()
    runs_without_torch(folder, manifest)
    labels_of_images(folder, manifest, 2, None)
    published_files(folder, manifest)
    model_card(manifest, None)
    manifest.signature.sample.resolve(manifest.signature.sizes | {"batch": 1})
    assert manifest.steps(4) == 4


def use_engine(folder: Path) -> None:
    engine = folder / "model.engine"
    EngineManifest.load(engine).check_engine(engine)
    check_origin(engine, "unet/model.onnx", Manifest.load(folder))


def use_scheduler(folder: Path) -> None:
    manifest = Manifest.load(folder)
    if not runs_without_torch(folder, manifest):
        return
    schedule = Schedule.create(sampler_config(folder, manifest), 3)
    x = np.ones((1, 3, 4, 4), np.float32)
    with np.errstate(all="ignore"):
        to_images(sample_ddim(lambda latents, _: latents, x, schedule, lambda: x))


def use_network(folder: Path) -> None:
    manifest = Manifest.load(folder)
    labels_of_images(folder, manifest, 2, None)
    read_signature("UNet2DModel", read_config(folder))


def read_config(folder: Path) -> Any:
    try:
        return read_facts(folder / "unet" / "config.json", dict[str, Any])
    except ValueError:  # what diffusers' own reader refuses
        return {"in_channels": 3, "out_channels": 3, "sample_size": 8}


def use_report(folder: Path) -> None:
    model_card(Manifest.load(folder), read_report(folder / "report.json"))


KINDS = {
    "recipe": Kind(RECIPE_NAME, mutate_safetensors, use_recipe),
    "manifest": Kind("accuquant.json", mutate_json_text, use_manifest),
    "engine manifest": Kind("model.engine.json", mutate_json_text, use_engine),
    "scheduler": Kind("scheduler/scheduler_config.json", mutate_json_text, use_scheduler),
    "network": Kind("unet/config.json", mutate_json_text, use_network),
    "report": Kind("report.json", mutate_json_text, use_report),
}


def outcome(kind: Kind, folder: Path, seed: int) -> str:
    """Damage the file, use it, put it back -> "taken" or "refused"; anything else is a failure."""
    path = folder / kind.name
    whole = path.read_bytes()
    path.write_bytes(kind.mutate(random.Random(seed), whole))
    refusal: AccuQuantError | None = None
    try:
        kind.use(folder)
    except AccuQuantError as fault:
        refusal = fault
    except BaseException as fault:
        raise AssertionError(f"seed {seed}: {type(fault).__name__}: {str(fault)[:300]}") from fault
    finally:
        path.write_bytes(whole)
    if refusal is None:
        return "taken"
    asks = refusal.remedy.startswith("Give --")  # a field that may be absent, whose value can be given
    assert refusal.exit_code == 1 or asks, f"seed {seed}: {refusal}"
    assert str(refusal).isprintable(), f"seed {seed}"
    assert len(str(refusal)) < 9000, f"seed {seed}"
    return "refused"


def outcomes(name: str, folder: Path, seeds: Sequence[int]) -> dict[str, int]:
    found = [outcome(KINDS[name], folder, seed) for seed in seeds]
    return {word: found.count(word) for word in ("refused", "taken")}


@pytest.mark.parametrize("name", KINDS)
def test_damaged_files_are_refused_in_one_line(name: str, folder: Path) -> None:
    KINDS[name].use(folder)  # whole, it is taken
    found = outcomes(name, folder, range(FEW))
    assert found["refused"] > FEW // 4  # the mutations do damage
    assert found["taken"] > 0  # and a field of a later release does not


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_ten_thousand_damaged_files_are_refused_in_one_line(name: str, folder: Path) -> None:
    outcomes(name, folder, range(FEW, FEW + MANY))
