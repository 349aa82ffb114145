"""The charts of an audit as inline SVG, coloured by the page's CSS."""

from __future__ import annotations

from collections.abc import Sequence
from xml.sax.saxutils import escape

from accuquant.audit.engine_audit import EngineAudit

#: Height of one bar, of the gap under it, and the room for the names at the left and totals at the right.
_BAR, _GAP, _LEFT, _RIGHT, _WIDTH = 26, 14, 200, 110, 960
_STRIP = 64


def stacked_bars(bars: Sequence[tuple[str, Sequence[tuple[str, float]]]], *, unit: str) -> str:
    """Draw one bar a name, its parts one after the other, all on one scale."""
    largest = max((sum(value for _, value in parts) for _, parts in bars), default=0.0) or 1.0
    scale = (_WIDTH - _LEFT - _RIGHT) / largest
    drawn = []
    for index, (name, parts) in enumerate(bars):
        y, x = index * (_BAR + _GAP), float(_LEFT)
        drawn.append(f'<text class="tick" x="0" y="{y + 18}">{escape(_shortened(name))}</text>')
        for part, value in parts:
            if value <= 0:
                continue
            drawn.append(
                f'<rect class="part {_style(part)}" x="{x:.1f}" y="{y}" width="{value * scale:.1f}" '
                f'height="{_BAR}"><title>{escape(part)}: {_figure(value)} {unit}</title></rect>'
            )
            if value * scale > 9 * len(part):
                drawn.append(
                    f'<text class="inside on-{_style(part)}" x="{x + value * scale / 2:.1f}" y="{y + 18}" '
                    f'text-anchor="middle">{escape(part)}</text>'
                )
            x += value * scale
        total = sum(value for _, value in parts)
        drawn.append(f'<text class="tick" x="{x + 8:.1f}" y="{y + 18}">{_figure(total)} {unit}</text>')
    height = len(bars) * (_BAR + _GAP)
    return _svg(height, drawn, f"{unit} by part")


def network_strip(audit: EngineAudit) -> str:
    """Draw every convolution and matrix product in the graph's order, as wide as its share of the work."""
    scale, x, drawn = _WIDTH / (audit.macs or 1), 0.0, []
    for item in audit.work:
        width = (item.macs or 0) * scale
        text = f"{item.layer}: {item.op_type}, {item.precision}, {(item.macs or 0) / 1e6:.1f} MMAC"
        drawn.append(
            f'<rect class="part {_style(item.precision)}" x="{x:.2f}" y="0" '
            f'width="{max(width - 0.6, 0.3):.2f}" height="{_STRIP}"><title>{escape(text)}</title></rect>'
        )
        x += width
    return _svg(_STRIP, drawn, "precision of every convolution and matrix product")


def _figure(value: float) -> str:
    """Return four digits, never as a power of ten: 5.559, 15050."""
    return f"{value:.0f}" if value >= 1000 else f"{value:.4g}"


def _style(part: str) -> str:
    return part.replace(" ", "-")


def _shortened(name: str) -> str:
    return name if len(name) <= 28 else f"{name[:12]}\u2026{name[-14:]}"


def _svg(height: int, parts: Sequence[str], title: str) -> str:
    return (
        f'<svg viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="{escape(title)}">{"".join(parts)}</svg>'
    )
