"""What AccuQuant reads and replaces of diffusers is still where it was."""

from __future__ import annotations

import inspect
import sys
from pathlib import Path
from typing import Any

import pytest

from accuquant import doctor
from accuquant.errors import MissingDependencyError
from accuquant.pipelines import diffusers_internals
from accuquant.pipelines.diffusers_internals import (
    RELIED_ON,
    ReliedOn,
    check_version,
    copy_without,
    every_size,
    first_step,
    installed,
    moved,
    remembered,
    replaced,
    supported_range,
)
from accuquant.pipelines.families import FAMILIES

ROOT = Path(__file__).parents[2]


def test_nothing_has_moved_in_the_installed_diffusers() -> None:
    assert moved() == []


def test_what_has_moved_is_named_in_a_sentence() -> None:
    gone = (
        ReliedOn(
            "diffusers:StableDiffusionImg2ImgPipeline.__call__", "_count", "tells where it starts", True
        ),
        ReliedOn("diffusers:NoSuchPipeline", "prepare_latents", "prepares"),
        ReliedOn("diffusers.no_such_module", "anything", "does it"),
    )
    sentences = moved((*gone, RELIED_ON[0]))
    assert len(sentences) == 3
    assert sentences[0].endswith(
        ": _count is gone from diffusers:StableDiffusionImg2ImgPipeline.__call__; it tells where it starts."
    )


def test_every_family_with_a_strength_is_watched() -> None:
    import diffusers

    watched = {item.owner for item in RELIED_ON if item.name == "_num_timesteps"}
    for name in FAMILIES:
        if "strength" in inspect.signature(getattr(diffusers, name).__call__).parameters:
            assert f"diffusers:{name}.__call__" in watched


def test_private_names_stand_in_this_module_alone() -> None:
    names = ("_num_timesteps", "num_upsamplers", "_lora_loadable_modules", "recurse_remove_peft_layers")
    files = [path for top in ("accuquant", "export", "runtime") for path in (ROOT / top).rglob("*.py")]
    users = {path.name for path in files if any(name in path.read_text(encoding="utf-8") for name in names)}
    assert users == {"diffusers_internals.py", "fuse_lora.py"}  # the latter through lora_tools
    fuse = (ROOT / "accuquant/pipelines/fuse_lora.py").read_text(encoding="utf-8")
    assert "lora_tools().recurse_remove_peft_layers" in fuse


def test_the_range_is_that_of_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    assert f'"diffusers{supported_range()}"' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert diffusers_internals.OLDEST <= installed() < diffusers_internals.BEFORE


@pytest.mark.parametrize("release", ["0.35.2", "0.37.1", "0.9.0"])
def test_a_diffusers_that_runs_code_of_a_folder_is_refused(
    monkeypatch: pytest.MonkeyPatch, release: str
) -> None:
    monkeypatch.setattr(diffusers_internals, "version", lambda _name: release)
    with pytest.raises(MissingDependencyError, match=rf"got release {release}, which runs Python files"):
        check_version()


def test_a_newer_diffusers_is_let_through_and_doctor_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (diffusers_internals, doctor):
        monkeypatch.setattr(module, "version", lambda _name: "0.43.0.dev0")
    check_version()
    (finding,) = doctor._diffusers()
    assert (finding.status, finding.subject) == ("warning", "diffusers' release")
    assert "what it relies on is there" in finding.detail
    monkeypatch.setattr(doctor, "moved", lambda: ["diffusers 0.43: step is gone."])
    (finding,) = doctor._diffusers()
    assert "step is gone" in finding.detail
    assert f"diffusers{supported_range()}" in finding.remedy


def test_doctor_warns_of_an_old_diffusers_and_says_nothing_of_a_known_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert doctor._diffusers() == []
    for module in (diffusers_internals, doctor):
        monkeypatch.setattr(module, "version", lambda _name: "0.37.1")
    (finding,) = doctor._diffusers()
    assert "runs Python files" in finding.detail
    monkeypatch.setitem(sys.modules, "diffusers", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    assert doctor._diffusers() == []


class Counter:
    def __init__(self) -> None:
        self.total = 0

    def add(self, number: int, *, twice: bool = False) -> int:
        self.total += number * (1 + twice)
        return self.total


def test_a_method_is_replaced_for_one_object_and_one_block() -> None:
    counter, other = Counter(), Counter()

    def doubled(add: Any, number: int, **kwargs: Any) -> int:
        return int(add(2 * number, **kwargs))

    with replaced(counter, "add", doubled):
        assert list(inspect.signature(counter.add).parameters) == ["number", "twice"]
        assert (counter.add(1), counter.add(1, twice=True), other.add(1)) == (2, 6, 1)
        copied = copy_without(counter, "add")
        assert copied.add(1) == 7
    assert counter.add(1) == 7


def test_results_are_remembered_where_there_is_such_a_method() -> None:
    counter = Counter()
    with remembered(counter, "add") as results, remembered(counter, "subtract") as none:
        counter.add(3)
        counter.add(4)
    assert (results, none) == ([3, 7], [])
    assert "add" not in vars(counter)


def test_the_first_step_is_0_in_a_pipeline_without_a_strength() -> None:
    pipe = Counter()
    assert first_step(pipe, range(10)) == 0
    vars(pipe)["_num_timesteps"] = 8
    assert first_step(pipe, range(10)) == 2


def test_every_size_leaves_the_network_as_it_was(make_text_unet: Any) -> None:
    import torch

    unet = make_text_unet(
        block_out_channels=(8, 8),
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        mid_block_type=None,
    )
    sample, text = torch.randn(1, 4, 8, 6), torch.zeros(1, 3, 16)
    with torch.no_grad():
        before = unet(sample, 3, text).sample
        with every_size(unet):
            forwarded = unet(sample, 3, text).sample
    assert torch.equal(before, forwarded)
    assert unet.num_upsamplers == 1
