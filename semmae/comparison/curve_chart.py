"""Draw the curves of several runs in one chart, as inline SVG. The style sheet of the page sets colors and dashes."""

from collections.abc import Sequence
from typing import NamedTuple

from markupsafe import Markup, escape

from semmae.report.charts import (
    BOTTOM,
    HEIGHT,
    LEFT,
    TOP,
    Points,
    decimal_places,
    format_value,
    padded_range,
    round_ticks,
)

WIDTH, RIGHT = 320, 308


class Curve(NamedTuple):
    """The curve of a run.

    Attributes:
        setting: The label of its setting.
        style: The number of the style of the setting.
        points: Pairs (epoch, value).
    """

    setting: str
    style: int
    points: Points


def draw_curves(curves: Sequence[Curve], *, title: str, percent: bool) -> Markup:
    """Draw curves over epochs with labeled axes and a marker at the end of each; a single point is a marker.

    Args:
        curves: The curves, of the same value in different runs.
        title: The name of the value; it is escaped.
        percent: Print the values, which are fractions, in percent.
    """
    points = [point for curve in curves for point in curve.points]
    low, high = padded_range([value for _, value in points])
    value_ticks = round_ticks(low, high)
    end = max(epoch for epoch, _ in points)
    epoch_ticks = [tick for tick in round_ticks(0, end) if tick == int(tick)]
    low, high, end = min(low, value_ticks[0]), max(high, value_ticks[-1]), max(epoch_ticks[-1], end)
    digits = decimal_places(value_ticks)

    def x(epoch: float) -> float:
        return LEFT + (RIGHT - LEFT) * epoch / end

    def y(value: float) -> float:
        return BOTTOM - (BOTTOM - TOP) * (value - low) / (high - low)

    marks = [
        *(f'<line class="rule" x1="{LEFT}" x2="{RIGHT}" y1="{y(v):.1f}" y2="{y(v):.1f}"/>' for v in value_ticks),
        *(
            f'<text class="tick row" x="{LEFT - 7}" y="{y(v) + 4:.1f}">{format_value(v, percent, digits)}</text>'
            for v in value_ticks
        ),
        *(f'<text class="tick" x="{x(epoch):.1f}" y="{BOTTOM + 16}">{epoch:g}</text>' for epoch in epoch_ticks),
        f'<text class="tick" x="{(LEFT + RIGHT) / 2}" y="{BOTTOM + 31}">epoch</text>',
        f'<text class="title" x="0" y="14">{escape(title)}</text>',
    ]
    for curve in curves:
        line = " ".join(f"{x(epoch):.1f},{y(value):.1f}" for epoch, value in curve.points)
        last_epoch, last_value = curve.points[-1]
        marks.append(
            f'<g class="s{curve.style}"><title>{escape(curve.setting)}</title><polyline class="curve" points="{line}"/>'
            f"{draw_marker(curve.style, x(last_epoch), y(last_value))}</g>"
        )
    last = ", ".join(f"{curve.setting} {format_value(curve.points[-1][1], percent, None)}" for curve in curves)
    description = escape(f"{title} over {end:g} epochs; last values: {last}")
    size = f'viewBox="0 0 {WIDTH} {HEIGHT}"'
    return Markup(f'<svg class="chart" {size} role="img" aria-label="{description}">{"".join(marks)}</svg>')


def draw_marker(style: int, x: float, y: float) -> Markup:
    """Draw the marker of a style: a circle, square, triangle or diamond around (x, y)."""
    shapes = (
        f"M{x - 4:.1f} {y:.1f}a4 4 0 1 0 8 0a4 4 0 1 0 -8 0z",
        f"M{x - 3.6:.1f} {y - 3.6:.1f}h7.2v7.2h-7.2z",
        f"M{x:.1f} {y - 4.6:.1f}l4.6 8h-9.2z",
        f"M{x:.1f} {y - 5:.1f}l5 5l-5 5l-5 -5z",
    )
    return Markup(f'<path class="marker" d="{shapes[style % len(shapes)]}"/>')
