"""Line charts as inline SVG: colors come from the page's style sheet, so they suit light and dark; no script, no font.

- `columns`: the curves in a run's history, the values that some epochs lack left out.
- `chart`: one curve over epochs, labeled axes, its last value beside its end.
- `ticks`: round numbers that span a range.
"""

import math

from markupsafe import Markup, escape

WIDTH, HEIGHT = 270, 180
LEFT, RIGHT, TOP, BOTTOM = 44, 208, 30, 146  # of the plotting area; right of it there is room for the last value

Points = list[tuple[float, float]]


def columns(history: list[dict[str, float]]) -> dict[str, Points]:
    """Each column of the history but `epoch` as points (epoch, value); the loss first, then in order of appearance."""
    names = dict.fromkeys(name for row in history for name in row if name != "epoch")
    ordered = sorted(names, key=lambda name: name != "loss")
    return {name: [(row["epoch"], row[name]) for row in history if name in row] for name in ordered}


def chart(points: Points, *, title: str, percent: bool) -> Markup:
    """A curve (a dot, where there is one point only) from epoch 0 to the last; `percent` for values that are shares."""
    (low, high), last = _range([y for _, y in points]), points[-1]
    rows, epochs = ticks(low, high), [tick for tick in ticks(0, max(x for x, _ in points)) if tick == int(tick)]
    low, high, end = min(low, rows[0]), max(high, rows[-1]), max(epochs[-1], last[0])

    def x(epoch: float) -> float:
        return LEFT + (RIGHT - LEFT) * epoch / end

    def y(value: float) -> float:
        return BOTTOM - (BOTTOM - TOP) * (value - low) / (high - low)

    line = " ".join(f"{x(epoch):.1f},{y(value):.1f}" for epoch, value in points)
    digits, final = _digits(rows), _said(last[1], percent, None)
    marks = [
        *(f'<line class="rule" x1="{LEFT}" x2="{RIGHT}" y1="{y(v):.1f}" y2="{y(v):.1f}"/>' for v in rows),
        *(f'<text class="tick row" x="{LEFT - 7}" y="{y(v) + 4:.1f}">{_said(v, percent, digits)}</text>' for v in rows),
        *(f'<text class="tick" x="{x(epoch):.1f}" y="{BOTTOM + 16}">{epoch:g}</text>' for epoch in epochs),
        f'<text class="tick" x="{(LEFT + RIGHT) / 2}" y="{BOTTOM + 31}">epoch</text>',
        f'<polyline class="curve" points="{line}"/>',
        f'<circle class="end" cx="{x(last[0]):.1f}" cy="{y(last[1]):.1f}" r="3.5"/>',
        f'<text class="last" x="{x(last[0]) + 8:.1f}" y="{y(last[1]) + 4:.1f}">{final}</text>',
        f'<text class="title" x="0" y="14">{escape(title)}</text>',
    ]
    spoken = escape(f"{title} over {last[0]:g} epochs, at the end {final}")
    return Markup(
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{spoken}">{"".join(marks)}</svg>'
    )


def ticks(low: float, high: float, *, most: int = 5) -> list[float]:
    """A few multiples of 1, 2 or 5 times a power of ten, from `low` or the next below to `high` or the next above."""
    power = 10.0 ** math.floor(math.log10((high - low) / most))
    step = next(m * power for m in (1, 2, 5, 10) if m * power * (most - 0.001) >= high - low)
    return [i * step for i in range(math.floor(low / step), math.ceil(high / step) + 1)]


def _range(values: list[float]) -> tuple[float, float]:
    """The range of the values, widened where it is nothing."""
    low, high = min(values), max(values)
    air = max(abs(high), 1e-6) * 0.1 if high - low < 1e-9 * max(1.0, abs(high)) else 0.0
    return low - air, high + air


def _digits(rows: list[float]) -> int:
    """Decimal places that tell neighboring ticks apart."""
    return max(0, -math.floor(math.log10(rows[1] - rows[0]) + 1e-9))


def _said(value: float, percent: bool, digits: int | None) -> str:
    """With so many decimal places (of the value, also where it is said in percent); None: three significant digits."""
    if percent:
        value, digits = 100 * value, None if digits is None else max(0, digits - 2)
    number = f"{value:.3g}" if digits is None else f"{value:.{digits}f}"
    return number + (" %" if percent else "")
