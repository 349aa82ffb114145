"""Export: from a float denoising network to ONNX with QuantizeLinear / DequantizeLinear, and a linter."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from accuquant.export.export_options import ExportOptions

# Not lazy: a module's own name would hide the function of that name once anybody imported the module.
from accuquant.export.lint.check_model import Violation, check_model

if TYPE_CHECKING:
    from accuquant.export.write.onnx_file import export_onnx
    from accuquant.export.write.pipeline_folder import export_pipeline

__all__ = ["ExportOptions", "Violation", "check_model", "export_onnx", "export_pipeline"]


def __getattr__(name: str) -> Any:
    """Load a stage when it is first used: checking a model needs no torch."""
    if name == "export_onnx":
        from accuquant.export.write.onnx_file import export_onnx

        return export_onnx
    if name == "export_pipeline":
        from accuquant.export.write.pipeline_folder import export_pipeline

        return export_pipeline
    raise AttributeError(name)
