"""Every pipeline class end to end: calibrate, export, and engines inside the real pipeline."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from family_cases import CASES, Exported

from accuquant.denoising.process import seeded_generators
from accuquant.networks.simulate import simulate
from accuquant.pipelines.families import call_arguments
from accuquant.pipelines.real_pipeline import open_pipeline
from accuquant.sample_pipeline import sample_pipeline
from accuquant.verification.report.thresholds import Thresholds
from accuquant.verification.verify import verify


@pytest.mark.slow
@pytest.mark.parametrize("kind", CASES)
def test_both_engines_in_the_pipeline_make_the_images_of_the_simulation(
    kind: str, exported_case: Callable[[str], Exported]
) -> None:
    case = exported_case(kind)
    source, task = case.source, case.task
    pipe = open_pipeline(source, task)
    for name, part in replace(source, network=simulate(source.network, case.recipe)).parts.items():
        setattr(pipe, name, part)
    arguments = call_arguments(pipe, task, range(2), 4) | {"output_type": "np"}
    simulated = pipe(**arguments, generator=seeded_generators([9, 10])).images
    for engine in ("openvino", "onnxruntime"):
        images = sample_pipeline(case.folder, task, engine=engine, num_images=3, batch_size=2, seed=9)
        assert images.shape == (3, *simulated.shape[1:])
        error = np.square(images[:2].astype(np.float64) - simulated).mean()
        assert error < 10**-3.5, engine  # 35 dB; a codebook (LDM) can make the images equal
        assert images.std() > 0.01

    # most of Flux's 512 text tokens are padding, all alike: a tie of rounding there counts hundreds of times
    share = 0.01 if kind.startswith("flux") else 0.001
    report = verify(
        case.folder, source, task=task, num_images=2, steps=4, features="none", layers=True,
        thresholds=Thresholds(min_psnr=15.0, max_fid=None, max_level_share=share),
    )  # fmt: skip
    assert report.passed, report.verdict
    assert [note for note in report.notes if not note.startswith("openvino '")] == []
