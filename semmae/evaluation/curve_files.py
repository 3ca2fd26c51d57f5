"""Learning curves of evaluations as files that `dvc plots` shows.

A folder has a file `<training>/<column>.tsv` for each column of each training, e.g. `encoder/loss.tsv`. Its columns
are `epoch` and the value. Epochs without a finite value have no row, because a chart cannot show them.
"""

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from semmae.core.atomic_files import atomic_write

History = Sequence[Mapping[str, float]]


def write(folder: Path, histories: Mapping[str, History]) -> None:
    """Replace the content of `folder` by the curves of these trainings.

    Args:
        histories: The rows of each training; each row has an `epoch`.
    """
    with atomic_write(folder) as temporary:
        temporary.mkdir()
        for training, history in histories.items():
            for column in dict.fromkeys(name for row in history for name in row if name != "epoch"):
                points = [(row["epoch"], row[column]) for row in history if math.isfinite(row.get(column, math.nan))]
                (temporary / training).mkdir(exist_ok=True)
                with open(temporary / training / f"{column}.tsv", "w", newline="") as file:
                    table = csv.writer(file, delimiter="\t", lineterminator="\n")
                    table.writerows([("epoch", column), *points])
        if not any(temporary.iterdir()):
            # Git does not store empty folders, so DVC would miss the output in a clone.
            (temporary / "none.json").write_text("[]\n")


def read(folder: Path, training: str) -> dict[str, list[tuple[float, float]]]:
    """Read the curves of a training.

    Returns:
        The points (epoch, value) of each column, in alphabetical order of the columns; empty without files.
    """
    curves = {}
    for path in sorted((folder / training).glob("*.tsv")):
        with open(path, newline="") as file:
            _, *rows = csv.reader(file, delimiter="\t")
        curves[path.stem] = [(float(epoch), float(value)) for epoch, value in rows]
    return curves
