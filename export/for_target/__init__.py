"""Choosing: which precision and which lowering an export gets where the user names none, and why."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from accuquant.export.for_target.for_onnx import export_onnx_for
    from accuquant.export.for_target.for_pipeline import export_pipeline_for

__all__ = ["export_onnx_for", "export_pipeline_for"]


def __getattr__(name: str) -> Any:
    """Load an entry point when it is first used: an .onnx needs no torch."""
    if name == "export_onnx_for":
        from accuquant.export.for_target.for_onnx import export_onnx_for

        return export_onnx_for
    if name == "export_pipeline_for":
        from accuquant.export.for_target.for_pipeline import export_pipeline_for

        return export_pipeline_for
    raise AttributeError(name)
