"""Write graphs to disk, with their weights inside or in one external file that they share."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeGuard

import onnx
import onnx_ir as ir

from accuquant.errors import ExportError
from accuquant.export.write.check_types import check_types
from accuquant.export.write.data_file import add_hash
from accuquant.export.write.inline_file import save_inline

#: Protobuf refuses messages of 2 GB; some room is left for the nodes.
_INLINE_LIMIT = 2_000_000_000
#: Smaller tensors (scales, biases, shapes) stay in the .onnx, where shape inference can read them.
_EXTERNAL_ABOVE = 4096
_INVALID = (onnx.checker.ValidationError, onnx.shape_inference.InferenceError, ValueError, RuntimeError)


def save_graphs(
    models: Mapping[str, ir.Model],
    folder: Path,
    data_name: str,
    *,
    external_data: bool | None = None,
    hash_data: bool = False,
) -> list[str]:
    """Write each model as `folder/name` -> the names of all files written, .onnx first.

    Weights go to `folder/data_name` where `external_data` is true, where there are several graphs
    (each tensor is stored once), or, with None, above 2 GB; `hash_data` adds its content's hash to that
    name. Every file passes onnx.checker and check_types.
    """
    tensors = _large_tensors(models)
    if external_data is None:
        external_data = len(models) > 1 or sum(tensor.nbytes for tensor in tensors) > _INLINE_LIMIT
    written = list(models)
    if external_data and tensors:
        stored = ir.external_data.convert_tensors_to_external(tensors, folder, data_name)
        if hash_data:
            data_name = add_hash(folder / data_name).name
            stored = [_moved(tensor, data_name) for tensor in stored]
        _replace(models, dict(zip(map(id, tensors), stored, strict=True)))
        written.append(data_name)
    for name, model in models.items():
        if external_data:
            _embed_foreign(model, folder)
            ir.save(model, folder / name)
            _check(folder / name)
        else:
            _save_inline(model, folder / name, tensors)
    return written


def _large_tensors(models: Mapping[str, ir.Model]) -> list[ir.TensorProtocol]:
    """Return each initializer above the threshold once, however many graphs hold it."""
    found: dict[int, ir.TensorProtocol] = {}
    for model in models.values():
        for value in model.graph.initializers.values():
            tensor = value.const_value
            if tensor is not None and tensor.nbytes > _EXTERNAL_ABOVE:
                found[id(tensor)] = tensor
    return list(found.values())


def _embed_foreign(model: ir.Model, folder: Path, written: Collection[int] = ()) -> None:
    """Let tensors that lie in another model's data file be written into the .onnx; mapped, not copied.

    Those whose id is in `written` are taken care of elsewhere. Bodies of If, Loop and Scan are looked into.
    """
    for graph in model.graphs():
        for value in graph.initializers.values():
            tensor = value.const_value
            if id(tensor) not in written and _is_foreign(tensor, folder):
                value.const_value = ir.tensor(tensor.numpy(), name=value.name)
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        for name, attribute in list(node.attributes.items()):
            if attribute.type == ir.AttributeType.TENSOR and _is_foreign(attribute.value, folder):
                node.attributes[name] = ir.AttrTensor(name, ir.tensor(attribute.value.numpy()))


def _is_foreign(tensor: object, folder: Path) -> TypeGuard[ir.ExternalTensor]:
    return isinstance(tensor, ir.ExternalTensor) and Path(tensor.base_dir) != folder


def _moved(tensor: ir.TensorProtocol, name: str) -> ir.ExternalTensor:
    """Return `tensor`, which lies in a data file, in the file of that name."""
    assert isinstance(tensor, ir.ExternalTensor)
    return ir.ExternalTensor(
        name,
        tensor.offset,
        tensor.length,
        tensor.dtype,
        shape=tensor.shape,
        name=tensor.name or "",
        base_dir=tensor.base_dir,
    )


def _replace(models: Mapping[str, ir.Model], stored: Mapping[int, ir.TensorProtocol]) -> None:
    for model in models.values():
        for value in model.graph.initializers.values():
            value.const_value = stored.get(id(value.const_value), value.const_value)


def _save_inline(model: ir.Model, path: Path, tensors: Sequence[ir.TensorProtocol]) -> None:
    _embed_foreign(model, path.parent, set(map(id, tensors)))
    with _invalid_graph(path):
        save_inline(model, path, tensors)


def _check(path: Path) -> None:
    with _invalid_graph(path):
        onnx.checker.check_model(str(path))
        check_types(onnx.load(path, load_external_data=False))


@contextmanager
def _invalid_graph(path: Path) -> Iterator[None]:
    """Turn what onnx.checker and check_types raise into ExportError."""
    try:
        yield
    except _INVALID as fault:
        raise ExportError(
            f"'{path.name}'",
            got=f"an invalid graph ({str(fault).strip().splitlines()[0]})",
            expected="a graph that onnx.checker accepts",
            remedy="Please report this, with the network's configuration",
        ) from fault
