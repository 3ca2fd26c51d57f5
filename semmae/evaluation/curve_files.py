"""Learning curves of evaluations as files that `dvc plots` shows.

A folder has a file `<training>/<column>.tsv` for each column of each training, e.g. `encoder/loss.tsv`. Its columns
are `epoch` and the value. Epochs without a finite value have no row, since a chart cannot show them.
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
        histories: For each training its rows; each row has an `epoch`.
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
            (temporary / "none.json").write_text("[]\n")  # Git keeps no empty folder, and DVC would miss it in a clone


def read(folder: Path, training: str) -> dict[str, list[tuple[float, float]]]:
    """Read the curves of a training.

    Returns:
        For each column, in alphabetical order, its points (epoch, value). Empty, if there are no files.
    """
    curves = {}
    for path in sorted((folder / training).glob("*.tsv")):
        with open(path, newline="") as file:
            _, *rows = csv.reader(file, delimiter="\t")
        curves[path.stem] = [(float(epoch), float(value)) for epoch, value in rows]
    return curves
