"""A line chart as SVG, without a drawing library."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

_WIDTH, _HEIGHT = 640, 400
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 190, 16, 44
# Okabe and Ito's colours, told apart by colour-blind eyes as well.
_COLOURS = ("#000000", "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
_TICKS = 5


def line_chart(series: Mapping[str, Sequence[tuple[float, float]]], x_label: str, y_label: str) -> str:
    """An SVG picture of one line for each series of points (x, y), x rising, with a legend."""
    xs, ys = zip(*(point for points in series.values() for point in points), strict=True)
    low_x, high_x = _span(xs)
    low_y, high_y = _span(ys)

    def place(x: float, y: float) -> tuple[float, float]:
        wide, high = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM
        return (
            _LEFT + wide * (x - low_x) / (high_x - low_x),
            _TOP + high * (high_y - y) / (high_y - low_y),
        )

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" font-family="sans-serif"'
        f' font-size="12"><rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>'
    ]
    for tick in range(_TICKS + 1):
        x = low_x + (high_x - low_x) * tick / _TICKS
        y = low_y + (high_y - low_y) * tick / _TICKS
        (px, bottom), (left, py) = place(x, low_y), place(low_x, y)
        right, top = place(high_x, high_y)
        parts.append(
            f'<path d="M{left:.1f} {py:.1f}H{right:.1f}M{px:.1f} {bottom:.1f}V{top:.1f}" stroke="#ddd"/>'
        )
        parts.append(f'<text x="{px:.1f}" y="{bottom + 16:.1f}" text-anchor="middle">{x:.3g}</text>')
        parts.append(f'<text x="{left - 6:.1f}" y="{py + 4:.1f}" text-anchor="end">{y:.4g}</text>')
    for index, (name, points) in enumerate(series.items()):
        colour = _COLOURS[index % len(_COLOURS)]
        placed = [place(*point) for point in points]
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in placed)
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in placed]
        left, top = _WIDTH - _RIGHT + 16, _TOP + 12 + 20 * index
        parts.append(f'<path d="M{left} {top - 4}h20" stroke="{colour}" stroke-width="2"/>')
        parts.append(f'<text x="{left + 26}" y="{top}">{escape(name)}</text>')
    middle = (_LEFT + _WIDTH - _RIGHT) / 2, (_TOP + _HEIGHT - _BOTTOM) / 2
    parts.append(f'<text x="{middle[0]}" y="{_HEIGHT - 8}" text-anchor="middle">{escape(x_label)}</text>')
    parts.append(
        f'<text transform="translate(14 {middle[1]}) rotate(-90)" text-anchor="middle">{escape(y_label)}</text></svg>'
    )
    return "\n".join(parts) + "\n"


def _span(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    return (low, high) if high > low else (low - 0.5, high + 0.5)
