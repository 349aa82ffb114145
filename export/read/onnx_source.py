"""Read a float .onnx that anybody exported, after checking that it is whole and stays in its folder."""

from __future__ import annotations

import logging
from pathlib import Path

import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError
from onnx_ir.passes.common import (
    InlinePass,
    LiftConstantsToInitializersPass,
    RemoveInitializersFromInputsPass,
)

from accuquant._util.external_data import check_external_files
from accuquant._util.real_model import real_model
from accuquant.errors import AccuQuantError, ExportError, MissingDependencyError, SourceError, last_line
from accuquant.export.read.widen_half import WidenHalfPass
from accuquant.graph.infer_types import infer_types
from accuquant.graph.quantized_family import REMEDY, quantized_family
from accuquant.graph.sorting import sort_nodes
from accuquant.graph.soundness import find_fault

#: Opset that older graphs are converted to, at least: float16 scales need 19, Shape(start=...) 15.
_TARGET_OPSET = 21
#: The last opset in which Resize knows no coordinate_transformation_mode.
_LAST_ASYMMETRIC = 10
#: The first IR version in which an initializer need not be a graph input.
_IR_WITHOUT_INPUTS = 4
_COPY_AGAIN = "The file is damaged or incomplete: export or copy it again"


def read_proto(path: Path) -> onnx.ModelProto:
    """Parse an .onnx without loading external data. Raises SourceError where it is not a valid one.

    Every external tensor must lie inside the folder of `path`, in a file that is long enough. Nodes are
    sorted where the file's are not.
    """
    path = Path(path)
    if not path.is_file():
        raise SourceError(f"'{path}'", got="no such file", expected="an .onnx file", remedy="Check the path")
    check_external_files(path, error=SourceError)
    try:
        model = onnx.load_model(path, format="protobuf", load_external_data=False)
        sort_nodes(model)
    except (DecodeError, OSError, ValueError) as fault:
        raise _damaged(path, f"{type(fault).__name__}: {fault}") from fault
    if (reason := find_fault(model)) is not None:
        raise _damaged(path, f"an invalid graph ({reason})")
    return model


def read_float(path: Path, *, min_opset: int = 15) -> ir.Model:
    """Read a float .onnx that is to be quantized, as read_model does.

    Raises SourceError that names the operators of a file that another tool has quantized.
    """
    model = read_model(path, min_opset=min_opset)
    family = quantized_family(node.op_type for node in model.graph)
    if family is not None:
        raise SourceError(f"'{path}'", got=family, expected="a graph in float", remedy=REMEDY)
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
    try:
        return _prepared(proto, path, min_opset, keep_half=keep_half)
    except AccuQuantError:
        raise
    except Exception as fault:  # onnx, onnx-ir and onnxscript raise many kinds
        raise SourceError(
            f"'{path}'",
            got=f"a graph that onnx-ir cannot read ({type(fault).__name__}: {last_line(fault)})",
            expected="a graph whose types, shapes and operators fit together",
            remedy=f"Export the network again with opset_version={_TARGET_OPSET}",
        ) from fault


def _prepared(proto: onnx.ModelProto, path: Path, min_opset: int, *, keep_half: bool) -> ir.Model:
    model = ir.serde.deserialize_model(proto)
    ir.external_data.set_base_dir(model.graph, path.parent)
    _fix_initializers(model)
    InlinePass()(model)
    opset = model.opset_imports.get("", 0)
    if opset < min_opset:
        _convert(model, path, opset, max(min_opset, _TARGET_OPSET))
        # the conversion goes through a serialized model, which does not know its folder
        ir.external_data.set_base_dir(model.graph, path.parent)
        if opset <= _LAST_ASYMMETRIC:
            _keep_asymmetric(model.graph)
    LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    infer_types(model)
    if not keep_half:
        WidenHalfPass()(model)
    return model


def _keep_asymmetric(graph: ir.Graph) -> None:
    """Let each Resize compute what it did before opset 11, by the one rule that the converter drops."""
    for node in ir.traversal.RecursiveGraphIterator(graph):
        if node.op_type == "Resize" and node.domain == "":
            for key, value in (("coordinate_transformation_mode", "asymmetric"), ("nearest_mode", "floor")):
                node.attributes[key] = ir.AttrString(key, value)


def _fix_initializers(model: ir.Model) -> None:
    """Drop initializers from the graph's inputs: nobody feeds weights, and a fed one is no constant."""
    if RemoveInitializersFromInputsPass()(model).modified:
        model.ir_version = max(model.ir_version or 0, _IR_WITHOUT_INPUTS)


def _convert(model: ir.Model, path: Path, opset: int, target: int) -> None:
    try:
        from onnxscript.version_converter import ConvertVersionPass
    except ImportError as fault:
        raise MissingDependencyError(
            f"'{path}'",
            got=f"opset {opset} and no package onnxscript",
            expected="onnxscript, which converts older graphs",
            remedy=f"pip install onnxscript, or export the network again with opset_version={target}",
        ) from fault
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
