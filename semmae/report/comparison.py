"""Tables that compare the scores of runs, computed from the output of `dvc exp show --csv`."""

import math
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

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
UNFINISHED = ("Queued", "Running", "Failed")
UNCHANGED = "as it is"  # the setting that most runs share


class ScoreColumn(NamedTuple):
    """The address of a score: its place in the metrics files that `semmae.evaluation.scores` writes.

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
    def encoder_score(self) -> str:
        """The column of the same metric of the encoder."""
        return ".".join(filter(None, (self.stage, self.dataset, self.group, self.metric)))


def parse_column(column: str) -> ScoreColumn | None:
    """Split the name of a column, e.g. `knn.photos.baselines.teacher.top1`; None if it cannot name a score."""
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


def read(path: Path) -> pd.DataFrame:
    """Read the finished runs from a file that `dvc exp show --csv` printed.

    Returns:
        A row per experiment. If no row is marked as an experiment, all finished rows.

    Raises:
        ValueError: The file is no such table, or it has no finished run.
    """
    try:
        runs = pd.read_csv(path, na_values=["!", "-"])  # DVC prints "!" for an unreadable value, "-" for none
    except (FileNotFoundError, pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise ValueError(
            f"cannot read {path} as a table of runs: {error}; write it with: dvc exp show --csv > {path}"
        ) from None
    if "State" in runs:
        runs = runs[~runs["State"].isin(UNFINISHED)]
    if "typ" in runs:
        runs = runs[runs["typ"].str.startswith("branch")]
    if runs.empty:
        raise ValueError(
            f"{path} has no finished experiment; list experiments with dvc exp show, queued ones with dvc queue status"
        )
    return runs


def summary(runs: pd.DataFrame, by: Sequence[str], *, scores: Sequence[str] = DEFAULT_SCORES) -> pd.DataFrame:
    """Compare the scores of settings.

    Args:
        runs: The table of `read`.
        by: Names of the parameters that distinguish the settings.
        scores: Names of columns. `*` matches any text between two dots.

    Returns:
        A row per score and a column per setting: mean ± standard deviation (number of runs). With two or more settings,
        the column `difference` is the mean of the last setting minus the mean of the first. Its error is Welch's
        standard error sqrt(var_1 / n_1 + var_2 / n_2), which is unreliable for fewer than three runs per setting.

    Raises:
        ValueError: A parameter is unknown, or no column matches `scores`.
    """
    columns = [name for name in runs if _matches(name, scores)]
    if unknown := [name for name in by if name not in runs]:
        known = ", ".join(name for name in runs if "." in name and name not in columns)
        raise ValueError(f"unknown parameter: {unknown[0]!r}; expected --by with names from: {known or 'none'}")
    columns = [name for name in columns if runs[name].notna().any()]
    if not columns:
        raise ValueError(f"no column matches {','.join(scores)!r}; choose columns of the file with --scores")
    settings = runs[list(by)].map(_format_param)
    groups = {" ".join(setting): group for setting, group in runs.groupby([settings[name] for name in by])}
    table = pd.DataFrame({"score": columns})
    for setting, group in groups.items():
        table[setting] = [_format_mean(group[name].dropna()) for name in columns]
    if len(groups) > 1:
        first, *_, last = groups.values()
        table["difference"] = [_format_difference(first[name].dropna(), last[name].dropna()) for name in columns]
    return table


def baselines(runs: pd.DataFrame) -> pd.DataFrame:
    """Return the scores of the baselines of encoders: a row per score, a column per baseline.

    The scores are top-1 accuracy and segmentation mIoU; `parts` returns the baselines of parts.

    Raises:
        ValueError: No run has scores of baselines.
    """
    cells = {
        (column.encoder_score, column.name): name
        for name in runs
        if (column := parse_column(name))
        and column.section == "baselines"
        and column.stage != "part_scores"
        and column.metric in ("top1", "miou")
    }
    if not cells:
        raise ValueError("the runs have no baselines; set <stage>.protocol.baselines to true, e.g. of knn")
    scores, names = dict.fromkeys(score for score, _ in cells), sorted({name for _, name in cells})
    rows = [[score, *(_cell(runs, cells.get((score, name))) for name in names)] for score in scores]
    return pd.DataFrame(rows, columns=["score", *names])


def parts(runs: pd.DataFrame, dataset: str, *, level: str) -> pd.DataFrame:
    """Return the part scores of a dataset: a row per method (parts, baselines, references), a column per metric.

    A cell is mean ± standard deviation (number of runs), or only the value if it is the same in all runs.

    Args:
        runs: The table of `read`.
        dataset: The name of the dataset.
        level: "patch" or "pixel".

    Raises:
        ValueError: No run has part scores of the dataset at this level.
    """
    columns = {name: column for name in runs if (column := parse_column(name)) and column.stage == "part_scores"}
    cells = {
        (SECTIONS.index(column.section), column.name or "parts", column.metric): name
        for name, column in columns.items()
        if (column.dataset, column.group) == (dataset, level)
    }
    if not cells:
        known = sorted({column.dataset for column in columns.values() if column.group == level})
        raise ValueError(
            f"the runs have no part scores of {dataset!r} per {level}; expected one of: {', '.join(known) or 'none'}"
        )
    methods = sorted(dict.fromkeys(key[:2] for key in cells), key=lambda method: method[0])
    metrics = dict.fromkeys(metric for _, _, metric in sorted(cells, key=lambda key: key[0]))
    rows = [[method[1], *(_cell(runs, cells.get((*method, metric))) for metric in metrics)] for method in methods]
    return pd.DataFrame(rows, columns=["method", *metrics])


def ablation(runs: pd.DataFrame, dataset: str, *, level: str, parameters: dict[str, Any]) -> pd.DataFrame:
    """Return the scores of the parts for each setting of the parameters; the most frequent setting comes first.

    A setting is named by the parameters that differ from their most frequent values. Runs that differ only in seeds or
    in the section `part_scores` share a setting.

    Args:
        runs: The table of `read`.
        dataset: The name of the dataset.
        level: "patch" or "pixel".
        parameters: The content of params.yaml; its keys tell the columns of parameters from the columns of scores.
    """
    known = pd.json_normalize(parameters).columns
    names = [
        name
        for name in runs
        # The second condition finds the keys of a section that params.yaml sets to null and a run does not.
        if any(name == key or name.startswith(f"{key}.") for key in known)
        and not name.endswith("seed")
        and not name.startswith("part_scores.")
    ]
    values = runs[names].map(_format_param)
    most_frequent = values.mode().iloc[0]

    def name_setting(row: pd.Series) -> str:
        changes = []
        for name in names:
            section = f"{name.rpartition('.')[0]}."
            section_is_null = all(row[sibling] == "null" for sibling in names if sibling.startswith(section))
            if row[name] != most_frequent[name]:
                changes.append(f"{section[:-1]}=null" if section_is_null else f"{name}={row[name]}")
        return ", ".join(dict.fromkeys(changes)) or UNCHANGED

    groups = dict(list(runs.groupby(values.apply(name_setting, axis=1), sort=False)))
    settings = sorted(groups, key=lambda name: name != UNCHANGED)
    tables = [
        parts(groups[name], dataset, level=level).query("method == 'parts'").assign(method=name) for name in settings
    ]
    return pd.concat(tables).rename(columns={"method": "setting"}).fillna("-")


def markdown(table: pd.DataFrame) -> str:
    """Format a table in Markdown."""
    rows = [list(table.columns), ["---"] * len(table.columns), *table.to_numpy().tolist()]
    return "\n".join("| " + " | ".join(map(str, row)) + " |" for row in rows)


def _matches(column: str, patterns: Sequence[str]) -> bool:
    """Return whether one of the patterns matches; `*` does not match a dot."""
    path = column.split(".")
    return any(
        len(path) == pattern.count(".") + 1 and all(map(fnmatchcase, path, pattern.split("."))) for pattern in patterns
    )


def _format_param(value: object) -> str:
    """Format a parameter as in params.yaml; pandas reads null as NaN, and integers in a column with nulls as floats."""
    if pd.isna(value):
        return "null"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _cell(runs: pd.DataFrame, name: str | None) -> str:
    """Format the values of a column: only the value if all are equal; "-" if there are none."""
    values = runs[name].dropna() if name else pd.Series(dtype=float)
    return f"{values.iloc[0]:.3f}" if values.nunique() == 1 else _format_mean(values)


def _format_mean(values: pd.Series) -> str:
    if values.empty:
        return "-"
    spread = f" ± {values.std():.3f}" if len(values) > 1 else ""
    return f"{values.mean():.3f}{spread} ({len(values)})"


def _format_difference(first: pd.Series, last: pd.Series) -> str:
    if first.empty or last.empty:
        return "-"
    difference = f"{last.mean() - first.mean():+.3f}"
    if min(len(first), len(last)) < 2:
        return difference
    return f"{difference} ± {math.sqrt(first.var() / len(first) + last.var() / len(last)):.3f}"
