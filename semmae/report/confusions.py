"""Who was taken for whom: an evaluation's table of predictions as a confusion matrix, and its worst mistakes.

- `read`: the table that `predictions.write` leaves.
- `matrix`: shares of each class, row by row; `confused`: the commonest pairs, where there are too many classes to draw.
- `worst`: the mistakes that the classifier was surest of.
- `heatmap`: the matrix as inline SVG, in the colors of the page.
"""

from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Float
from markupsafe import Markup, escape

CELL, LETTER = 30, 6.5  # pixels of a cell, and of a letter of a name
LETTERS, DRAWN = 16, 30  # of a name at most; classes beyond which nothing is drawn


def read(path: Path) -> pd.DataFrame:
    """key, actual, predicted (names), confidence: a row per sample."""
    return pd.read_csv(path, sep="\t", dtype={"key": str, "actual": str, "predicted": str}, keep_default_na=False)


def matrix(answers: pd.DataFrame, names: list[str]) -> Float[np.ndarray, "c c"]:
    """Row i: which share of the samples of class i was taken for each class; a class without samples is all 0."""
    place = {name: i for i, name in enumerate(names)}
    counts = np.zeros((len(names), len(names)))
    np.add.at(counts, (answers["actual"].map(place).to_numpy(), answers["predicted"].map(place).to_numpy()), 1)
    return counts / np.maximum(counts.sum(1, keepdims=True), 1)


def confused(answers: pd.DataFrame, count: int) -> list[tuple[str, str, int]]:
    """The commonest mistakes as (actual, predicted, how often)."""
    wrong = answers[answers["actual"] != answers["predicted"]]
    pairs = wrong.groupby(["actual", "predicted"]).size().sort_values(ascending=False, kind="stable")
    return [(actual, predicted, int(n)) for (actual, predicted), n in pairs.head(count).items()]


def worst(answers: pd.DataFrame, count: int) -> list[dict[str, str | float]]:
    """The mistakes made with the highest confidence, as rows of the table."""
    wrong = answers[answers["actual"] != answers["predicted"]]
    return wrong.sort_values("confidence", ascending=False, kind="stable").head(count).to_dict("records")


def heatmap(shares: Float[np.ndarray, "c c"], names: list[str]) -> Markup:
    """Rows: the true class, columns: what it was taken for; shares of 1 % and more are written out."""
    short = [name if len(name) <= LETTERS else f"{name[: LETTERS - 1]}…" for name in names]
    length = LETTER * max(map(len, short))
    margin = 12 + length
    marks = []
    for i, name in enumerate(map(escape, short)):
        middle = margin + CELL * (i + 0.5)
        marks.append(f'<text class="tick row" x="{margin - 6:.1f}" y="{middle + 4:.1f}">{name}</text>')
        turned = f'transform="rotate(-60 {middle:.1f} {margin - 8:.1f})"'
        marks.append(f'<text class="tick column" x="{middle:.1f}" y="{margin - 8:.1f}" {turned}>{name}</text>')
        for j, share in enumerate(shares[i]):
            x, y, kind = margin + CELL * j, margin + CELL * i, "right" if i == j else "wrong"
            box = f'x="{x + 1}" y="{y + 1}" width="{CELL - 2}" height="{CELL - 2}" rx="4"'
            marks.append(f'<rect class="{kind}" {box} style="--v: {share:.2f}"/>')
            if share >= 0.005:
                dark = " dark" if share > 0.55 else ""
                place = f'x="{x + CELL / 2}" y="{y + CELL / 2 + 4}"'
                marks.append(f'<text class="cell{dark}" {place}>{100 * share:.0f}</text>')
    side = margin + CELL * len(names)
    size = f'width="{side + length / 2:.0f}" height="{side:.0f}"'  # the last names lean out
    spoken = f"confusion matrix of {len(names)} classes"
    return Markup(f'<svg class="confusion" {size} role="img" aria-label="{spoken}">{"".join(marks)}</svg>')
