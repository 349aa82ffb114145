"""Render an evaluation as one HTML page without external resources."""

from __future__ import annotations

import math
import os
from typing import Any

from accuquant._util.files import write_text
from accuquant.verification.report.charts import Series, histogram, line_chart
from accuquant.verification.report.html import engine_title, significant

from .branches import INT8, OTHER
from .metrics import METRICS, metric_of
from .result import Evaluation

TEMPLATE = "evaluation_page.html.j2"
_STYLES = {INT8: "engine", OTHER: "simulated"}
#: Figures at the top of the page.
_LEADING = 4


def write_page(evaluation: Evaluation, path: str | os.PathLike[str]) -> None:
    """Write the page of `evaluation` to `path`, atomically; it needs no other file."""
    write_text(path, render_page(evaluation))


def render_page(evaluation: Evaluation) -> str:
    """Return the page of `evaluation`."""
    import jinja2
    from markupsafe import Markup

    environment = jinja2.Environment(
        loader=jinja2.ChoiceLoader(
            [
                jinja2.PackageLoader("accuquant.evaluation", "."),
                jinja2.PackageLoader("accuquant.verification.report", "."),
            ]
        ),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"sig": significant, "engine": engine_title}
    counts = {name: Markup(svg) for name, svg in _count_charts(evaluation).items()}
    return environment.get_template(TEMPLATE).render(
        e=evaluation,
        rows=_rows(evaluation),
        leading=[row for row in _rows(evaluation) if row["branch"] == INT8][:_LEADING],
        sentences=evaluation.sentences,
        steps=Markup(_step_chart(evaluation)),
        counts=counts,
        histograms={name: Markup(svg) for name, svg in _histograms(evaluation).items()},
    )


def _rows(evaluation: Evaluation) -> list[dict[str, Any]]:
    return [
        {
            "title": metric_of(figure.metric).title,
            "unit": metric_of(figure.metric).unit,
            "branch": figure.branch,
            "label": evaluation.labels[figure.branch],
            "better": "higher" if metric_of(figure.metric).higher_is_better else "lower",
            **vars(figure.interval),
        }
        for figure in evaluation.figures
    ]


def _step_chart(evaluation: Evaluation) -> str:
    series = [
        Series(evaluation.labels[name], curve.median, _STYLES[name], curve.p10, curve.p90)
        for name, curve in evaluation.by_step.items()
    ]
    return line_chart(series, x_label="denoising step", y_label="latent error (MSE)")


def _count_charts(evaluation: Evaluation) -> dict[str, str]:
    """Return a chart for each metric whose values are positive; the first may be missing."""
    charts = {}
    for name, values in evaluation.by_count.items():
        finite = [value for value in values if math.isfinite(value)]
        if len(finite) > 1 and min(finite) > 0:
            title = METRICS[name].title
            padded = [value if math.isfinite(value) else finite[0] for value in values]
            charts[title] = line_chart(
                [Series(title, padded, "engine")],
                x_label="images",
                y_label=title,
                size=(480, 300),
                x_unit=evaluation.counts[-1] / len(evaluation.counts),
            )
    return charts


def _histograms(evaluation: Evaluation) -> dict[str, str]:
    charts = {}
    for name in ("psnr", "lpips", "clip", "image-reward"):
        values = evaluation.images.get(f"{name}.{INT8}")
        if values is not None and max(values) > min(values):
            metric = METRICS[name]
            label = f"{metric.title}, {metric.unit}" if metric.unit else metric.title
            median = sorted(values)[len(values) // 2]
            charts[metric.title] = histogram(values, x_label=label, median=median, size=(480, 360))
    return charts
