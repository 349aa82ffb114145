"""A model repository for Triton Inference Server: one model for each graph and backend."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx

from accuquant._util.scratch import scratch_beside
from accuquant.errors import ExportError, unknown_name
from accuquant.manifest import Manifest

#: Backend -> (Triton's name for it, the model's file, where it runs).
BACKENDS = {
    "tensorrt": ("tensorrt", "model.plan", "KIND_GPU"),
    "openvino": ("openvino", "model.onnx", "KIND_CPU"),
    "onnxruntime": ("onnxruntime", "model.onnx", "KIND_CPU"),
}
#: Precision -> the backends that cannot compute it.
_WITHOUT = {"bf16": ("onnxruntime",)}
_TYPES: dict[int, str] = {
    onnx.TensorProto.FLOAT: "TYPE_FP32",
    onnx.TensorProto.FLOAT16: "TYPE_FP16",
    onnx.TensorProto.INT64: "TYPE_INT64",
    onnx.TensorProto.INT32: "TYPE_INT32",
}


@dataclass(frozen=True)
class TritonTensor:
    """An input or output as Triton declares it; an extent of -1 is the caller's choice."""

    name: str
    data_type: str
    dims: tuple[int, ...]


def write_triton_repository(
    folder: Path, output: Path, *, backends: Sequence[str] | None = None, name: str = ""
) -> list[str]:
    """Write the exported `folder` as a Triton model repository -> the names of its models.

    Each backend (None: every one that computes the export's precision) gets a model `<name>-<backend>` with
    its config.pbtxt and version 1; with the lowering "per-group" each step group is a model of its own, and
    `parameters` says which timesteps it is for.
    TensorRT plans are built on the GPU that will run them: that model's version folder holds a note with
    the command. Nothing that `output` holds is overwritten; files appear whole or not at all.
    """
    manifest = Manifest.load(folder)
    backends = _choose_backends(backends, manifest.precision)
    manifest.check_files(folder)
    check_repository(output)
    with scratch_beside(output) as scratch:
        models = _write_models(folder, manifest, scratch / "new", backends, name or manifest.component)
        if output.exists():
            output.rmdir()
        (scratch / "new").rename(output)
    return models


def check_repository(output: Path) -> None:
    """Raise ExportError unless `output` is a new path or an empty folder."""
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ExportError(
            f"output '{output}'",
            got="a file or a folder with files",
            expected="a new path or an empty folder",
            remedy="Choose another path: nothing was overwritten",
        )


def _choose_backends(backends: Sequence[str] | None, precision: str) -> list[str]:
    """Return the backends to write. Raises UsageError, and ExportError for one without the precision."""
    unknown = [backend for backend in backends or () if backend not in BACKENDS]
    if unknown:
        raise unknown_name("backend", unknown[0], BACKENDS)
    without = _WITHOUT.get(precision, ())
    wrong = [backend for backend in backends or () if backend in without]
    if wrong:
        raise ExportError(
            f"backend {wrong[0]}",
            got=f"an export in {precision}, for which it has no kernels",
            expected=", ".join(backend for backend in BACKENDS if backend not in without),
            remedy="Leave this backend out, or export with --precision fp16 or fp32",
        )
    return list(backends) if backends is not None else [b for b in BACKENDS if b not in without]


def _write_models(
    folder: Path, manifest: Manifest, output: Path, backends: Sequence[str], name: str
) -> list[str]:
    models = []
    for number, graph in enumerate(manifest.graphs):
        path = folder / graph
        inputs, outputs = _tensors(path)
        group = f"-group-{number:02d}" if len(manifest.graphs) > 1 else ""
        for backend in backends:
            model = f"{name}{group}-{backend}"
            version = output / model / "1"
            version.mkdir(parents=True)
            parameters = _parameters(manifest, number if group else None)
            text = config_text(model, backend, inputs, outputs, parameters)
            (output / model / "config.pbtxt").write_text(text, encoding="utf-8")
            _place_model(path, version, backend)
            models.append(model)
    return models


def config_text(
    model: str,
    backend: str,
    inputs: Sequence[TritonTensor],
    outputs: Sequence[TritonTensor],
    parameters: dict[str, str],
) -> str:
    """Return a config.pbtxt (protobuf text of Triton's ModelConfig).

    max_batch_size is 0, because the timestep has no batch axis: shapes are given in full.
    """
    triton_name, file, kind = BACKENDS[backend]
    lines = [
        f'name: "{model}"',
        f'backend: "{triton_name}"',
        f'default_model_filename: "{file}"',
        "max_batch_size: 0",
    ]
    for field, tensors in (("input", inputs), ("output", outputs)):
        for tensor in tensors:
            lines += [
                f"{field} {{",
                f'  name: "{tensor.name}"',
                f"  data_type: {tensor.data_type}",
                f"  dims: [ {', '.join(map(str, tensor.dims))} ]",
                "}",
            ]
    lines += ["instance_group {", "  count: 1", f"  kind: {kind}", "}"]
    for key, value in parameters.items():
        lines += ["parameters {", f'  key: "{key}"', f'  value {{ string_value: "{value}" }}', "}"]
    return "\n".join(lines) + "\n"


def _parameters(manifest: Manifest, group: int | None) -> dict[str, str]:
    """Return what a model says of itself; the timesteps are those that its input takes."""
    edges = [edge / manifest.signature.timestep_divisor for edge in manifest.groups.edges]
    high, low = (edges[0], edges[-1]) if group is None else (edges[group], edges[group + 1])
    below = "<" if group else "<="  # the first group has its upper edge too
    return {
        "accuquant.timesteps": f"{low:g} <= timestep {below} {high:g}",
        "accuquant.model_hash": manifest.model_hash,
    }


def _place_model(graph: Path, version: Path, backend: str) -> None:
    if backend == "tensorrt":
        note = (
            "Build the plan on the GPU that will run it, and put it here:\n\n"
            f"    accuquant build {graph.name} --saveEngine=model.plan\n"
        )
        (version / "README.txt").write_text(note, encoding="utf-8")
        return
    shutil.copyfile(graph, version / "model.onnx")
    for data in sorted(graph.parent.glob("*.onnx_data")):  # the graph names it relative to itself
        shutil.copyfile(data, version / data.name)


def _tensors(path: Path) -> tuple[list[TritonTensor], list[TritonTensor]]:
    graph = onnx.load(path, load_external_data=False).graph
    return [_tensor(value) for value in graph.input], [_tensor(value) for value in graph.output]


def _tensor(value: onnx.ValueInfoProto) -> TritonTensor:
    kind = value.type.tensor_type
    dims = tuple(d.dim_value if d.HasField("dim_value") else -1 for d in kind.shape.dim)
    element = int(kind.elem_type)
    if element not in _TYPES:
        raise ExportError(
            f"tensor '{value.name}'",
            got=f"type {onnx.TensorProto.DataType.Name(element)}",
            expected="float32, float16, int64 or int32",
            remedy="Export the pipeline again",
        )
    return TritonTensor(value.name, _TYPES[element], dims)
