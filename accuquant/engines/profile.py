"""The shapes that an engine is built for: from the command line, the model's signature, or a batch size."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import onnx

from accuquant._util.facts import FactsError, parse_json
from accuquant.engines.options import ShapeRange
from accuquant.errors import SourceError, UsageError
from accuquant.graph.vocabulary import SIGNATURE_KEY
from accuquant.networks.signature import Dim, Signature

#: What exporters call the first extent.
_BATCH = ("batch", "batch_size", "N", "b")


def load_graph(model: Path) -> onnx.ModelProto:
    """Read an .onnx file without its external data. Raises SourceError for a file that cannot be read."""
    try:
        return onnx.load(model, load_external_data=False)
    except FileNotFoundError as fault:
        raise _unreadable(model, "no such file") from fault
    except Exception as fault:  # protobuf's exceptions depend on its implementation
        raise _unreadable(model, "a file that is not ONNX") from fault


def read_inputs(model: Path) -> tuple[dict[str, tuple[Dim, ...]], dict[str, int]]:
    """Return ({input: shape}, {extent: default size}) of an .onnx file; its weights are not read.

    The sizes are those of the signature that AccuQuant's export leaves in the file, else empty. Raises
    SourceError for a file that is missing, damaged or not ONNX.
    """
    proto = load_graph(model)
    metadata = _metadata(proto)
    sizes: dict[str, int] = {}
    if SIGNATURE_KEY in metadata:
        try:
            sizes = dict(Signature.from_dict(parse_json(metadata[SIGNATURE_KEY])).sizes)
        except FactsError as fault:
            raise _unreadable(model, f"a damaged entry {SIGNATURE_KEY} ({fault})") from fault
    weights = {tensor.name for tensor in proto.graph.initializer}
    shapes = {value.name: _shape(value) for value in proto.graph.input if value.name not in weights}
    return shapes, sizes


def read_metadata(model: Path) -> dict[str, str]:
    """Return the metadata entries of an .onnx file. Raises SourceError for a file that cannot be read."""
    return _metadata(load_graph(model))


def static_profile(
    model: Path, *, batch_size: int | None = None, sizes: Mapping[str, int] | None = None
) -> dict[str, ShapeRange]:
    """Return one fixed shape for each dynamic input of `model`.

    A named extent is looked up in `sizes`, then in the model's signature; the batch is `batch_size`, else
    the signature's, else 1. Raises UsageError that names the extents which nothing gives.
    """
    shapes, defaults = read_inputs(model)
    known = {**dict.fromkeys(_BATCH, 1), **defaults, **(sizes or {})}
    if batch_size is not None:
        known.update(dict.fromkeys(_BATCH, batch_size))
    dynamic = {name: shape for name, shape in shapes.items() if any(isinstance(d, str) for d in shape)}
    return {name: ShapeRange.fixed(_resolved(name, shape, known)) for name, shape in dynamic.items()}


def _resolved(name: str, shape: tuple[Dim, ...], sizes: Mapping[str, int]) -> tuple[int, ...]:
    missing = [extent for extent in shape if isinstance(extent, str) and extent not in sizes]
    if missing:
        example = "x".join("N" if isinstance(extent, str) else str(extent) for extent in shape)
        raise UsageError(
            f"input '{name}'",
            got=f"no size for {', '.join(missing)} of [{', '.join(map(str, shape))}]",
            expected="a shape for every dynamic input",
            remedy=f"Give --optShapes={name}:{example} with numbers",
        )
    return tuple(sizes[extent] if isinstance(extent, str) else extent for extent in shape)


def _shape(value: onnx.ValueInfoProto) -> tuple[Dim, ...]:
    extents = enumerate(value.type.tensor_type.shape.dim)
    return tuple(
        extent.dim_value if extent.HasField("dim_value") else extent.dim_param or f"extent {axis}"
        for axis, extent in extents
    )


def _metadata(proto: onnx.ModelProto) -> dict[str, str]:
    return {entry.key: entry.value for entry in proto.metadata_props}


def _unreadable(model: Path, got: str) -> SourceError:
    return SourceError(
        f"model '{model}'",
        got=got,
        expected="an .onnx file",
        remedy="Check the path, or export the model again",
    )
