"""Writes the learning curves of a run in the layout of DVCLive, which `dvc plots` and `dvc exp show` read.

DVCLive itself writes the same files, but it needs a Git repository with a commit, and imports DVC.
"""

import csv
from pathlib import Path

from semmae.core.atomic_files import atomic_write, write_json


def write_history(folder: Path, stage: str, history: list[dict[str, float]]) -> None:
    """Replace the curves of a run: one TSV file per value, and metrics.json with the last value of each.

    Args:
        folder: The output.
        stage: The name of the stage; it precedes the names of the values.
        history: One row per epoch, with the key `epoch` (from 1) and the values of that epoch.
    """
    last = {name: value for row in history for name, value in row.items() if name != "epoch"}
    with atomic_write(folder) as temporary:
        for name in last:
            path = temporary / "plots" / "metrics" / stage / f"{name}.tsv"
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(path, "w", newline="") as file:
                points = [(int(row["epoch"]), row[name]) for row in history if name in row]
                csv.writer(file, delimiter="\t", lineterminator="\n").writerows([("step", name), *points])
        steps = {"step": int(history[-1]["epoch"])} if history else {}
        write_json(temporary / "metrics.json", ({stage: last} if last else {}) | steps)
