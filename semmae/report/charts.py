"""Draw line charts as inline SVG. The style sheet of the page sets colors and fonts."""

import math

from markupsafe import Markup, escape

WIDTH, HEIGHT = 270, 180
LEFT, RIGHT, TOP, BOTTOM = 44, 208, 30, 146  # the plotting area; the last value is printed to the right of it

Points = list[tuple[float, float]]


def curves_of_history(history: list[dict[str, float]]) -> dict[str, Points]:
    """Return each column of a history except `epoch` as points (epoch, value).

    The loss comes first, then the other columns in order of appearance. Epochs without a value are left out.
    """
    names = dict.fromkeys(name for row in history for name in row if name != "epoch")
    ordered = sorted(names, key=lambda name: name != "loss")
    return {name: [(row["epoch"], row[name]) for row in history if name in row] for name in ordered}


def draw_chart(points: Points, *, title: str, percent: bool) -> Markup:
    """Draw a curve over epochs with labeled axes and its last value; a single point becomes a dot.

    Args:
        points: Pairs (epoch, value).
        title: The name of the value; it is escaped.
        percent: Print the values, which are fractions, in percent.
    """
    (low, high), (last_epoch, last_value) = padded_range([value for _, value in points]), points[-1]
    value_ticks = round_ticks(low, high)
    epoch_ticks = [tick for tick in round_ticks(0, max(epoch for epoch, _ in points)) if tick == int(tick)]
    low, high, end = min(low, value_ticks[0]), max(high, value_ticks[-1]), max(epoch_ticks[-1], last_epoch)
    digits = decimal_places(value_ticks)

    def x(epoch: float) -> float:
        return LEFT + (RIGHT - LEFT) * epoch / end

    def y(value: float) -> float:
        return BOTTOM - (BOTTOM - TOP) * (value - low) / (high - low)

    def label(value: float) -> str:
        return format_value(value, percent, digits)

    line = " ".join(f"{x(epoch):.1f},{y(value):.1f}" for epoch, value in points)
    final = format_value(last_value, percent, None)
    marks = [
        *(f'<line class="rule" x1="{LEFT}" x2="{RIGHT}" y1="{y(v):.1f}" y2="{y(v):.1f}"/>' for v in value_ticks),
        *(f'<text class="tick row" x="{LEFT - 7}" y="{y(v) + 4:.1f}">{label(v)}</text>' for v in value_ticks),
        *(f'<text class="tick" x="{x(epoch):.1f}" y="{BOTTOM + 16}">{epoch:g}</text>' for epoch in epoch_ticks),
        f'<text class="tick" x="{(LEFT + RIGHT) / 2}" y="{BOTTOM + 31}">epoch</text>',
        f'<polyline class="curve" points="{line}"/>',
        f'<circle class="end" cx="{x(last_epoch):.1f}" cy="{y(last_value):.1f}" r="3.5"/>',
        f'<text class="last" x="{x(last_epoch) + 8:.1f}" y="{y(last_value) + 4:.1f}">{final}</text>',
        f'<text class="title" x="0" y="14">{escape(title)}</text>',
    ]
    description = escape(f"{title} over {last_epoch:g} epochs, last value {final}")
    size = f'viewBox="0 0 {WIDTH} {HEIGHT}"'
    return Markup(f'<svg class="chart" {size} role="img" aria-label="{description}">{"".join(marks)}</svg>')


def round_ticks(low: float, high: float, *, max_intervals: int = 5) -> list[float]:
    """Return a few multiples of 1, 2 or 5 times a power of ten that enclose the range from `low` to `high`."""
    power = 10.0 ** math.floor(math.log10((high - low) / max_intervals))
    step = next(m * power for m in (1, 2, 5, 10) if m * power * (max_intervals - 0.001) >= high - low)
    return [i * step for i in range(math.floor(low / step), math.ceil(high / step) + 1)]


def padded_range(values: list[float]) -> tuple[float, float]:
    """Return minimum and maximum; if they are equal, widen the range by 10 % of the value on each side."""
    low, high = min(values), max(values)
    padding = max(abs(high), 1e-6) * 0.1 if high - low < 1e-9 * max(1.0, abs(high)) else 0.0
    return low - padding, high + padding


def decimal_places(ticks: list[float]) -> int:
    """Return the number of decimal places at which neighboring ticks differ."""
    return max(0, -math.floor(math.log10(ticks[1] - ticks[0]) + 1e-9))


def format_value(value: float, percent: bool, digits: int | None) -> str:
    """Format a value.

    Args:
        value: A number, or a fraction if `percent` is true.
        percent: Print the fraction in percent.
        digits: Decimal places of `value`; None: three significant digits.
    """
    if percent:
        value, digits = 100 * value, None if digits is None else max(0, digits - 2)
    number = f"{value:.3g}" if digits is None else f"{value:.{digits}f}"
    return number + (" %" if percent else "")
