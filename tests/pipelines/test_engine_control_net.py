"""The drop-in for a control network, and a UNet's engine beside a float one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import ControlNetModel
from family_cases import SETTINGS, Exported

from accuquant.calibration import calibrate
from accuquant.errors import EngineError, UsageError
from accuquant.export import write_pipeline
from accuquant.manifest import Manifest
from accuquant.networks.controlled import ControlledNetwork
from accuquant.networks.simulate import simulate
from accuquant.runtime.engine_control_net import EngineControlNet
from accuquant.sample_pipeline import sample_pipeline
from accuquant.verification.report.thresholds import Thresholds
from accuquant.verification.verify import verify

pytestmark = pytest.mark.slow


def test_an_engine_gives_the_residuals_of_the_simulation_at_any_scale(
    exported_case: Callable[[str], Exported],
) -> None:
    case = exported_case("control")
    simulated = simulate(case.source.network, case.recipe)
    assert isinstance(simulated, ControlledNetwork)
    engine = EngineControlNet.from_pretrained(case.folder, "onnxruntime")
    assert isinstance(engine, ControlNetModel)  # which pipelines ask for
    random = torch.Generator().manual_seed(0)
    sample, words = torch.randn(2, 4, 8, 8, generator=random), torch.randn(2, 16, 16, generator=random)
    image, at = torch.rand(2, 3, 16, 16, generator=random), torch.tensor(501)
    with torch.no_grad():
        down, mid = simulated.controlnet(sample, at, words, image, 0.5, return_dict=False)
    found = engine(sample, at, encoder_hidden_states=words, controlnet_cond=image, conditioning_scale=0.5)
    assert len(found.down_block_res_samples) == len(down)
    for ours, theirs in zip(
        (*found.down_block_res_samples, found.mid_block_res_sample), (*down, mid), strict=True
    ):
        assert ours.shape == theirs.shape
        # a value that float rounding puts on the next level moves a few others
        assert float((ours - theirs).square().mean()) < 1e-4 * float(theirs.square().mean())
    nothing, middle = engine(sample, at, words, image, 0.0, return_dict=False)
    assert all(not tensor.any() for tensor in (*nothing, middle))


def test_a_control_engine_refuses_what_it_has_no_input_for(
    exported_case: Callable[[str], Exported], tmp_path: Path
) -> None:
    case = exported_case("control")
    engine = EngineControlNet.from_pretrained(case.folder)
    given = (torch.zeros(1, 4, 8, 8), 501, torch.zeros(1, 16, 16), torch.zeros(1, 3, 16, 16))
    with pytest.raises(UsageError, match="guess_mode: got True"):
        engine(*given, guess_mode=True)
    with pytest.raises(UsageError, match="argument 'attention_mask'"):
        engine(*given, attention_mask=torch.ones(1, 16))
    with pytest.raises(UsageError, match="a multiple of 2"):
        engine(torch.zeros(1, 4, 7, 8), *given[1:])
    with pytest.raises(UsageError, match="a compiled engine"):
        engine.save_pretrained(tmp_path)
    replace(Manifest.load(case.folder), controls=()).save(tmp_path)
    with pytest.raises(EngineError, match="no control network"):
        EngineControlNet.from_pretrained(tmp_path)


def test_a_control_network_that_was_left_in_float_computes_beside_the_engine(
    exported_case: Callable[[str], Exported], tmp_path: Path
) -> None:
    case = exported_case("control")
    settings = replace(SETTINGS, exclude=("controlnet*",))
    recipe = calibrate(case.source, settings, output=tmp_path / "recipe.safetensors", task=case.task)
    assert all(name.startswith("unet.") for name in recipe.layers)
    manifest = write_pipeline(case.source, recipe, tmp_path / "out")
    assert manifest.controls == ()
    images = sample_pipeline(tmp_path / "out", case.task, num_images=2, seed=9)
    assert images.std() > 0.01
    report = verify(
        tmp_path / "out", case.source, task=case.task, num_images=2, steps=4, features="none", layers=True,
        thresholds=Thresholds(min_psnr=15.0, max_fid=None, max_level_share=0.001),
    )  # fmt: skip
    assert report.passed, report.verdict
