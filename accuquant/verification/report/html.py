"""Render a report as one HTML page without external resources."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import Any

from accuquant._util.files import write_text
from accuquant.verification.report.charts import Series, histogram, line_chart
from accuquant.verification.report.report import Comparison, LayerSensitivity, Report

TEMPLATE = "report.html.j2"
#: Rows shown before the rest folds away.
_TOP_LAYERS = 12
_ENGINE_TITLES = {
    "openvino": "OpenVINO",
    "openvino-gpu": "OpenVINO (GPU)",
    "openvino-npu": "OpenVINO (NPU)",
    "onnxruntime": "ONNX Runtime",
    "onnxruntime-cuda": "ONNX Runtime (CUDA)",
    "onnxruntime-tensorrt": "ONNX Runtime (TensorRT)",
    "onnxruntime-openvino": "ONNX Runtime (OpenVINO)",
}


def write_html(report: Report, path: str | os.PathLike[str]) -> None:
    """Write the page of `report` to `path`, atomically; it needs no other file."""
    write_text(path, render(report))


def render(report: Report) -> str:
    """Return the page of `report`."""
    import jinja2
    from markupsafe import Markup

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("accuquant.verification.report", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "sig": significant,
        "measured": with_unit,
        "bytes": byte_size,
        "engine": engine_title,
    }
    charts = {name: Markup(svg) for name, svg in _charts(report).items()}
    return environment.get_template(TEMPLATE).render(
        r=report,
        charts=charts,
        figures=_key_figures(report),
        loss_rows=_loss_rows(report),
        sensitivity=_bars(report.sensitivity[:_TOP_LAYERS]),
        layers=sorted(report.layers or (), key=lambda layer: -layer.share)[:_TOP_LAYERS],
        lead=_lead(report),
    )


def significant(value: float, digits: int = 3) -> str:
    """Format a number for people: 0.0123, 4.56, 1230, 1.2 x 10^-5 with a true multiplication sign."""
    if not math.isfinite(value):
        return "not finite"
    if value == 0 or 1e-3 <= abs(value) < 1e5:
        decimals = digits - 1 - math.floor(math.log10(abs(value))) if value else 0
        return f"{value:.{max(decimals, 0)}f}"
    mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
    raised = str(int(exponent)).translate(
        str.maketrans("-0123456789", "\u207b\u2070\u00b9\u00b2\u00b3\u2074\u2075\u2076\u2077\u2078\u2079")
    )
    return f"{mantissa}\u2009\u00d7\u200910{raised}"


def with_unit(value: float, unit: str) -> str:
    """Format a measured value or a limit; levels are whole numbers."""
    return f"{value:g} {unit}" if unit == "levels" else f"{significant(value)} {unit}".rstrip()


def byte_size(value: float) -> str:
    """Format bytes as kB, MB or GB (powers of 1000)."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= size:
            return f"{value / size:.3g} {unit}" if value < 1000 * size else f"{value / size:.0f} {unit}"
    return f"{value:.0f} B"


def engine_title(name: str) -> str:
    """Return the name that an engine's makers write."""
    return _ENGINE_TITLES.get(name, name)


def _charts(report: Report) -> dict[str, str]:
    accumulated = [
        _series("engine", report.fidelity, "engine"),
        _series("simulation", report.quantization, "simulated"),
        Series("lowering only", report.lowering.by_step.median, "lowering"),
    ]
    if report.fidelity.step_error:
        accumulated.append(Series("one step alone", report.fidelity.step_error.median, "single"))
    limit = next((c.limit for c in report.verdict.checks if c.unit == "dB" and "FP32" in c.name), None)
    return {
        "accumulation": line_chart(
            accumulated,
            x_label="denoising step",
            y_label="latent error (MSE)",
            boundaries=_group_boundaries(report),
        ),
        "psnr": histogram(
            report.fidelity.psnr,
            x_label="PSNR against FP32, dB",
            limit=limit,
            median=report.fidelity.summary["psnr"].median,
        ),
    }


def _series(label: str, comparison: Comparison, style: str) -> Series:
    curve = comparison.by_step
    band = (curve.p10, curve.p90) if style == "engine" else ((), ())
    return Series(label, curve.median, style, *band)


def _group_boundaries(report: Report) -> list[int]:
    """Return the indices of the steps that are the first of their group."""

    def group(timestep: float) -> int:
        return sum(timestep < g.end for g in report.groups)

    members = [group(t) for t in report.timesteps]
    return [i for i in range(1, len(members)) if members[i] != members[i - 1]]


def _key_figures(report: Report) -> list[dict[str, str]]:
    psnr = report.fidelity.summary["psnr"]
    figures = [
        {"value": f"{psnr.median:.1f}", "unit": "dB", "label": "median PSNR", "note": f"mean {psnr.mean:.1f}"}
    ]
    if report.fid:
        figures.append(
            {
                "value": significant(report.fid.engine),
                "unit": "",
                "label": "FID2FP32",
                "note": f"{report.fid.extractor} features",
            }
        )
    figures += _size_figure(report) + _speed_figure(report)
    if "int8_mac_share" in report.placement:
        share = 100 * report.placement["int8_mac_share"]
        layers = report.placement["int8_layers"]
        figures.append(
            {
                "value": f"{share:.0f}",
                "unit": "%",
                "label": "of operations in int8",
                "note": f"{layers} layers{_run(report)}",
            }
        )
    return figures


def _run(report: Report) -> str:
    share = report.placement.get("int8_share_run")
    return "" if share is None or math.isnan(share) else f", {100 * share:.0f} % of it ran in int8 here"


def _size_figure(report: Report) -> list[dict[str, str]]:
    before, after = report.sizes.get("fp32_weights"), report.sizes.get("engine_files")
    if not before or not after:
        return []
    note = f"{byte_size(before)} to {byte_size(after)}"
    return [{"value": f"{before / after:.1f}", "unit": "\u00d7", "label": "smaller", "note": note}]


def _speed_figure(report: Report) -> list[dict[str, str]]:
    """Compare the quantized network with the last FP32 one of the table: the same engine's where timed."""
    baseline = next((x for x in reversed(report.latencies) if x.name.startswith("FP32 ")), None)
    quantized = next((x for x in report.latencies if x.name.startswith(("int8 ", "fp8 "))), None)
    if baseline is None or quantized is None:
        return []
    ratio = baseline.median_ms / quantized.median_ms
    levels = quantized.name.split(" ")[0]
    label = f"the speed of {engine_title(baseline.name.removeprefix('FP32 '))}"
    note = f"FP32 {significant(baseline.median_ms)} ms, {levels} {significant(quantized.median_ms)} ms"
    return [{"value": f"{ratio:.1f}", "unit": "\u00d7", "label": label, "note": note}]


def _loss_rows(report: Report) -> list[dict[str, Any]]:
    columns = {
        "total": report.fidelity.summary,
        "quantization": report.quantization.summary,
        "lowering": report.lowering.summary,
    }
    names = {
        "psnr": ("PSNR, dB", "minimum"),
        "ssim": ("SSIM", "minimum"),
        "cosine": ("Cosine", "minimum"),
        "latent_mse": ("Latent MSE", "maximum"),
        "worst_frame_psnr": ("PSNR of the worst frame, dB", "minimum"),
    }
    names = {key: name for key, name in names.items() if key in report.fidelity.summary}
    digits = {"psnr": "{:.1f}", "ssim": "{:.3f}", "cosine": "{:.4f}", "worst_frame_psnr": "{:.1f}"}

    def show(metric: str, value: float) -> str:
        return digits[metric].format(value) if metric in digits else significant(value)

    return [
        {
            "name": name,
            "cells": [
                {
                    "median": show(key, summary[key].median),
                    "mean": show(key, summary[key].mean),
                    "worst": show(key, getattr(summary[key], worst)),
                }
                for summary in columns.values()
            ],
        }
        for key, (name, worst) in names.items()
    ]


def _bars(layers: Sequence[LayerSensitivity]) -> list[dict[str, Any]]:
    largest = max((layer.error for layer in layers), default=0.0) or 1.0
    return [
        {"name": layer.name, "error": layer.error, "width": 100 * layer.error / largest, "int8": layer.int8}
        for layer in layers
    ]


def _lead(report: Report) -> str:
    """Return one sentence that says what the figures mean."""
    quantization = report.quantization.summary["latent_mse"].median
    lowering = report.lowering.summary["latent_mse"].median
    source = (
        f"The engine is {lowering / quantization:.1f} times the quantization error away from its simulation."
        if lowering > 0.1 * quantization > 0
        else "The loss is that of quantization; the engine adds next to nothing to it."
    )
    failed = sum(not check.passed for check in report.verdict.checks)
    count = len(report.verdict.checks)
    outcome = f"All {count} checks passed." if not failed else f"{failed} of {count} checks failed."
    if not count:
        outcome = "Every threshold was off: the figures below were measured, and nothing was judged."
    return f"{outcome} {source}"
