"""The options of an export check themselves, and say which values there are."""

from __future__ import annotations

from dataclasses import fields
from typing import Any, get_args, get_type_hints

import pytest

from accuquant.errors import UsageError
from accuquant.export import export_options
from accuquant.export.export_options import CHOICES, ExportChoices, ExportOptions
from accuquant.export.passes.lowering import LoweringOptions


def test_the_choices_are_those_of_the_types() -> None:
    assert set(CHOICES["lowering"]) == {"auto", *get_args(export_options.Lowering)}
    assert set(CHOICES["precision"]) == {"auto", *get_args(export_options.Precision)}
    assert set(CHOICES["affine"]) == {"auto", *get_args(export_options.Affine)}
    assert CHOICES["float_weights"] == get_args(export_options.FloatWeights)


def test_what_can_be_named_alone_are_the_fields() -> None:
    assert get_type_hints(ExportChoices) == get_type_hints(ExportOptions)
    assert list(get_type_hints(ExportChoices)) == [field.name for field in fields(ExportOptions)]


def test_what_is_open_becomes_what_every_engine_takes() -> None:
    assert LoweringOptions.of(ExportOptions()) == LoweringOptions("rescale", "fp32", "shift", "auto")
    named = ExportOptions(lowering="hybrid", precision="bf16", affine="zero_point", float_weights="bf16")
    assert LoweringOptions.of(named) == LoweringOptions("hybrid", "bf16", "zero_point", "bf16")
    assert [ExportOptions(precision=p).written_opset for p in ("auto", "fp16", "bf16")] == [21, 21, 22]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"lowering": "group"}, r"lowering 'group'.*rescale or hybrid or per-group or auto"),
        ({"precision": "int8"}, r"precision 'int8'.*fp32 or fp16 or bf16"),
        ({"affine": "zero-point"}, r"affine 'zero-point'.*shift or zero_point"),
        ({"float_weights": "fp8"}, r"Give --float-weights one of these names"),
        ({"target": "tpu"}, r"target 'tpu'.*cpu or gpu or a compute capability like sm89"),
        ({"opset": 18}, r"--opset: got 18"),
        ({"opset": 21, "precision": "bf16"}, r"--opset: got 21 with --precision bf16, expected 22 to 25"),
        ({"whole_pipeline": True, "lowering": "per-group"}, r"--whole-pipeline: got --lowering per-group"),
    ],
)
def test_what_cannot_be_is_refused_with_what_can(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        ExportOptions(**wrong)
