"""Runs side by side: the mean and the spread of every score over the runs that share a setting.

- `read`: the table that `dvc exp show --csv` prints, one row per run.
- `summary`: a row per score, a column per setting: mean ± standard deviation over runs; how far the settings lie apart.
- `lines`: what is scored beside the encoder, a row per score, a column per line: teacher, thumbnails, untrained.
- `parts`: part scores of one dataset, a row per line (the parts, what is beside them), a column per score.
- `ablation`: part scores of the parts, a row per setting.
- `markdown`: that table for a page.
"""

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

SCORES = (
    r"(knn|linear|attentive|finetune)\.[^.]+\.top1$|segment\.[^.]+\.[^.]+\.miou$|part_scores\.[^.]+\.patch\.fg_iou$"
)
BESIDE = re.compile(r"(?P<score>.+)\.(?P<line>thumbnails|untrained|teacher)\.(?P<metric>top1|miou)")
UNFINISHED = ("Queued", "Running", "Failed")


def read(path: Path) -> pd.DataFrame:
    """The finished runs in a CSV of `dvc exp show --csv`: experiments, or every row where none is marked as one."""
    try:
        runs = pd.read_csv(path, na_values=["!", "-"])  # DVC's signs for a value that it could not read, and for none
    except (FileNotFoundError, pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise ValueError(f"{path} cannot be read as the table of dvc exp show --csv: {error}") from None
    if "State" in runs:
        runs = runs[~runs["State"].isin(UNFINISHED)]
    if "typ" in runs:
        runs = runs[runs["typ"].str.startswith("branch")]
    if runs.empty:
        raise ValueError(f"{path} has no finished experiment; dvc exp show lists them, dvc queue status what runs")
    return runs


def summary(runs: pd.DataFrame, by: Sequence[str], *, scores: str = SCORES) -> pd.DataFrame:
    """Per score (columns that match `scores`): mean ± standard deviation (number of runs) for every setting of `by`.

    With two settings or more, `difference` is the last one's mean less the first one's, ± its standard error
    (Welch: the root of the sum of variance / runs), which wants three runs a setting before it means much. ValueError
    where there is nothing to compare.
    """
    try:
        re.compile(scores)
    except re.error as error:
        raise ValueError(f"--scores is {scores!r}, which is no regular expression: {error}") from None
    if missing := [name for name in by if name not in runs]:
        known = ", ".join(name for name in runs if "." in name and not re.search(scores, name))
        raise ValueError(f"the runs have no parameter {missing[0]!r}; they have {known or 'none'}")
    columns = [name for name in runs if re.search(scores, name) and runs[name].notna().any()]
    if not columns:
        raise ValueError(f"no column of the runs matches {scores!r}; choose others with --scores")
    settings = runs[list(by)].map(_short)
    groups = {" ".join(setting): group for setting, group in runs.groupby([settings[name] for name in by])}
    table = pd.DataFrame({"score": columns})
    for setting, group in groups.items():
        table[setting] = [_told(group[name].dropna()) for name in columns]
    if len(groups) > 1:
        first, *_, last = groups.values()
        table["difference"] = [_difference(first[name].dropna(), last[name].dropna()) for name in columns]
    return table


def lines(runs: pd.DataFrame) -> pd.DataFrame:
    """The scores of the lines beside the encoder over all runs, told as by `parts`. ValueError where no run has any."""
    cells = {(f"{m['score']}.{m['metric']}", m["line"]): name for name in runs if (m := BESIDE.fullmatch(name))}
    if not cells:
        raise ValueError("the runs have no lines beside the encoder; set knn.protocol.baselines and so on to true")
    scores, columns = dict.fromkeys(score for score, _ in cells), sorted({line for _, line in cells})
    rows = [[score, *(_cell(runs, cells.get((score, line))) for line in columns)] for score in scores]
    return pd.DataFrame(rows, columns=["score", *columns])


def parts(runs: pd.DataFrame, dataset: str, *, level: str) -> pd.DataFrame:
    """The part scores at a level (`patch` or `pixel`): per line, the parts first, mean ± standard deviation (runs).

    Where all runs say the same, which is one computation shared by them, that number stands alone. ValueError where no
    run has part scores of the dataset.
    """
    column = re.compile(rf"part_scores\.{re.escape(dataset)}\.(?:(?P<line>\w+)\.)?{level}\.(?P<score>\w+)")
    cells = {(m["line"] or "parts", m["score"]): name for name in runs if (m := column.fullmatch(name))}
    if not cells:
        scored = (re.match(rf"part_scores\.([^.]+)\.(?:\w+\.)?{level}\.", name) for name in runs)
        known = sorted({m[1] for m in scored if m})
        raise ValueError(f"the runs have no {level} part scores of {dataset!r}; they have {', '.join(known) or 'none'}")
    names, scores = (list(dict.fromkeys(found)) for found in zip(*sorted(cells, key=_parts_first), strict=True))
    rows = [[line, *(_cell(runs, cells.get((line, score))) for score in scores)] for line in names]
    return pd.DataFrame(rows, columns=["line", *scores])


def ablation(runs: pd.DataFrame, dataset: str, *, level: str, parameters: dict[str, Any]) -> pd.DataFrame:
    """The part scores as by `parts`, of the parts alone and setting by setting; first what most runs have in common.

    A setting is named by those of `parameters` (params.yaml) in which it differs from the commonest values; seeds are
    its runs, and how it was scored is none of it.
    """
    known = pd.json_normalize(parameters).columns
    names = [  # also of sections that are null in params.yaml, not in the runs
        name for name in runs
        if any(name == other or name.startswith(f"{other}.") for other in known)
        and not name.endswith("seed") and not name.startswith("part_scores.")
    ]  # fmt: skip
    values = runs[names].map(_short)
    usual = values.mode().iloc[0]

    def setting(row: pd.Series) -> str:
        told = []
        for name in names:
            section = f"{name.rpartition('.')[0]}."
            gone = all(row[sibling] == "null" for sibling in names if sibling.startswith(section))
            if row[name] != usual[name]:
                told.append(f"{section[:-1]}=null" if gone else f"{name}={row[name]}")
        return ", ".join(dict.fromkeys(told)) or "as it is"

    groups = dict(list(runs.groupby(values.apply(setting, axis=1), sort=False)))
    order = sorted(groups, key=lambda name: name != "as it is")
    tables = [parts(groups[name], dataset, level=level).query("line == 'parts'").assign(line=name) for name in order]
    return pd.concat(tables).rename(columns={"line": "setting"}).fillna("-")


def _short(value: object) -> str:
    """A value of params.yaml as one would type it: null is an empty cell, and beside one whole numbers come as 1.0."""
    if pd.isna(value):
        return "null"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _parts_first(cell: tuple[str, str]) -> bool:
    return cell[0] != "parts"


def markdown(table: pd.DataFrame) -> str:
    """The table as a page shows it."""
    rows = [list(table.columns), ["---"] * len(table.columns), *table.to_numpy().tolist()]
    return "\n".join("| " + " | ".join(map(str, row)) + " |" for row in rows)


def _cell(runs: pd.DataFrame, name: str | None) -> str:
    """What the runs say in a column; "-" where there is none."""
    values = runs[name].dropna() if name else pd.Series(dtype=float)
    return f"{values.iloc[0]:.3f}" if values.nunique() == 1 else _told(values)


def _told(values: pd.Series) -> str:
    if values.empty:
        return "-"
    spread = f" ± {values.std():.3f}" if len(values) > 1 else ""
    return f"{values.mean():.3f}{spread} ({len(values)})"


def _difference(first: pd.Series, last: pd.Series) -> str:
    if first.empty or last.empty:
        return "-"
    apart = f"{last.mean() - first.mean():+.3f}"
    if min(len(first), len(last)) < 2:
        return apart
    return f"{apart} ± {math.sqrt(first.var() / len(first) + last.var() / len(last)):.3f}"
