"""Tests of the shapes that a model is built for."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest

from accuquant.engines.options import ShapeRange
from accuquant.engines.profile import read_inputs, static_profile
from accuquant.errors import SourceError, UsageError
from accuquant.networks.signature import Signature, TensorSpec

MakeConv = Callable[..., Path]


def test_a_batch_without_a_size_is_one(make_conv: MakeConv) -> None:
    assert static_profile(make_conv()) == {"x": ShapeRange.fixed((1, 4, 8, 8))}
    assert static_profile(make_conv(), batch_size=3) == {"x": ShapeRange.fixed((3, 4, 8, 8))}


def test_a_static_model_needs_no_profile(make_conv: MakeConv) -> None:
    assert static_profile(make_conv(batch=2)) == {}


def test_sizes_come_from_the_signature_in_the_file(make_conv: MakeConv) -> None:
    path = make_conv(size="height")
    spec = TensorSpec("x", ("batch", 4, "height", "height"))
    signature = Signature("Net", spec, TensorSpec("timestep", ("n",)), (), spec, {"batch": 2, "height": 16})
    model = onnx.load(path)
    onnx.helper.set_model_props(model, {"accuquant.signature": json.dumps(signature.to_dict())})
    onnx.save(model, path)
    assert static_profile(path) == {"x": ShapeRange.fixed((2, 4, 16, 16))}
    assert static_profile(path, sizes={"height": 32}, batch_size=1)["x"].opt == (1, 4, 32, 32)


def test_an_extent_that_nothing_gives_is_named(make_conv: MakeConv) -> None:
    with pytest.raises(UsageError, match=r"no size for height.*--optShapes=x:Nx4xNxN"):
        static_profile(make_conv(size="height"))


def test_initializers_that_are_listed_as_inputs_are_not_inputs(make_conv: MakeConv) -> None:
    path = make_conv()
    model = onnx.load(path)
    model.graph.input.append(onnx.helper.make_tensor_value_info("bias", onnx.TensorProto.FLOAT, [4]))
    onnx.save(model, path)
    assert list(read_inputs(path)[0]) == ["x"]


def test_a_file_that_is_not_onnx_is_refused(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"\xff" * 50)
    with pytest.raises(SourceError, match="not ONNX"):
        read_inputs(tmp_path / "m.onnx")
    with pytest.raises(SourceError, match="no such file"):
        read_inputs(tmp_path / "absent.onnx")
