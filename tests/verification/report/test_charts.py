from __future__ import annotations

import re
from itertools import pairwise
from typing import Any
from xml.etree import ElementTree

import pytest

from accuquant.verification.report.charts import Series, histogram, line_chart


def elements(svg: str, tag: str, style: str = "") -> list[ElementTree.Element]:
    found = ElementTree.fromstring(svg).iter(tag)
    return [e for e in found if style in e.get("class", "").split() or not style]


def points(element: ElementTree.Element) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in re.findall(r"([\d.]+),([\d.]+)", element.get("points", ""))]


def chart(values: list[float], **options: Any) -> str:
    return line_chart([Series("engine", values, "engine")], x_label="step", y_label="error", **options)


def test_decades_are_equally_far_apart() -> None:
    (line,) = elements(chart([1e-6, 1e-4, 1e-2]), "polyline")
    (x1, y1), (x2, y2), (x3, y3) = points(line)
    assert x2 - x1 == pytest.approx(x3 - x2, abs=0.2)
    assert y1 - y2 == pytest.approx(y2 - y3, abs=0.2)
    assert y1 > y2


def test_zeros_lie_at_the_lower_edge() -> None:
    (line,) = elements(chart([0.0, 1e-3, 1e-2]), "polyline")
    heights = [y for _, y in points(line)]
    assert heights[0] == max(heights)


def test_identical_networks_can_be_drawn() -> None:
    (line,) = elements(chart([0.0, 0.0]), "polyline")
    assert len(points(line)) == 2


def test_every_second_group_is_shaded() -> None:
    svg = chart([1e-3] * 10, boundaries=[2, 5, 8])
    assert len(elements(svg, "rect", "shade")) == 2


def test_labels_of_meeting_lines_do_not_overlap() -> None:
    series = [Series(name, [1e-5, 1e-3], "engine") for name in "abc"]
    labels = elements(line_chart(series, x_label="step", y_label="error"), "text", "label")
    heights = sorted(float(label.get("y", "")) for label in labels)
    assert min(b - a for a, b in pairwise(heights)) >= 15


def test_labels_are_escaped() -> None:
    series = [Series("a < b & c", [1.0, 2.0], "engine")]
    (label,) = elements(line_chart(series, x_label="x", y_label="y"), "text", "label")
    assert label.text == "a < b & c"


def test_a_histogram_counts_every_value() -> None:
    values = [30.1, 30.2, 35.0, 41.9, 42.0]
    bars = elements(histogram(values, x_label="PSNR"), "rect", "bar")
    counts = [int(re.findall(r"(\d+) images", bar[0].text or "")[0]) for bar in bars]
    assert sum(counts) == 5
    assert max(counts) == 2


def test_a_histogram_marks_limit_and_median() -> None:
    svg = histogram([40.0, 41.0], x_label="PSNR", limit=30.0, median=40.5)
    assert [text.text for text in elements(svg, "text", "label")] == ["median 40.5", "limit 30.0"]


def test_equal_values_can_be_drawn() -> None:
    svg = histogram([100.0, 100.0], x_label="PSNR")
    assert len(elements(svg, "rect", "bar")) == 1
