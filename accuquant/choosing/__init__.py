"""Choosing: which precision and which lowering an export gets where the user names none, and why."""

from __future__ import annotations

from accuquant.choosing.export_for import export_onnx_for, export_pipeline_for

__all__ = ["export_onnx_for", "export_pipeline_for"]
