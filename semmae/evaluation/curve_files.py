"""Learning curves as files that `dvc plots` shows: <line>/<column>.tsv for every column of every training of a stage.

A line is what was trained, `encoder` or what stands beside it. A file has the columns `epoch` and its own, with the
epochs that have a value; one that is not finite is left out, since no chart can show it.
"""

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from semmae.core.atomic_files import atomic_write

History = Sequence[Mapping[str, float]]


def write(folder: Path, histories: Mapping[str, History]) -> None:
    """Let `folder` hold the curves of these trainings and no others; a row of a history has an `epoch`."""
    with atomic_write(folder) as temporary:
        temporary.mkdir()
        for line, history in histories.items():
            for column in dict.fromkeys(name for row in history for name in row if name != "epoch"):
                points = [(row["epoch"], row[column]) for row in history if math.isfinite(row.get(column, math.nan))]
                (temporary / line).mkdir(exist_ok=True)
                with open(temporary / line / f"{column}.tsv", "w", newline="") as file:
                    table = csv.writer(file, delimiter="\t", lineterminator="\n")
                    table.writerows([("epoch", column), *points])
        if not any(temporary.iterdir()):
            (temporary / "none.json").write_text("[]\n")  # Git keeps no empty folder, and DVC would miss it in a clone


def read(folder: Path, line: str) -> dict[str, list[tuple[float, float]]]:
    """The curves of a line by their columns in alphabetical order, as points (epoch, value); {}: there are none."""
    found = {}
    for path in sorted((folder / line).glob("*.tsv")):
        with open(path, newline="") as file:
            _, *rows = csv.reader(file, delimiter="\t")
        found[path.stem] = [(float(epoch), float(value)) for epoch, value in rows]
    return found
