"""A network's signature, read off its pipeline's calls: the entries by hand are the oracle."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from family_cases import CASES, SETTINGS, make_task
from odd_pipeline import OddCanvasPipeline, installed, save_odd_pipeline
from tiny_networks import make_inputs
from tiny_pipelines import ENTERED

from accuquant.calibration import calibrate
from accuquant.errors import SourceError, UsageError
from accuquant.export import write_pipeline
from accuquant.networks.network import call, remember_call
from accuquant.networks.signature import Signature, TensorSpec
from accuquant.pipelines.called_source import called_source, captured_signature
from accuquant.pipelines.source import Source, load_source
from accuquant.pipelines.starts import PipelineStarter, open_starter
from accuquant.pipelines.task import Task
from accuquant.sample_pipeline import sample_pipeline
from accuquant.verification.report.thresholds import Thresholds
from accuquant.verification.verify import verify

FAST = ("lcm", "sdxl", "dit", "pixart-alpha", "sd3", "flux")
#: What a pipeline never lets vary, and what the entry knows of the network beyond any call.
EXCEPT: dict[str, dict[str, int]] = {
    "variation": {"tokens": 1},  # an image's embedding
    "ldm-text": {"tokens": 77},  # written into the pipeline
    "ldm": {"height": 8, "width": 8},  # a pipeline without an image size
    # positions that the network computes in Python: a trace finds that out, a call does not
    "pixart": {"height": 8, "width": 8},
    "pixart-alpha": {"height": 8, "width": 8},
}
PROMPTS = Task(prompts=("a cat", "two dogs"))


def shapes(signature: Signature, fixed: dict[str, int]) -> dict[str, tuple[Any, str]]:
    """Return shapes and types of all tensors, with numbers for the extents in `fixed`."""
    return {
        spec.name: (tuple(fixed.get(str(extent), extent) for extent in spec.shape), spec.dtype)
        for spec in (*signature.inputs, signature.output)
    }


@pytest.mark.parametrize(
    "kind", [pytest.param(k, marks=[] if k in FAST else [pytest.mark.slow]) for k in ENTERED]
)
def test_the_calls_tell_what_the_entry_says(
    kind: str, tiny_text_pipeline: Callable[[str], Path], picture_folder: Path
) -> None:
    source = load_source(tiny_text_pipeline(kind))
    task = make_task(CASES.get(kind, {"prompts": True}), picture_folder)
    seen, entry, fixed = captured_signature(source, task, 4), source.signature, EXCEPT.get(kind, {})
    assert shapes(seen, fixed) == shapes(entry, fixed)
    assert set(fixed) <= {e for s in (seen, entry) for spec in s.inputs for e in spec.shape}
    assert seen.timestep_divisor == entry.timestep_divisor
    assert seen.call is not None
    assert seen.call.counts_from is None

    sample, conditioning = make_inputs(replace(entry, sizes=seen.sizes | entry.sizes))
    as_seen = copy.deepcopy(source.network)
    remember_call(as_seen, seen)
    at = torch.tensor(712.0)
    with torch.no_grad():
        expected = call(source.network, sample, at, conditioning)
        assert torch.equal(call(as_seen, sample, at, conditioning), expected)


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Return the folder of a pipeline whose classes AccuQuant has never heard of."""
    with installed():
        yield save_odd_pipeline(tmp_path_factory.mktemp("odd"))


def test_a_class_that_nobody_entered_is_read_off_its_pipeline(odd: Path) -> None:
    source = called_source(load_source(odd), PROMPTS, 4)
    signature = source.signature
    assert signature.sample == TensorSpec("canvas", ("batch", 4, "height", "width"))
    assert signature.conditioning == (
        TensorSpec("words", ("batch", "tokens", 16)),
        TensorSpec("heard", ("batch", "tokens"), "bool"),
        TensorSpec("grid_0", ("height",)),
        TensorSpec("grid_1", ("width",)),
    )
    assert signature.output == TensorSpec("out_canvas", ("batch", 4, "height", "width"))
    assert signature.sizes == {"batch": 1, "steps": 1, "height": 8, "width": 8, "tokens": 16}
    assert signature.call is not None
    assert signature.call.counts_from == 1000
    assert signature.call.constants == {("gain",): 0.5}
    starter = open_starter(source, PROMPTS, steps=4)
    assert isinstance(starter, PipelineStarter)
    assert (starter.guidance.kind, starter.guidance.scale, starter.guidance.negated) == (
        "classifier-free", 3.0, True,
    )  # fmt: skip


def test_a_network_that_gets_another_tensor_in_every_step_is_refused_by_name(
    odd: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = load_source(odd)
    sample = OddCanvasPipeline.told
    monkeypatch.setattr(
        OddCanvasPipeline, "told", lambda self, *args: sample(self, *args) | {"noise": torch.rand(3)}
    )
    with pytest.raises(
        SourceError, match=r"network OddCanvasModel: got canvas, moment, told that change from step"
    ):
        called_source(source, PROMPTS, 4)


def test_a_pipeline_that_changes_its_guidance_late_is_refused(
    odd: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from accuquant.errors import CalibrationError

    source = called_source(load_source(odd), PROMPTS, 4)
    monkeypatch.setattr(OddCanvasPipeline, "late_scale", 1.5)
    with pytest.raises(CalibrationError, match=r"pipeline OddCanvasPipeline: got the latents after step 4"):
        open_starter(source, PROMPTS, steps=4)


@pytest.mark.slow
def test_a_class_that_nobody_entered_goes_from_calibration_to_verification(odd: Path, tmp_path: Path) -> None:
    recipe = calibrate(load_source(odd), SETTINGS, output=tmp_path / "recipe.safetensors", task=PROMPTS)
    write_pipeline(load_source(odd), recipe, tmp_path / "out")
    for engine in ("openvino", "onnxruntime"):
        images = sample_pipeline(tmp_path / "out", PROMPTS, engine=engine, num_images=3, batch_size=2, seed=9)
        assert images.shape == (3, 16, 16, 3)
        wider = Task(prompts=PROMPTS.prompts, image_size=(32, 24))
        images = sample_pipeline(tmp_path / "out", wider, engine=engine, num_images=1, seed=9)
        assert images.shape == (1, 24, 32, 3)
    report = verify(
        tmp_path / "out", load_source(odd), task=PROMPTS, num_images=2, steps=4, features="none", layers=True,
        thresholds=Thresholds(min_psnr=35.0, max_fid=None, max_level_share=0.001),
    )  # fmt: skip
    assert report.passed, report.verdict


def test_a_reference_that_nobody_entered_needs_the_recipe(odd: Path) -> None:
    source: Source = load_source(odd)
    with pytest.raises(SourceError, match=r"load_source\(\.\.\., signature=recipe\.signature\)"):
        _ = source.signature.sizes
    known = called_source(source, PROMPTS, 4)
    again = load_source(odd, signature=known.signature)
    assert again.signature == known.signature
    with pytest.raises(UsageError, match="no prompts"):
        captured_signature(again, Task(), 4)
