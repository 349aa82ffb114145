"""What is taken for a diffusers pipeline and is none: say what it is, and where to go."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from accuquant._util.facts import FactsError, read_json
from accuquant.errors import SourceError
from accuquant.manifest import MANIFEST_NAME, Manifest
from accuquant.pipelines.loading import weight_files

_ONNX_CLASS = "OnnxRuntimeModel"


def check_file(path: Path) -> None:
    """Raise SourceError for a path that is a file: say how it becomes a pipeline, if it can."""
    if not path.is_file():
        return
    remedy = "Check the path"
    kind = "a file"
    if path.suffix.lower() == ".gguf":
        kind = "a file of weights that were quantized"
        remedy = "Give the checkpoint that they were quantized from: AccuQuant quantizes itself"
    elif path.suffix.lower() == ".onnx":
        kind = "an ONNX file"
        remedy = (
            "Export it with `accuquant export`, which takes a float .onnx; calibration needs its pipeline"
        )
    raise SourceError(
        f"pipeline '{path}'",
        got=kind,
        expected="a folder with a model_index.json, a .safetensors file, or a Hub id",
        remedy=remedy,
    )


def check_folder(folder: Path, index: Mapping[str, Any]) -> None:
    """Raise SourceError for an exported folder of AccuQuant and for a pipeline of ONNX files."""
    if (folder / MANIFEST_NAME).is_file():
        source = Manifest.load(folder).source
        raise SourceError(
            f"pipeline '{folder}'",
            got="a folder that `accuquant export` wrote",
            expected="the trained pipeline that it was exported from",
            remedy=f"Give {source or 'that pipeline'} instead",
        )
    entries = [entry for entry in index.values() if isinstance(entry, list) and len(entry) == 2]
    if any(name == _ONNX_CLASS or str(library).split(".")[0] == "optimum" for library, name in entries):
        raise _is_onnx(folder)


def check_part(folder: Path) -> None:
    """Raise SourceError where a part holds no float weights: ONNX files alone, or quantized ones."""
    if any(folder.glob("*.onnx")) and not weight_files(folder):
        raise _is_onnx(folder.parent)
    method = _quantization(folder)
    if method is not None:
        raise SourceError(
            f"'{folder}'",
            got=f"weights that were quantized ({method})",
            expected="weights in float32, float16 or bfloat16, as they were trained",
            remedy="Give the checkpoint that they were quantized from: AccuQuant quantizes itself",
        )


def _quantization(folder: Path) -> str | None:
    """Return what a part's configuration says of its quantization, None where it is float or unreadable."""
    try:
        config = read_json(folder / "config.json")
    except (OSError, FactsError):
        return None  # who loads the part says what is wrong with it
    settings = config.get("quantization_config") if isinstance(config, dict) else None
    if settings is None:
        return None
    method = settings.get("quant_method") if isinstance(settings, dict) else None
    return f"quantization_config, method {method}" if isinstance(method, str) else "quantization_config"


def _is_onnx(folder: Path) -> SourceError:
    graphs = sorted(folder.glob("*/model.onnx"))
    network = next((path for path in graphs if path.parent.name in ("unet", "transformer")), None)
    return SourceError(
        f"pipeline '{folder}'",
        got="a pipeline of ONNX files",
        expected="a pipeline of PyTorch weights, which calibration simulates",
        remedy="Give the pipeline that it was exported from"
        + (f", or quantize its float graph: accuquant export {network} -o OUT.onnx" if network else ""),
    )
