"""Tests of trtexec's spelling."""

from __future__ import annotations

import pytest

from accuquant.engines.flags import make_profile, parse_memory_pools, parse_shapes, removed_line
from accuquant.engines.options import ShapeRange
from accuquant.errors import UsageError

SHAPES = {"sample": ("batch", 3, 32, 32), "timestep": (1,)}


def test_shapes_are_read_as_trtexec_writes_them() -> None:
    text = "sample:4x3x32x32,down:block:0:1,t:1"
    assert parse_shapes("--minShapes", text) == {
        "sample": (4, 3, 32, 32),
        "down:block:0": (1,),
        "t": (1,),
    }
    assert parse_shapes("--minShapes", "") == {}


@pytest.mark.parametrize("text", ["sample", "sample:", ":1x3", "sample:1x", "sample:axb", "sample:1X3"])
def test_a_shape_in_another_form_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"--optShapes: got '.*'.*sample:1x3x32x32"):
        parse_shapes("--optShapes", text)


def test_memory_pools_are_in_mib_or_in_their_unit() -> None:
    assert parse_memory_pools("workspace:1.5,tacticSharedMem:48K,dlaSRAM:7B") == {
        "workspace": 3 << 19,
        "tactic_shared_memory": 48 << 10,
        "dla_managed_sram": 7,
    }


@pytest.mark.parametrize(("text", "match"), [("heap:1", "workspace or dlaSRAM"), ("workspace:x", "a size")])
def test_a_wrong_memory_pool_is_refused(text: str, match: str) -> None:
    with pytest.raises(UsageError, match=match):
        parse_memory_pools(text)


def test_a_missing_bound_is_the_optimum_and_a_missing_optimum_the_maximum() -> None:
    made = make_profile(
        SHAPES, min_shapes={"sample": (1, 3, 32, 32)}, opt_shapes={}, max_shapes={"sample": (8, 3, 32, 32)}
    )
    assert made == {"sample": ShapeRange((1, 3, 32, 32), (8, 3, 32, 32), (8, 3, 32, 32))}
    made = make_profile(SHAPES, min_shapes={}, opt_shapes={"sample": (4, 3, 32, 32)}, max_shapes={})
    assert made == {"sample": ShapeRange.fixed((4, 3, 32, 32))}


def test_min_above_opt_is_refused() -> None:
    with pytest.raises(UsageError, match="min <= opt <= max"):
        make_profile(
            SHAPES,
            min_shapes={"sample": (8, 3, 32, 32)},
            opt_shapes={"sample": (4, 3, 32, 32)},
            max_shapes={},
        )


def test_a_dynamic_input_without_shapes_is_named() -> None:
    shapes = {**SHAPES, "encoder_hidden_states": ("batch", "tokens", 768)}
    with pytest.raises(UsageError, match=r"no shapes for encoder_hidden_states.*_states:1x1x768"):
        make_profile(shapes, min_shapes={}, opt_shapes={"sample": (1, 3, 32, 32)}, max_shapes={})


def test_an_unknown_input_is_named() -> None:
    with pytest.raises(UsageError, match="shapes for 'x', expected shapes for sample, timestep"):
        make_profile(SHAPES, min_shapes={"x": (1,)}, opt_shapes={}, max_shapes={})


def test_a_removed_flag_is_answered_with_its_reason() -> None:
    assert removed_line("--int8").startswith("--int8 changes nothing: since TensorRT 11 the ONNX file")
    assert "accuquant calibrate" in removed_line("--calib")
