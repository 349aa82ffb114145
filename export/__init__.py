"""Export: from a float denoising network to ONNX with QuantizeLinear / DequantizeLinear, and a linter."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from accuquant.export.export_options import ExportOptions

# Not lazy: a module's own name would hide the function of that name once anybody imported the module.
from accuquant.export.lint.check_model import Violation, check_model

if TYPE_CHECKING:
    from accuquant.export.write.onnx_file import write_onnx
    from accuquant.export.write.pipeline_folder import write_pipeline

__all__ = ["ExportOptions", "Violation", "check_model", "write_onnx", "write_pipeline"]


def __getattr__(name: str) -> Any:
    """Load a stage when it is first used: checking a model needs no torch."""
    if name == "write_onnx":
        from accuquant.export.write.onnx_file import write_onnx

        return write_onnx
    if name == "write_pipeline":
        from accuquant.export.write.pipeline_folder import write_pipeline

        return write_pipeline
    raise AttributeError(name)
