"""Charts as inline SVG, coloured by the CSS variables of the page so that dark mode needs no second copy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from xml.sax.saxutils import escape

_LEFT, _TOP, _BOTTOM = 58, 14, 42
#: Room to the right of a plot, for labels at the ends of lines.
_LABELS, _MARGIN = 118, 12
_LABEL_GAP = 16


@dataclass(frozen=True)
class Series:
    """A line: its label, its values, an optional band around it, and its CSS class."""

    label: str
    values: Sequence[float]
    style: str
    low: Sequence[float] = ()
    high: Sequence[float] = ()


@dataclass(frozen=True)
class _Plot:
    """Maps data to pixels of a drawing of `size`; `y` is logarithmic where `log` is set."""

    x_range: tuple[float, float]
    y_range: tuple[float, float]
    size: tuple[int, int]
    margin: int
    log: bool = False

    @property
    def right(self) -> float:
        """The x of the plot's right edge."""
        return self.size[0] - self.margin

    @property
    def bottom(self) -> float:
        """The y of the plot's lower edge."""
        return self.size[1] - _BOTTOM

    def x(self, value: float) -> float:
        low, high = self.x_range
        return _LEFT + (value - low) / ((high - low) or 1.0) * (self.right - _LEFT)

    def y(self, value: float) -> float:
        low, high = self.y_range
        if self.log:
            low, high, value = math.log10(low), math.log10(high), math.log10(max(value, low))
        return self.bottom - (value - low) / ((high - low) or 1.0) * (self.bottom - _TOP)


def line_chart(
    series: Sequence[Series],
    *,
    x_label: str,
    y_label: str,
    boundaries: Sequence[int] = (),
    size: tuple[int, int] = (960, 380),
    x_unit: float = 1.0,
) -> str:
    """Draw lines over steps 1..T, each of which stands for `x_unit`, on a logarithmic axis.

    `boundaries` are the step indices where a new step group begins; groups are shaded in turn. Values
    of zero are drawn at the lower edge.
    """
    steps = max(len(s.values) for s in series)
    positive = [v for s in series for v in (*s.values, *s.low, *s.high) if v > 0] or [1.0]
    plot = _Plot((1, steps), _log_range(min(positive), max(positive)), size, _LABELS, log=True)
    parts = [
        _shades(plot, boundaries, steps),
        _log_grid(plot),
        _step_axis(plot, steps, x_unit),
        *[_band(plot, s) for s in series if s.low],
        *[_line(plot, s) for s in series],
        _end_labels(plot, series),
        _axis_titles(plot, x_label, y_label),
    ]
    return _svg(plot, parts, f"{y_label} over {x_label}")


def histogram(
    values: Sequence[float],
    *,
    x_label: str,
    limit: float | None = None,
    median: float | None = None,
    size: tuple[int, int] = (480, 540),
) -> str:
    """Draw how many of `values` fall into each of about 16 bins, with lines at `limit` and `median`."""
    marks = [m for m in (limit, median) if m is not None]
    width = _nice_step((max(*values, *marks) - min(*values, *marks)) / 16 or 0.1)
    first = math.floor(min(*values, *marks) / width)
    counts = [0] * (math.floor(max(*values, *marks) / width) - first + 1)
    for value in values:
        counts[math.floor(value / width) - first] += 1
    x_range = (first * width, (first + len(counts)) * width)
    plot = _Plot(x_range, (0, max(counts) * 1.15), size, _MARGIN)
    bars = []
    for index, count in enumerate(counts):
        left, right = (first + index) * width, (first + index + 1) * width
        title = f"{left:g} to {right:g}: {count} images"
        bars.append(
            f'<rect class="bar" x="{plot.x(left) + 1:.1f}" y="{plot.y(count):.1f}" '
            f'width="{plot.x(right) - plot.x(left) - 2:.1f}" height="{plot.y(0) - plot.y(count):.1f}">'
            f"<title>{escape(title)}</title></rect>"
        )
    parts = [
        _count_grid(plot, max(counts)),
        *bars,
        _value_axis(plot, width, first, len(counts)),
        _mark(plot, median, "median", "mark", 0),
        _mark(plot, limit, "limit", "mark limit", 14),
        _axis_titles(plot, x_label, "images"),
    ]
    return _svg(plot, parts, f"Histogram of {x_label}")


def _svg(plot: _Plot, parts: Sequence[str], title: str) -> str:
    width, height = plot.size
    body = "".join(parts)
    return f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(title)}">{body}</svg>'


def _log_range(low: float, high: float) -> tuple[float, float]:
    bottom, top = math.log10(low), math.log10(high)
    margin = max(0.06 * (top - bottom), 0.1)
    return 10 ** (bottom - margin), 10 ** (top + margin)


def _shades(plot: _Plot, boundaries: Sequence[int], steps: int) -> str:
    edges = [1.0, *[b + 0.5 for b in boundaries if 0 < b < steps], float(steps)]
    rects = [
        f'<rect class="shade" x="{plot.x(a):.1f}" y="{_TOP}" width="{plot.x(b) - plot.x(a):.1f}" '
        f'height="{plot.bottom - _TOP}"/>'
        for index, (a, b) in enumerate(pairwise(edges))
        if index % 2
    ]
    return "".join(rects)


def _log_grid(plot: _Plot) -> str:
    low, high = plot.y_range
    decades = range(math.ceil(math.log10(low)), math.floor(math.log10(high)) + 1)
    ticks = [(10.0**d, f'10<tspan dy="-4">{_signed(d)}</tspan>') for d in decades]
    if len(ticks) < 2:
        ticks = [
            (m * 10.0**d, f"{m * 10.0**d:.3g}")
            for d in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
            for m in (1, 2, 5)
            if low <= m * 10.0**d <= high
        ]
    return "".join(_grid_line(plot, value, label) for value, label in ticks)


def _signed(exponent: int) -> str:
    return f"\u2212{-exponent}" if exponent < 0 else str(exponent)


def _count_grid(plot: _Plot, highest: int) -> str:
    step = max(1, round(_nice_step(highest / 4)))
    return "".join(_grid_line(plot, value, str(value)) for value in range(0, highest + 1, step))


def _grid_line(plot: _Plot, value: float, label: str) -> str:
    y = plot.y(value)
    return (
        f'<line class="grid" x1="{_LEFT}" x2="{plot.right}" y1="{y:.1f}" y2="{y:.1f}"/>'
        f'<text class="tick" x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{label}</text>'
    )


def _step_axis(plot: _Plot, steps: int, unit: float) -> str:
    stride = max(1, round(_nice_step(steps / 6)))
    ticks = sorted({1, *range(stride, steps + 1, stride)})
    return "".join(_x_tick(plot, value, f"{round(value * unit)}") for value in ticks)


def _value_axis(plot: _Plot, width: float, first: int, count: int) -> str:
    stride = max(1, math.ceil(count / 8))
    ticks = [index for index in range(first, first + count + 1) if index % stride == 0]
    return "".join(_x_tick(plot, index * width, f"{index * width:g}") for index in ticks)


def _x_tick(plot: _Plot, value: float, label: str) -> str:
    x, y = plot.x(value), plot.bottom
    return f'<text class="tick" x="{x:.1f}" y="{y + 19}" text-anchor="middle">{label}</text>'


def _points(plot: _Plot, values: Sequence[float]) -> list[str]:
    return [f"{plot.x(step):.1f},{plot.y(value):.1f}" for step, value in enumerate(values, 1)]


def _line(plot: _Plot, series: Series) -> str:
    return (
        f'<polyline class="line {series.style}" points="{" ".join(_points(plot, series.values))}">'
        f"<title>{escape(series.label)}</title></polyline>"
    )


def _band(plot: _Plot, series: Series) -> str:
    outline = _points(plot, series.low) + _points(plot, series.high)[::-1]
    return f'<polygon class="band {series.style}" points="{" ".join(outline)}"/>'


def _end_labels(plot: _Plot, series: Sequence[Series]) -> str:
    placed = sorted(((plot.y(s.values[-1]), s) for s in series), key=lambda pair: pair[0])
    labels, previous = [], -math.inf
    for y, entry in placed:
        previous = max(y, previous + _LABEL_GAP)
        x, style = plot.x(len(entry.values)) + 8, f"label {entry.style}"
        labels.append(
            f'<text class="{style}" x="{x:.1f}" y="{previous + 4:.1f}">{escape(entry.label)}</text>'
        )
    return "".join(labels)


def _mark(plot: _Plot, value: float | None, name: str, style: str, drop: int) -> str:
    if value is None:
        return ""
    x = plot.x(value)
    near_right = x > plot.right - 110
    anchor, offset = ("end", -6) if near_right else ("start", 6)
    return (
        f'<line class="{style}" x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP}" y2="{plot.bottom}"/>'
        f'<text class="label {style}" x="{x + offset:.1f}" y="{_TOP + 10 + drop}" text-anchor="{anchor}">'
        f"{name} {_short(value)}</text>"
    )


def _short(value: float) -> str:
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.3g}"


def _axis_titles(plot: _Plot, x_label: str, y_label: str) -> str:
    x, y, low = (_LEFT + plot.right) / 2, (_TOP + plot.bottom) / 2, plot.size[1] - 3
    return (
        f'<text class="title" x="{x:.0f}" y="{low}" text-anchor="middle">{escape(x_label)}</text>'
        f'<text class="title" x="13" y="{y:.0f}" text-anchor="middle" transform="rotate(-90 13 {y:.0f})">'
        f"{escape(y_label)}</text>"
    )


def _nice_step(raw: float) -> float:
    power = 10.0 ** math.floor(math.log10(raw))
    return next(m * power for m in (1, 2, 5, 10) if m * power >= raw * 0.999)
