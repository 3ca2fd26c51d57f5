"""Runs side by side: the mean and the spread of every score over the runs that share a setting.

- `read`: the table that `dvc exp show --csv` prints, one row per run.
- `summary`: a row per score, a column per setting: mean ± standard deviation over runs; how far the settings lie apart.
- `parts`: part scores of one dataset, a row per line (the parts, what is beside them), a column per score.
- `markdown`: that table for a page.
"""

import math
import re
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

SCORES = (
    r"(knn|linear|attentive|finetune)\.[^.]+\.top1$|segment\.[^.]+\.[^.]+\.miou$|part_scores\.[^.]+\.patch\.fg_iou$"
)
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
    return runs


def summary(runs: pd.DataFrame, by: Sequence[str], *, scores: str = SCORES) -> pd.DataFrame:
    """Per score (columns that match `scores`): mean ± standard deviation (number of runs) for every setting of `by`.

    With two settings or more, `difference` is the last one's mean less the first one's, ± its standard error
    (Welch: the root of the sum of variance / runs), which wants three runs a setting before it means much. ValueError
    where there is nothing to compare.
    """
    if missing := [name for name in by if name not in runs]:
        known = ", ".join(name for name in runs if "." in name and not re.search(scores, name))
        raise ValueError(f"the runs have no parameter {missing[0]!r}; they have {known or 'none'}")
    columns = [name for name in runs if re.search(scores, name) and runs[name].notna().any()]
    if not columns:
        raise ValueError(f"no column of the runs matches {scores!r}; choose others with --scores")
    groups = {" ".join(map(str, setting)): group for setting, group in runs.groupby(list(by))}
    table = pd.DataFrame({"score": columns})
    for setting, group in groups.items():
        table[setting] = [_told(group[name].dropna()) for name in columns]
    if len(groups) > 1:
        first, *_, last = groups.values()
        table["difference"] = [_difference(first[name].dropna(), last[name].dropna()) for name in columns]
    return table


def parts(runs: pd.DataFrame, dataset: str, *, level: str) -> pd.DataFrame:
    """The part scores at a level (`patch` or `pixel`): per line, the parts first, mean ± standard deviation (runs).

    ValueError where no run has part scores of the dataset.
    """
    found = re.compile(rf"part_scores\.{re.escape(dataset)}\.(?:(?P<line>\w+)\.)?{level}\.(?P<score>\w+)")
    cells = {(m["line"] or "parts", m["score"]): name for name in runs if (m := found.fullmatch(name))}
    if not cells:
        known = sorted({name.split(".")[1] for name in runs if name.startswith("part_scores.")})
        raise ValueError(f"the runs have no {level} part scores of {dataset!r}; they have {', '.join(known) or 'none'}")
    lines, scores = (list(dict.fromkeys(names)) for names in zip(*sorted(cells, key=_parts_first), strict=True))
    rows = [
        [line] + [_told(runs[cells[line, s]].dropna()) if (line, s) in cells else "-" for s in scores] for line in lines
    ]
    return pd.DataFrame(rows, columns=["line", *scores])


def _parts_first(cell: tuple[str, str]) -> bool:
    return cell[0] != "parts"


def markdown(table: pd.DataFrame) -> str:
    """The table as a page shows it."""
    rows = [list(table.columns), ["---"] * len(table.columns), *table.to_numpy().tolist()]
    return "\n".join("| " + " | ".join(map(str, row)) + " |" for row in rows)


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
