"""Calibration from end to end: the same bytes every time, whatever interrupts it."""

from __future__ import annotations

import dataclasses
import functools
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, DEISMultistepScheduler
from torch import Tensor, nn

from accuquant._util.progress import Silent
from accuquant.calibration import CalibrationSettings, calibrate
from accuquant.denoising.process import DenoisingProcess, seeded_generators
from accuquant.errors import CalibrationError, UsageError
from accuquant.networks.network import call, float_weights, model_hash, signature_of
from accuquant.networks.signature import TensorSpec
from accuquant.networks.simulate import simulate
from accuquant.pipelines.source import Source
from accuquant.recipe import Recipe

#: Two step groups of two steps; min-max and symmetric, because searching takes most of the time.
QUICK = CalibrationSettings(
    steps=4,
    group_size=2,
    num_trajectories=6,
    batch_size=2,
    iterations=2,
    shared_iterations=2,
    probe=False,
    observer="minmax",
    affine=False,
    activation_bits=6,
    learning_rate=0.02,
    exclude=("mid_block*",),
)


class StopError(Exception):
    """Raised by a Progress to stop a calibration."""


class Recording(Silent):
    """Keeps what it is told; raises `fault` at the first line that starts with `stop_at`."""

    def __init__(self, stop_at: str = "-", fault: type[BaseException] = KeyboardInterrupt) -> None:
        self.stages: dict[str, list[int]] = {}
        self.lines: list[str] = []
        self.stop_at, self.fault = stop_at, fault

    def stage(self, name: str, total: int) -> None:
        self.stages[name] = [total, 0]

    def advance(self, units: int = 1) -> None:
        list(self.stages.values())[-1][1] += units

    def message(self, text: str) -> None:
        self.lines.append(text)
        if text.startswith(self.stop_at):
            raise self.fault


@pytest.fixture(scope="module")
def finished(tiny_source: Source, tmp_path_factory: pytest.TempPathFactory) -> tuple[Recipe, bytes]:
    """Return the recipe of QUICK, and its bytes."""
    output = tmp_path_factory.mktemp("finished") / "recipe.safetensors"
    recipe = calibrate(tiny_source, QUICK, output=output)
    assert os.listdir(output.parent) == ["recipe.safetensors"]
    return recipe, output.read_bytes()


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "recipe.safetensors"


def test_the_recipe_says_how_it_was_made(
    finished: tuple[Recipe, bytes], tiny_source: Source, output: Path
) -> None:
    recipe, data = finished
    output.write_bytes(data)
    loaded = Recipe.load(output)
    assert loaded.groups == recipe.groups
    assert loaded.groups.steps_of([750, 500, 250, 0]) == [[0, 1], [2, 3]]
    assert loaded.model_hash == model_hash(tiny_source.network)
    assert loaded.scheduler["_class_name" if "_class_name" in loaded.scheduler else "beta_schedule"]
    assert loaded.calibration["settings"] == QUICK.to_dict()
    assert loaded.calibration["pipeline_class"] == "DDIMPipeline"
    assert 0.1 < loaded.calibration["int8_mac_share"] < 1
    assert len(loaded.results) == 2
    assert {result.status for result in loaded.results} <= {"learned", "rolled_back"}
    loaded.check_weights(float_weights(tiny_source.network))


def test_every_run_layer_is_either_quantized_or_named_as_float(
    finished: tuple[Recipe, bytes], tiny_source: Source
) -> None:
    recipe, _ = finished
    left = set(recipe.calibration["float_layers"])
    assert {"conv_in", "conv_out", "time_embedding.linear_1", "mid_block.resnets.0.conv1"} <= left
    assert left.isdisjoint(recipe.layers)
    assert left | set(recipe.layers) == set(float_weights(tiny_source.network))


def test_the_same_seed_gives_the_same_bytes(
    finished: tuple[Recipe, bytes], tiny_source: Source, output: Path
) -> None:
    torch.manual_seed(1234)
    progress = Recording()
    calibrate(tiny_source, QUICK, output=output, progress=progress)
    assert output.read_bytes() == finished[1]
    assert [total for total, done in progress.stages.values() if total != done] in ([], [1])
    assert progress.stages["step group 1/2"] == [2, 2]
    assert progress.stages["weight scales and biases"] == [2, 2]
    told = ["weight scales and biases", "step group 1/2", "step group 2/2"]
    assert [line.split(":")[0] for line in progress.lines] == told


def test_layers_that_saw_little_are_told_and_the_recipe_counts_what_each_saw(
    finished: tuple[Recipe, bytes], tiny_source: Source, output: Path
) -> None:
    enough = finished[0].calibration["rounding"]
    assert enough.keys() == finished[0].layers.keys()
    assert all(fact["distinct"] >= 2 * fact["inputs"] for fact in enough.values())
    progress = Recording()
    settings = dataclasses.replace(QUICK, num_trajectories=1, steps=2, shared_iterations=0, iterations=0)
    recipe = calibrate(tiny_source, settings, output=output, progress=progress)
    facts = recipe.calibration["rounding"]
    assert all(recipe.layers[name].weight_levels is not None for name in facts)
    few = [name for name, fact in facts.items() if fact["distinct"] < 2 * fact["inputs"]]
    assert few
    assert any(line.startswith("Few distinct inputs") and few[0] in line for line in progress.lines)
    assert Recipe.load(output).calibration["rounding"] == facts


def test_layers_too_wide_for_memory_lie_in_files_meanwhile_and_give_the_same_recipe(
    finished: tuple[Recipe, bytes], tiny_source: Source, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("accuquant.calibration.input_moments.MEMORY", 0)
    recipe = calibrate(tiny_source, QUICK, output=output)
    assert os.listdir(output.parent) == ["recipe.safetensors"]
    for name, layer in recipe.layers.items():
        expected = finished[0].layers[name]
        levels = layer.weight_levels
        assert levels is not None
        assert layer.bias_correction is not None
        assert expected.bias_correction is not None
        assert (levels != expected.weight_levels).mean() < 0.01
        np.testing.assert_allclose(layer.bias_correction, expected.bias_correction, atol=0.02)


def test_inputs_of_a_batch_that_was_not_finished_are_not_taken(
    finished: tuple[Recipe, bytes], tiny_source: Source, output: Path, partial: Path
) -> None:
    (partial / "initial.safetensors").unlink()
    (partial / "inputs").mkdir()
    (partial / "inputs" / "000000.rows").write_bytes(b"left over")
    calibrate(tiny_source, QUICK, output=output)
    assert output.read_bytes() == finished[1]
    assert not partial.exists()


def test_another_seed_gives_another_recipe(
    finished: tuple[Recipe, bytes], tiny_source: Source, output: Path
) -> None:
    recipe = calibrate(tiny_source, dataclasses.replace(QUICK, seed=1), output=output)
    assert any(
        not np.array_equal(layer.activation_scale, recipe.layers[name].activation_scale)
        for name, layer in finished[0].layers.items()
    )


def test_the_source_is_left_as_it_was(
    tiny_source: Source, finished: tuple[Recipe, bytes], tiny_pipeline: Path
) -> None:
    from accuquant.pipelines.source import load_source

    fresh = load_source(tiny_pipeline)
    ours, theirs = tiny_source.network.state_dict(), fresh.network.state_dict()
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in tiny_source.network.modules())


@pytest.mark.parametrize("fault", [KeyboardInterrupt, RuntimeError])
def test_an_interrupted_run_resumes_to_the_same_bytes(
    finished: tuple[Recipe, bytes], tiny_source: Source, output: Path, fault: type[BaseException]
) -> None:
    with pytest.raises(fault):
        calibrate(tiny_source, QUICK, output=output, progress=Recording("step group 1", fault))
    assert not output.exists()
    partial = output.with_name("recipe.safetensors.partial")
    names = {str(path.relative_to(partial)) for path in partial.rglob("*") if path.is_file()}
    kept = {name: (partial / name).stat() for name in names}
    batches = {f"trajectories/{k:06d}.safetensors" for k in range(3)}
    assert names == {
        "settings.json", "initial.safetensors", "shared.safetensors", "group_000.json", *batches,
    }  # fmt: skip

    class Compare(Recording):
        """Checks, after the last group, that finished files were not written again."""

        def message(self, text: str) -> None:
            for name, before in kept.items():
                after = (partial / name).stat()
                assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns), name
            super().message(text)

    progress = Compare()
    calibrate(tiny_source, QUICK, output=output, progress=progress)
    assert list(progress.stages) == ["step group 1/2", "step group 2/2"]
    assert output.read_bytes() == finished[1]
    assert not partial.exists()


@pytest.fixture(scope="module")
def unfinished(tiny_source: Source, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the work folder of a run of QUICK that stopped after its first group."""
    output = tmp_path_factory.mktemp("unfinished") / "recipe.safetensors"
    with pytest.raises(StopError):
        calibrate(tiny_source, QUICK, output=output, progress=Recording("step group 1", StopError))
    return output.with_name("recipe.safetensors.partial")


@pytest.fixture
def partial(unfinished: Path, output: Path) -> Path:
    """Return a copy of that work folder beside `output`."""
    return Path(shutil.copytree(unfinished, output.with_name("recipe.safetensors.partial")))


@pytest.mark.parametrize(
    "name", ["trajectories/000001.safetensors", "initial.safetensors", "shared.safetensors", "group_000.json"]
)
def test_a_damaged_part_is_made_again(
    finished: tuple[Recipe, bytes], tiny_source: Source, output: Path, partial: Path, name: str
) -> None:
    data = (partial / name).read_bytes()
    (partial / name).write_bytes(data[:-20])
    calibrate(tiny_source, QUICK, output=output)
    assert output.read_bytes() == finished[1]


def test_a_run_that_was_killed_resumes_to_the_same_bytes(pointwise_source: Source, tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole.safetensors", tmp_path / "killed.safetensors"
    settings = dataclasses.replace(QUICK, exclude=())
    calibrate(pointwise_source, settings, output=whole)
    script = f"""
        import os, signal
        from pathlib import Path
        from pointwise import make_pointwise_source
        from accuquant.calibration import CalibrationSettings, calibrate
        from accuquant._util.progress import Silent

        class Killer(Silent):
            def message(self, text):
                if text.startswith("step group"):
                    os.kill(os.getpid(), signal.SIGKILL)

        settings = CalibrationSettings(**{vars(settings)!r})
        calibrate(make_pointwise_source(), settings, output=Path({str(killed)!r}), progress=Killer())
    """
    here = Path(__file__).parent
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(here.parent), str(here.parents[1])])}
    child = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], env=environment, capture_output=True, check=False
    )
    assert child.returncode == -signal.SIGKILL, child.stderr.decode()
    partial = killed.with_name("killed.safetensors.partial")
    assert (partial / "group_000.json").is_file()
    assert not (partial / "group_001.json").exists()
    assert not killed.exists()
    progress = Recording()
    calibrate(pointwise_source, settings, output=killed, progress=progress)
    assert list(progress.stages) == ["step group 1/2", "step group 2/2"]
    assert killed.read_bytes() == whole.read_bytes()


@pytest.mark.parametrize("changes", [{"iterations": 3}, {"seed": 5}, {"exclude": ()}, {"gradient": "exact"}])
def test_other_settings_do_not_resume(
    tiny_source: Source, output: Path, partial: Path, changes: dict[str, Any]
) -> None:
    with pytest.raises(CalibrationError, match=rf"other settings \({next(iter(changes))}: "):
        calibrate(tiny_source, dataclasses.replace(QUICK, **changes), output=output)
    assert (partial / "group_000.json").is_file()


def test_another_network_or_scheduler_does_not_resume(
    tiny_source: Source, output: Path, partial: Path, make_unet: Callable[..., nn.Module]
) -> None:
    with pytest.raises(CalibrationError, match=r"other settings \(model_hash: "):
        calibrate(dataclasses.replace(tiny_source, network=make_unet(seed=1)), QUICK, output=output)
    scheduler = DDIMScheduler(prediction_type="v_prediction")
    with pytest.raises(CalibrationError, match=r"other settings \(scheduler: "):
        calibrate(dataclasses.replace(tiny_source, scheduler=scheduler), QUICK, output=output)
    assert (partial / "group_000.json").is_file()


@pytest.fixture(scope="module")
def initial(tiny_source: Source, tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    """Return the recipe of QUICK before anything is learned for single groups."""
    output = tmp_path_factory.mktemp("initial") / "recipe.safetensors"
    return calibrate(tiny_source, dataclasses.replace(QUICK, iterations=0), output=output)


@pytest.mark.parametrize("rate", [0.02, 1.0])
def test_what_all_groups_share_is_learned_first_and_the_recipe_says_how_it_ended(
    tiny_source: Source, output: Path, rate: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two held-out images nothing is beyond chance: here a fall is believed as it is."""
    monkeypatch.setattr("accuquant.calibration.descent._CONFIDENCE", 0.0)
    nothing = dataclasses.replace(QUICK, iterations=0, shared_iterations=0, weight_bits=3, activation_bits=8)
    start = calibrate(tiny_source, nothing, output=output)
    assert "shared_learning" not in start.calibration
    settings = dataclasses.replace(nothing, shared_iterations=20, shared_learning_rate=rate)
    recipe = calibrate(tiny_source, settings, output=output)
    result = recipe.calibration["shared_learning"]
    assert result["status"] == ("learned" if rate < 1 else "rolled_back")
    assert (result["final_loss"] < result["initial_loss"]) == (result["status"] == "learned")
    for name, layer in recipe.layers.items():
        before = start.layers[name]
        same = np.array_equal(layer.weight_scale, before.weight_scale)
        assert same == (result["status"] == "rolled_back"), name
        weight = float_weights(tiny_source.network)[name]
        assert np.array_equal(layer.quantized_weight(weight), before.quantized_weight(weight))
    assert Recipe.load(output).calibration["shared_learning"] == result


def test_no_iterations_keep_the_initial_scales(finished: tuple[Recipe, bytes], initial: Recipe) -> None:
    assert {result.status for result in initial.results} == {"initial"}
    learned, _ = finished
    assert initial.layers.keys() == learned.layers.keys()
    for group, result in enumerate(learned.results):
        same = all(
            initial.layers[name].activation_scale[group] == layer.activation_scale[group]
            for name, layer in learned.layers.items()
        )
        assert same == (result.status != "learned")


def test_a_diverging_group_keeps_its_initial_scales_and_says_so(
    tiny_source: Source, initial: Recipe, output: Path
) -> None:
    progress = Recording()
    settings = dataclasses.replace(QUICK, learning_rate=1.0)
    recipe = calibrate(tiny_source, settings, output=output, progress=progress)
    assert [result.status for result in recipe.results] == ["rolled_back", "rolled_back"]
    assert all(result.note for result in recipe.results)
    assert all("rolled_back" in line for line in progress.lines if line.startswith("step group"))
    for name, layer in recipe.layers.items():
        assert np.array_equal(layer.activation_scale, initial.layers[name].activation_scale)
    assert Recipe.load(output).results == recipe.results


def test_a_float_budget_leaves_named_layers_out(
    finished: tuple[Recipe, bytes], tiny_source: Source, output: Path
) -> None:
    progress = Recording()
    settings = dataclasses.replace(QUICK, float_budget=0.3, iterations=0, shared_iterations=0)
    recipe = calibrate(tiny_source, settings, output=output, progress=progress)
    left = recipe.calibration["float_by_budget"]
    assert left
    assert set(left) == finished[0].layers.keys() - recipe.layers.keys()
    assert set(left) <= set(recipe.calibration["float_layers"])
    share = finished[0].calibration["int8_mac_share"] - recipe.calibration["int8_mac_share"]
    assert 0 < share <= 0.3
    assert any(all(name in line for name in left) for line in progress.lines)
    errors = recipe.calibration["sensitivity"]
    assert errors.keys() == finished[0].layers.keys()


def test_sensitivity_is_measured_only_where_it_is_asked_for(tiny_source: Source, output: Path) -> None:
    for asked in (False, True):
        progress = Recording()
        settings = dataclasses.replace(QUICK, sensitivity=asked, iterations=0, shared_iterations=0)
        recipe = calibrate(tiny_source, settings, output=output, progress=progress)
        assert ("layer sensitivity" in progress.stages) == asked
        assert recipe.calibration["sensitivity"].keys() == (recipe.layers.keys() if asked else set())


def test_a_budget_for_every_layer_is_a_usage_error(pointwise_source: Source, output: Path) -> None:
    settings = dataclasses.replace(QUICK, float_budget=1.0, exclude=())
    with pytest.raises(UsageError, match=r"--float-budget"):
        calibrate(pointwise_source, settings, output=output)


def test_patterns_choose_the_layers(tiny_source: Source, output: Path) -> None:
    settings = dataclasses.replace(QUICK, include=("conv_in",), exclude=("*resnets*",), iterations=0)
    recipe = calibrate(tiny_source, settings, output=output)
    assert "conv_in" in recipe.layers
    assert all("attentions" in name or name == "conv_in" for name in recipe.layers)


@pytest.mark.parametrize("option", ["include", "exclude"])
def test_a_pattern_that_matches_nothing_is_a_usage_error(
    tiny_source: Source, output: Path, option: str
) -> None:
    pattern: dict[str, Any] = {option: ("nothing.*",)}
    with pytest.raises(UsageError, match=rf"--{option} 'nothing.\*': got a pattern that matches no layer"):
        calibrate(tiny_source, dataclasses.replace(QUICK, **pattern), output=output)


def test_more_steps_than_the_training_schedule_are_refused(tiny_source: Source, output: Path) -> None:
    with pytest.raises(CalibrationError, match=r"number of steps: got 1001"):
        calibrate(tiny_source, dataclasses.replace(QUICK, steps=1001), output=output)
    assert os.listdir(output.parent) == []


def test_another_scheduler_is_refused_before_anything_is_written(tiny_source: Source, output: Path) -> None:
    source = dataclasses.replace(tiny_source, scheduler=DEISMultistepScheduler())
    with pytest.raises(CalibrationError, match=r"scheduler DEISMultistepScheduler"):
        calibrate(source, QUICK, output=output)
    assert os.listdir(output.parent) == []


def test_a_recipe_that_would_be_a_folder_is_refused_before_anything_is_done(
    tiny_source: Source, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=r"output: got '.*', a folder"):
        calibrate(tiny_source, CalibrationSettings(), output=tmp_path)
    assert not tmp_path.with_name(tmp_path.name + ".partial").exists()


def test_a_class_conditional_network_with_ddpm_is_calibrated(
    tiny_source: Source, output: Path, make_unet: Callable[..., nn.Module]
) -> None:
    unet = make_unet(num_class_embeds=3)
    source = dataclasses.replace(
        tiny_source, network=unet, scheduler=DDPMScheduler(), signature=signature_of(unet)
    )
    recipe = calibrate(source, dataclasses.replace(QUICK, num_trajectories=2), output=output)
    assert recipe.signature.conditioning[0].name == "class_labels"
    assert recipe.layers


def test_a_network_with_other_conditioning_is_refused(tiny_source: Source, output: Path) -> None:
    class Text(nn.Module):
        """A UNet that also takes text."""

        def __init__(self) -> None:
            super().__init__()
            self.config = tiny_source.network.config
            self.unet = tiny_source.network

        def forward(self, *args: Any, encoder_hidden_states: Tensor, **kwargs: Any) -> Any:
            return self.unet(*args, **kwargs)

    text = TensorSpec("encoder_hidden_states", ("batch", 3, 4))
    signature = dataclasses.replace(tiny_source.signature, conditioning=(text,))
    source = dataclasses.replace(tiny_source, network=Text(), signature=signature)
    with pytest.raises(CalibrationError, match=r"a network that takes encoder_hidden_states"):
        calibrate(source, dataclasses.replace(QUICK, exclude=()), output=output)


def test_the_recipe_samples_almost_the_same_images(
    finished: tuple[Recipe, bytes], tiny_source: Source, output: Path
) -> None:
    eight = dataclasses.replace(QUICK, activation_bits=8, affine=True, observer="mse", iterations=0)
    recipe = calibrate(tiny_source, eight, output=output)
    process = DenoisingProcess(DDIMScheduler(), 4)
    start = process.initial_latents((1, 8, 8), seeded_generators([100, 101]))
    ends = []
    for network in (
        tiny_source.network,
        simulate(tiny_source.network, recipe),
        simulate(tiny_source.network, finished[0]),
    ):
        with torch.no_grad():
            ends.append(process.sample(functools.partial(call, network), start))
    int8, six_bits = ((end - ends[0]).square().mean().item() for end in ends[1:])
    assert 0 < 5 * int8 < six_bits


def test_a_second_calibration_into_one_recipe_is_refused(tiny_source: Source, output: Path) -> None:
    second: list[str] = []

    class Meanwhile(Recording):
        """Starts another calibration with the same output while this one is at work."""

        def message(self, text: str) -> None:
            if not second:
                other = dataclasses.replace(QUICK, seed=1)
                with pytest.raises(UsageError, match=r"another run that writes it now \(process \d") as fault:
                    calibrate(tiny_source, other, output=output)
                second.append(str(fault.value))

    recipe = calibrate(tiny_source, QUICK, output=output, progress=Meanwhile())
    assert second
    assert recipe.calibration["settings"]["seed"] == QUICK.seed
    assert os.listdir(output.parent) == ["recipe.safetensors"]
