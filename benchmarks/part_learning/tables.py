"""Markdown tables of the scores: methods by scores, and paired differences between the learner and other methods."""

from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from statistics import fmean, stdev

from benchmarks.part_learning.methods import METHODS
from benchmarks.part_learning.scoring import ScoreRow, read_rows

SCORES = {
    "nmi_fg": "NMI", "ari_fg": "ARI", "miou": "part mIoU", "fg_iou": "foreground IoU", "place": "place",
    "labels": "labels", "evidence": "evidence",
}  # fmt: skip
LEARNED = "learned"
COMPARED = (*(method for method in METHODS if method.startswith("learned") and method != LEARNED), "plain k-means")
PAIRED = ("nmi_fg", "ari_fg", "miou", "fg_iou", "place")


def format_tables(paths: list[Path], teachers: list[str] | None) -> Iterator[str]:
    """Yield one table per dataset, number of parts and step of noise.

    Args:
        paths: CSV files of `scoring.score_teachers`.
        teachers: Names of the teachers whose rows count; None for all teachers.
    """
    rows = [row for path in paths for row in read_rows(path) if teachers is None or row.teacher in teachers]

    def setting(row: ScoreRow) -> tuple[str, int, float]:
        return row.dataset, row.parts, row.noise

    for (dataset, parts, noise), group in groupby(sorted(rows, key=setting), key=setting):
        of_setting = list(group)
        names = ", ".join(sorted({row.teacher for row in of_setting}))
        yield f"{dataset}, {parts} parts, noise {noise:g} ({names}):\n\n{format_table(of_setting)}\n"


def format_table(rows: list[ScoreRow]) -> str:
    """Format one table: mean and standard error of each score, over the teachers and seeds of each method."""
    lines = [f"| method (runs) | {' | '.join(SCORES.values())} |", "|---" * (len(SCORES) + 1) + "|"]
    for method in METHODS:
        if of_method := [row for row in rows if row.method == method]:
            cells = [format_mean([getattr(row, score) for row in of_method]) for score in SCORES]
            lines.append(f"| {method} ({len(of_method)}) | {' | '.join(cells)} |")
    for method in COMPARED:
        if differences := paired_differences(rows, method):
            cells = [format_mean(differences[score], signed=True) if score in differences else "" for score in SCORES]
            lines.append(f"| difference to: {method} ({len(differences['miou'])}) | {' | '.join(cells)} |")
    return "\n".join(lines)


def paired_differences(rows: list[ScoreRow], method: str) -> dict[str, list[float]]:
    """Return the scores of the learner minus those of another method with the same teacher and seed."""
    first, second = ({(row.teacher, row.seed): row for row in rows if row.method == name} for name in (LEARNED, method))
    pairs = [(first[key], second[key]) for key in first if key in second]
    if not pairs:
        return {}
    return {score: [getattr(a, score) - getattr(b, score) for a, b in pairs] for score in PAIRED}


def format_mean(values: list[float], *, signed: bool = False) -> str:
    """Format the mean and its standard error; a value that is always the same has none."""
    if all(isinstance(value, int) for value in values) and len(set(values)) == 1:
        return str(values[0])
    mean = f"{fmean(values):{'+' if signed else ''}.3f}"
    return f"{mean} ± {stdev(values) / len(values) ** 0.5:.3f}" if len(values) > 1 else mean
