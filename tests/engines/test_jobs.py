"""Tests of which engines are built where; no library is needed to say so."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from accuquant._util.gpu import Gpu
from accuquant.engines import Target
from accuquant.engines.jobs import list_jobs
from accuquant.engines.options import ShapeRange
from accuquant.errors import EngineError, UsageError

pytestmark = pytest.mark.usefixtures("rtx_by_name")
MakeConv = Callable[..., Path]


def test_a_model_has_a_job_for_each_target(make_conv: MakeConv) -> None:
    model = make_conv()
    jobs = list_jobs(model, targets="sm86,sm120", backend="tensorrt_rtx", batch_size=4)
    assert [job.options.target for job in jobs] == [Target(8, 6), Target(12, 0)]
    assert jobs[0].engine == model.parent / "engines" / "sm86" / "tensorrt_rtx" / "conv.engine"
    assert jobs[0].options.profile == {"x": ShapeRange.fixed((4, 4, 8, 8))}
    assert jobs[0].options.timing_cache == jobs[0].engine.parent / "timing.cache"
    assert jobs[1].rebuild == (
        f"accuquant build {model} --backend tensorrt_rtx --batch-size 4 --target sm120"
    )


def test_flags_reach_the_options_and_the_command_that_rebuilds(make_conv: MakeConv, tmp_path: Path) -> None:
    (job,) = list_jobs(
        make_conv(),
        targets="sm89",
        backend="tensorrt_rtx",
        save_engine=tmp_path / "a.engine",
        min_shapes="x:1x4x8x8",
        max_shapes="x:8x4x8x8",
        builder_optimization_level=5,
        memory_pools="workspace:1",
        hardware_compatibility="ampere+",
        no_tf32=True,
        refit=True,
    )
    assert job.engine == tmp_path / "a.engine"
    assert job.options.profile["x"].min == (1, 4, 8, 8)
    assert job.options.memory_pools == {"workspace": 1 << 20}
    assert (job.options.tf32, job.options.refit, job.options.version_compatible) == (False, True, False)
    for word in (
        f"--saveEngine={tmp_path / 'a.engine'}",
        "--minShapes=x:1x4x8x8 --maxShapes=x:8x4x8x8",
        "--builderOptimizationLevel=5 --memPoolSize=workspace:1 --hardwareCompatibilityLevel=ampere+",
        "--refit --noTF32 --target sm89",
    ):
        assert word in job.rebuild


def test_one_file_cannot_hold_two_engines(make_conv: MakeConv) -> None:
    with pytest.raises(UsageError, match="one file for 1 graphs and 2 targets"):
        list_jobs(make_conv(), targets="sm86,sm89", save_engine=Path("a.engine"))


def test_a_batch_size_beside_shapes_is_refused(make_conv: MakeConv) -> None:
    with pytest.raises(UsageError, match="a batch size or shapes"):
        list_jobs(make_conv(), targets="sm86", batch_size=2, opt_shapes="x:1x4x8x8")


def test_a_flag_that_does_not_exist_is_not_ignored(make_conv: MakeConv) -> None:
    with pytest.raises(TypeError, match="'minShapes'"):
        list_jobs(make_conv(), targets="sm86", minShapes="x:1x4x8x8")


def test_without_a_gpu_a_target_has_to_be_given(make_conv: MakeConv, monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> Gpu:
        raise EngineError("GPU", got="no NVIDIA driver", expected="a GPU", remedy="Install the driver")

    monkeypatch.setattr("accuquant.engines.jobs.find_gpu", none)
    with pytest.raises(EngineError, match=r"no --target, and no NVIDIA driver.*sm75.*--target sm89"):
        list_jobs(make_conv())


def test_the_gpu_of_this_machine_is_the_target_that_nobody_gave(
    make_conv: MakeConv, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("accuquant.engines.jobs.find_gpu", lambda: Gpu("L4", (8, 9), (13, 0)))
    model = make_conv()
    (job,) = list_jobs(model)
    assert job.options.target == Target(8, 9)
    assert job.rebuild == f"accuquant build {model} --backend tensorrt_rtx --target sm89"
