"""Choosing: which precision and which lowering an export gets where the user names none, and why."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from accuquant.export.for_target.for_onnx import export_onnx
    from accuquant.export.for_target.for_pipeline import export_pipeline

__all__ = ["export_onnx", "export_pipeline"]


def __getattr__(name: str) -> Any:
    """Load an entry point when it is first used: an .onnx needs no torch."""
    if name == "export_onnx":
        from accuquant.export.for_target.for_onnx import export_onnx

        return export_onnx
    if name == "export_pipeline":
        from accuquant.export.for_target.for_pipeline import export_pipeline

        return export_pipeline
    raise AttributeError(name)
