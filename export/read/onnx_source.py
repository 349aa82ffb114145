"""Read a float .onnx that anybody exported, after checking that it is whole and stays in its folder."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError
from onnx import external_data_helper as helper
from onnx_ir.passes.common import (
    InlinePass,
    LiftConstantsToInitializersPass,
    RemoveInitializersFromInputsPass,
)

from accuquant._util.named_file import named_file
from accuquant._util.real_model import real_model
from accuquant.errors import ExportError, SourceError
from accuquant.export.read.widen_half import WidenHalfPass
from accuquant.graph.infer_types import infer_types

#: Opset that older graphs are converted to, at least: float16 scales need 19, Shape(start=...) 15.
_TARGET_OPSET = 21
#: The first IR version in which an initializer need not be a graph input.
_IR_WITHOUT_INPUTS = 4
_COPY_AGAIN = "The file is damaged or incomplete: export or copy it again"


def read_proto(path: Path) -> onnx.ModelProto:
    """Parse an .onnx without loading external data. Raises SourceError where it is not a valid one.

    Every external tensor must lie inside the folder of `path`, in a file that is long enough.
    """
    path = Path(path)
    if not path.is_file():
        raise SourceError(f"'{path}'", got="no such file", expected="an .onnx file", remedy="Check the path")
    try:
        model = onnx.load_model(path, format="protobuf", load_external_data=False)
    except (DecodeError, OSError, ValueError) as fault:
        raise _damaged(path, f"{type(fault).__name__}: {fault}") from fault
    if not model.graph.node or not model.opset_import:
        raise _damaged(path, "a file without any node" if model.opset_import else "a file without an opset")
    for tensor in _tensors(model.graph):
        if helper.uses_external_data(tensor):
            _check_location(path, tensor)
    return model


def read_model(path: Path, *, min_opset: int = 15, keep_half: bool = False) -> ir.Model:
    """Read a float .onnx as onnx-ir; external data is mapped, not loaded.

    Local functions are inlined, Constant nodes become initializers, initializers that are graph inputs too
    (keep_initializers_as_inputs) are no inputs any more, types are inferred where they are
    missing, and a graph older than `min_opset` is converted. What was exported in float16 or bfloat16
    computes in float32 then, between inputs and outputs of the old type (WidenHalfPass), unless
    `keep_half`. Raises SourceError for a file that cannot be read, ExportError for one that cannot be
    converted.
    """
    path = Path(path)
    proto = read_proto(path)
    path = real_model(path)
    _check(path)
    model = ir.serde.deserialize_model(proto)
    ir.external_data.set_base_dir(model.graph, path.parent)
    _fix_initializers(model)
    InlinePass()(model)
    opset = model.opset_imports.get("", 0)
    if opset < min_opset:
        _convert(model, path, opset, max(min_opset, _TARGET_OPSET))
        # the conversion goes through a serialized model, which does not know its folder
        ir.external_data.set_base_dir(model.graph, path.parent)
    LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    infer_types(model)
    if not keep_half:
        WidenHalfPass()(model)
    return model


def _fix_initializers(model: ir.Model) -> None:
    """Drop initializers from the graph's inputs: nobody feeds weights, and a fed one is no constant."""
    if RemoveInitializersFromInputsPass()(model).modified:
        model.ir_version = max(model.ir_version or 0, _IR_WITHOUT_INPUTS)


def _tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            for inner in (*((attribute.g,) if attribute.HasField("g") else ()), *attribute.graphs):
                yield from _tensors(inner)


def _check_location(path: Path, tensor: onnx.TensorProto) -> None:
    info = {entry.key: entry.value for entry in tensor.external_data}
    location = info.get("location", "")
    subject = f"'{path}', external data of tensor '{tensor.name}'"
    target = named_file(path.parent, location, subject=subject, error=SourceError)
    if not target.is_file():
        raise SourceError(
            f"'{path}', tensor '{tensor.name}'",
            got=f"no file '{location}' beside it",
            expected="the model's external data in the same folder",
            remedy=f"Copy '{location}' to '{path.parent}' too",
        )
    end = _number(path, info, "offset") + _number(path, info, "length")
    if end > target.stat().st_size:
        raise _damaged(target, f"{target.stat().st_size} bytes where tensor '{tensor.name}' ends at {end}")


def _number(path: Path, info: dict[str, str], key: str) -> int:
    text = info.get(key, "0")
    if not text.isdecimal():
        raise _damaged(path, f"external data with {key} {text!r}")
    return int(text)


def _check(path: Path) -> None:
    try:
        onnx.checker.check_model(str(path))
    except (onnx.checker.ValidationError, ValueError, RuntimeError) as fault:
        reason = str(fault).strip().splitlines()
        raise _damaged(path, f"an invalid graph ({reason[0] if reason else type(fault).__name__})") from fault


def _convert(model: ir.Model, path: Path, opset: int, target: int) -> None:
    from onnxscript.version_converter import ConvertVersionPass

    logger = logging.getLogger("onnxscript.version_converter")
    level = logger.level
    logger.setLevel(logging.ERROR)  # it warns that it falls back to onnx's own converter, which is meant
    try:
        ConvertVersionPass(target, fallback=True)(model)
    finally:
        logger.setLevel(level)
    if model.opset_imports.get("", 0) != target:
        raise ExportError(
            f"'{path}'",
            got=f"opset {opset}, which cannot be converted",
            expected=f"opset {target}",
            remedy=f"Export the network again with opset_version={target}",
        )


def _damaged(path: Path, got: str) -> SourceError:
    return SourceError(f"'{path}'", got=got, expected="a complete ONNX file", remedy=_COPY_AGAIN)
