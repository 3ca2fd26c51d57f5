"""Tables that compare the scores of runs, computed from the output of `dvc exp show --csv`."""

import difflib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from semmae.comparison.differences import sampling_error
from semmae.comparison.score_columns import DEFAULT_SCORES, SECTIONS, is_score, parse_column, select_columns

UNFINISHED = ("Queued", "Running", "Failed")
NO_VALUE = ["!", "-"]  # DVC prints "!" for an unreadable value, "-" for none
UNCHANGED = "unchanged"  # label of the setting with the most frequent value of every parameter


def read(file: Path) -> pd.DataFrame:
    """Read the finished runs from a file that `dvc exp show --csv` printed.

    Returns:
        One row per experiment. The column `typ` marks experiments; a file without it gives one row per finished run.

    Raises:
        ValueError: The file is not a CSV table, or it has no finished run.
    """
    try:
        runs = pd.read_csv(file, na_values=NO_VALUE)
    except (FileNotFoundError, pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise ValueError(
            f"cannot read {file} as a table of runs: {error}; write it with: dvc exp show --csv > {file}"
        ) from None
    return finished(runs, source=f"{file} has")


def finished(runs: pd.DataFrame, *, source: str) -> pd.DataFrame:
    """Select the finished runs of a table; raise ValueError if there are none. `source` begins the message."""
    if "State" in runs:
        runs = runs[~runs["State"].isin(UNFINISHED)]
    if "typ" in runs:
        runs = runs[runs["typ"].str.startswith("branch")]
    if runs.empty:
        raise ValueError(
            f"{source} no finished experiment; list experiments with dvc exp show, queued ones with dvc queue status"
        )
    return runs


def group_settings(runs: pd.DataFrame, by: Sequence[str]) -> dict[str, pd.DataFrame]:
    """Return the runs of each setting by its label: the value of its parameter, or names and values of several.

    Args:
        runs: The table of `read`.
        by: Names of the parameters that distinguish the settings.

    Raises:
        ValueError: A parameter is unknown.
    """
    if unknown := [name for name in by if name not in runs]:
        known = [name for name in runs if "." in name and not is_score(name)]
        close = difflib.get_close_matches(unknown[0], known, n=1)
        hint = f"did you mean {close[0]}?" if close else f"expected for --by: {', '.join(known) or 'none'}"
        raise ValueError(f"unknown parameter: {unknown[0]!r}; {hint}")
    values = runs[list(by)].map(format_param)
    last = [name.rpartition(".")[2] for name in by]
    names = last if len(set(last)) == len(by) else list(by)
    return {
        setting[0]
        if len(by) == 1
        else ", ".join(f"{name}={value}" for name, value in zip(names, setting, strict=True)): group
        for setting, group in runs.groupby([values[name] for name in by])
    }


def summary(runs: pd.DataFrame, by: Sequence[str], *, scores: Sequence[str] = DEFAULT_SCORES) -> pd.DataFrame:
    """Compare the scores of settings.

    Args:
        runs: The table of `read`.
        by: Names of the parameters that distinguish the settings.
        scores: Names of columns. `*` matches any text without a dot.

    Returns:
        A row per score and a column per setting: mean ± standard deviation (number of runs). A setting with one run has
        the standard error of its score on the validation images, if it is known. With two or more settings,
        the column `difference` is the mean of the last setting minus the mean of the first. Its error is Welch's
        standard error sqrt(var_1 / n_1 + var_2 / n_2). It is unreliable for fewer than three runs per setting.

    Raises:
        ValueError: A parameter is unknown, or no column matches `scores`.
    """
    groups, columns = group_settings(runs, by), select_columns(runs, scores)
    table = pd.DataFrame({"score": columns})
    for setting, group in groups.items():
        table[setting] = [_format_mean(group[name].dropna(), sampling_error(group, name)) for name in columns]
    if len(groups) > 1:
        first, *_, last = groups.values()
        table["difference"] = [_format_difference(first[name].dropna(), last[name].dropna()) for name in columns]
    return table


def baselines(runs: pd.DataFrame) -> pd.DataFrame:
    """Return the scores of the encoder's baselines: a row per score, a column per baseline.

    The scores are top-1 accuracy and segmentation mIoU. For the baselines of parts, see `parts`.

    Raises:
        ValueError: No run has scores of baselines.
    """
    cells = {
        (column.encoder_column, column.name): name
        for name in runs
        if (column := parse_column(name))
        and column.section == "baselines"
        and column.stage != "part_scores"
        and column.metric in ("top1", "miou")
    }
    if not cells:
        raise ValueError(
            "the runs have no baselines; set <stage>.protocol.baselines to true, e.g. knn.protocol.baselines"
        )
    scores, names = dict.fromkeys(score for score, _ in cells), sorted({name for _, name in cells})
    rows = [[score, *(_format_cell(runs, cells.get((score, name))) for name in names)] for score in scores]
    return pd.DataFrame(rows, columns=["score", *names])


def parts(runs: pd.DataFrame, dataset: str, *, level: str) -> pd.DataFrame:
    """Return the part scores of a dataset: a row per method (parts, baselines, references), a column per metric.

    A cell is mean ± standard deviation (number of runs). If all runs have the same value, it is only the value.

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
    rows = [
        [method[1], *(_format_cell(runs, cells.get((*method, metric))) for metric in metrics)] for method in methods
    ]
    return pd.DataFrame(rows, columns=["method", *metrics])


def ablation(runs: pd.DataFrame, dataset: str, *, level: str, parameters: dict[str, Any]) -> pd.DataFrame:
    """Return the scores of the parts: a row per setting of the parameters.

    The label of a setting lists the parameters that differ from their most frequent values. The setting without
    differences comes first. Runs that differ only in seeds or in the section `part_scores` share a setting.

    Args:
        runs: The table of `read`.
        dataset: The name of the dataset.
        level: "patch" or "pixel".
        parameters: The content of params.yaml. Its keys identify the columns of `runs` that hold parameters.
    """
    known = pd.json_normalize(parameters).columns
    names = [
        name
        for name in runs
        # A section may be null in params.yaml and have keys in some runs; startswith finds these keys.
        if any(name == key or name.startswith(f"{key}.") for key in known)
        and not name.endswith("seed")
        and not name.startswith("part_scores.")
    ]
    values = runs[names].map(format_param)
    most_frequent = values.mode().iloc[0]

    def setting_label(row: pd.Series) -> str:
        changes = []
        for name in names:
            section = f"{name.rpartition('.')[0]}."
            section_is_null = all(row[sibling] == "null" for sibling in names if sibling.startswith(section))
            if row[name] != most_frequent[name]:
                changes.append(f"{section[:-1]}=null" if section_is_null else f"{name}={row[name]}")
        return ", ".join(dict.fromkeys(changes)) or UNCHANGED

    groups = dict(list(runs.groupby(values.apply(setting_label, axis=1), sort=False)))
    settings = sorted(groups, key=lambda name: name != UNCHANGED)
    tables = [
        parts(groups[name], dataset, level=level).query("method == 'parts'").assign(method=name) for name in settings
    ]
    return pd.concat(tables).rename(columns={"method": "setting"}).fillna("-")


def markdown(table: pd.DataFrame) -> str:
    """Format a table in Markdown."""
    rows = [list(table.columns), ["---"] * len(table.columns), *table.to_numpy().tolist()]
    return "\n".join("| " + " | ".join(map(str, row)) + " |" for row in rows)


def format_param(value: object) -> str:
    """Format a parameter as in params.yaml. Pandas reads null as NaN, and integers next to nulls as floats."""
    if pd.isna(value):
        return "null"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _format_cell(runs: pd.DataFrame, name: str | None) -> str:
    """Format the mean of a column, or only the value if all runs have the same; "-" if there is none."""
    values = runs[name].dropna() if name else pd.Series(dtype=float)
    if name and name.endswith(".labels") and values.nunique() == 1:
        return f"{values.iloc[0]:.0f}"
    return f"{values.iloc[0]:.3f}" if values.nunique() == 1 else _format_mean(values)


def _format_mean(values: pd.Series, error: float | None = None) -> str:
    """Format mean ± standard deviation (number of runs), or a single value ± its standard error (1, sampling)."""
    if values.empty:
        return "-"
    if len(values) == 1:
        return f"{values.iloc[0]:.3f} (1)" if error is None else f"{values.iloc[0]:.3f} ± {error:.3f} (1, sampling)"
    return f"{values.mean():.3f} ± {values.std():.3f} ({len(values)})"


def _format_difference(first: pd.Series, last: pd.Series) -> str:
    if first.empty or last.empty:
        return "-"
    difference = f"{last.mean() - first.mean():+.3f}"
    if min(len(first), len(last)) < 2:
        return difference
    return f"{difference} ± {math.sqrt(first.var() / len(first) + last.var() / len(last)):.3f}"
