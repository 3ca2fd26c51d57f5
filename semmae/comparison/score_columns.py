"""The columns of `dvc exp show --csv` that hold scores; `evaluation.scores` documents their names."""

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import NamedTuple

import pandas as pd

DEFAULT_SCORES = (
    "knn.*.top1",
    "linear.*.top1",
    "attentive.*.top1",
    "finetune.*.top1",
    "segment.*.*.miou",
    "part_scores.*.patch.fg_iou",
)
SECTIONS = ("encoder", "baselines", "references", "low_shot")


class ScoreColumn(NamedTuple):
    """The parts of a column name such as `knn.photos.baselines.teacher.top1`; see `semmae.evaluation.scores`.

    Attributes:
        stage: The evaluation stage, e.g. "knn".
        dataset: The dataset that was evaluated.
        group: The head of `segment` or the level of `part_scores`; "" for other stages.
        section: One of SECTIONS.
        name: The baseline, reference or number of labels; "" in the section "encoder".
        metric: The metric, e.g. "top1".
    """

    stage: str
    dataset: str
    group: str
    section: str
    name: str
    metric: str

    @property
    def encoder_column(self) -> str:
        """The name of the column with the encoder's score in the same metric."""
        return ".".join(filter(None, (self.stage, self.dataset, self.group, self.metric)))


def parse_column(column: str) -> ScoreColumn | None:
    """Split the name of a column; return None if it is not the name of a score."""
    stage, *path = column.split(".")
    if len(path) < 2:
        return None
    dataset, *path, metric = path
    section, name = "encoder", ""
    if len(path) >= 2 and path[-2] in SECTIONS:
        *path, section, name = path
    if len(path) > 1:
        return None
    return ScoreColumn(stage, dataset, path[0] if path else "", section, name, metric)


def select_columns(runs: pd.DataFrame, scores: Sequence[str]) -> list[str]:
    """Return the columns with values that match `scores`; `*` matches any text without a dot.

    Raises:
        ValueError: No column matches.
    """
    columns = [name for name in runs if matches(name, scores) and runs[name].notna().any()]
    if not columns:
        raise ValueError(f"no column matches {','.join(scores)!r}; choose columns with --scores")
    return columns


def matches(column: str, patterns: Sequence[str]) -> bool:
    """Return whether a pattern matches the name of a column; `*` does not match a dot."""
    path = column.split(".")
    return any(
        len(path) == pattern.count(".") + 1 and all(map(fnmatchcase, path, pattern.split("."))) for pattern in patterns
    )


def is_score(column: str) -> bool:
    """Return whether a column is one of the default scores, or belongs to a baseline or a reference."""
    return matches(column, DEFAULT_SCORES) or any(f".{section}." in column for section in SECTIONS)
