"""Find the mistakes of a classifier in a table of its predictions, and draw its confusion matrix."""

from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Float
from markupsafe import Markup, escape

CELL_WIDTH, LETTER_WIDTH = 30, 6.5  # pixels
MAX_LETTERS = 16  # longer class names are shortened
MAX_CLASSES = 30  # the report draws no matrix with more classes


def read_predictions(path: Path) -> pd.DataFrame:
    """Read the table that `predictions.write` wrote: key, actual, predicted (class names), confidence."""
    return pd.read_csv(path, sep="\t", dtype={"key": str, "actual": str, "predicted": str}, keep_default_na=False)


def confusion_matrix(predictions: pd.DataFrame, names: list[str]) -> Float[np.ndarray, "c c"]:
    """Return the fraction of the samples of class i (row) that are predicted as class j (column).

    The row of a class without samples is zero.
    """
    positions = {name: i for i, name in enumerate(names)}
    actual, predicted = (predictions[column].map(positions).to_numpy() for column in ("actual", "predicted"))
    counts = np.zeros((len(names), len(names)))
    np.add.at(counts, (actual, predicted), 1)
    return counts / np.maximum(counts.sum(1, keepdims=True), 1)


def most_confused(predictions: pd.DataFrame, count: int) -> list[tuple[str, str, int]]:
    """Return the most frequent mistakes as (actual, predicted, number of samples)."""
    pairs = _mistakes(predictions).groupby(["actual", "predicted"]).size().sort_values(ascending=False, kind="stable")
    return [(actual, predicted, int(n)) for (actual, predicted), n in pairs.head(count).items()]


def most_confident_mistakes(predictions: pd.DataFrame, count: int) -> list[dict[str, str | float]]:
    """Return the mistakes with the highest confidence, as rows of the table."""
    ranked = _mistakes(predictions).sort_values("confidence", ascending=False, kind="stable")
    return ranked.head(count).to_dict("records")


def draw_matrix(fractions: Float[np.ndarray, "c c"], names: list[str]) -> Markup:
    """Draw a confusion matrix as inline SVG; cells that round to 1 % or more have a label."""
    short_names = [name if len(name) <= MAX_LETTERS else f"{name[: MAX_LETTERS - 1]}…" for name in names]
    name_width = LETTER_WIDTH * max(map(len, short_names))
    margin = 12 + name_width
    marks = []
    for i, name in enumerate(map(escape, short_names)):
        middle = margin + CELL_WIDTH * (i + 0.5)
        marks.append(f'<text class="tick row" x="{margin - 6:.1f}" y="{middle + 4:.1f}">{name}</text>')
        rotation = f'transform="rotate(-60 {middle:.1f} {margin - 8:.1f})"'
        marks.append(f'<text class="tick column" x="{middle:.1f}" y="{margin - 8:.1f}" {rotation}>{name}</text>')
        for j, fraction in enumerate(fractions[i]):
            x, y, kind = margin + CELL_WIDTH * j, margin + CELL_WIDTH * i, "right" if i == j else "wrong"
            box = f'x="{x + 1}" y="{y + 1}" width="{CELL_WIDTH - 2}" height="{CELL_WIDTH - 2}" rx="4"'
            marks.append(f'<rect class="{kind}" {box} style="--v: {fraction:.2f}"/>')
            if fraction >= 0.005:
                dark = " dark" if fraction > 0.55 else ""
                center = f'x="{x + CELL_WIDTH / 2}" y="{y + CELL_WIDTH / 2 + 4}"'
                marks.append(f'<text class="cell{dark}" {center}>{100 * fraction:.0f}</text>')
    side = margin + CELL_WIDTH * len(names)
    size = f'width="{side + name_width / 2:.0f}" height="{side:.0f}"'  # the rotated names extend to the right
    description = f"confusion matrix of {len(names)} classes"
    return Markup(f'<svg class="confusion" {size} role="img" aria-label="{description}">{"".join(marks)}</svg>')


def _mistakes(predictions: pd.DataFrame) -> pd.DataFrame:
    return predictions[predictions["actual"] != predictions["predicted"]]
