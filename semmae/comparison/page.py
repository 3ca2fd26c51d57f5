"""The page of a comparison: scores, differences, curves, pictures and parameters of the settings, in one HTML file."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import pandas as pd

from semmae.comparison import differences, score_columns, tables
from semmae.comparison.curve_chart import Curve, draw_curves, draw_marker
from semmae.comparison.experiments import Curves
from semmae.comparison.pictures import RunPictures
from semmae.core.atomic_files import atomic_write
from semmae.report.charts import round_ticks
from semmae.report.data_uri import data_uri
from semmae.report.run_sections import FRACTIONS, column_title
from semmae.report.score_tables import display_name

NUM_STYLES = 7  # styles of curves in the style sheet; more settings repeat them
STAGE_TITLES = {
    "knn": "kNN", "linear": "linear probe", "attentive": "attentive probe", "finetune": "fine-tuning",
    "segment": "segmentation", "part_scores": "parts",
}  # fmt: skip
METRIC_TITLES = {"top1": "top-1 accuracy", "miou": "mIoU", "fg_iou": "foreground IoU"}


class ScoreRow(NamedTuple):
    """A row of a chart of scores; positions are percentages of the axis.

    Attributes:
        label: The setting or the baseline.
        style: The number of the style of the setting; None for a baseline.
        text: The mean and its error.
        mean: The position of the mean.
        low, high: The ends of the error bar: mean ± standard deviation over runs, or ± the standard error of one run.
        runs: The positions of the runs.
    """

    label: str
    style: int | None
    text: str
    mean: float
    low: float
    high: float
    runs: list[float]


def score_charts(
    runs: pd.DataFrame, groups: Mapping[str, pd.DataFrame], scores: Sequence[str], reference: str
) -> list[dict[str, Any]]:
    """Return a chart for each score: its axis, rows, and the differences from the reference."""
    return [
        _score_chart(runs, groups, score) | {"differences": differences.compute(groups, score, reference)}
        for score in scores
    ]


def _score_chart(runs: pd.DataFrame, groups: Mapping[str, pd.DataFrame], score: str) -> dict[str, Any]:
    summaries: list[tuple[str, int | None, list[float], float | None]] = []  # label, style, values, error
    for index, (label, group) in enumerate(groups.items()):
        values = group[score].dropna()
        if len(values):
            error = float(values.std()) if len(values) > 1 else differences.sampling_error(group, score)
            summaries.append((label, index % NUM_STYLES, values.tolist(), error))
    for column in runs:
        parsed = score_columns.parse_column(column)
        if parsed and parsed.section == "baselines" and parsed.encoder_column == score and runs[column].notna().any():
            summaries.append((display_name(parsed.name), None, [float(runs[column].mean())], None))
    ends = [value + sign * (error or 0.0) for *_, values, error in summaries for value in values for sign in (-1, 1)]
    ticks = round_ticks(max(0.0, min(ends) - 0.005), max(ends) + 0.005, max_intervals=4)
    low, high = ticks[0], ticks[-1]

    def position(value: float) -> float:
        return min(100.0, max(0.0, 100 * (value - low) / (high - low)))

    rows = []
    for label, style, values, error in summaries:
        mean = sum(values) / len(values)
        text = f"{mean:.3f}" + ("" if error is None else f" ± {error:.3f}")
        bar = (position(mean - (error or 0.0)), position(mean + (error or 0.0)))
        rows.append(ScoreRow(label, style, text, position(mean), *bar, [position(value) for value in values]))
    return {"name": score, "title": _score_title(score), "ticks": [f"{tick:.3g}" for tick in ticks], "rows": rows}


def _score_title(score: str) -> str:
    column = score_columns.parse_column(score)
    if column is None:
        return score
    group = f", {column.group}" if column.group else ""
    stage, metric = STAGE_TITLES.get(column.stage, column.stage), METRIC_TITLES.get(column.metric, column.metric)
    return f"{column.dataset}: {stage}{group}, {metric}"


def curve_sections(curves: Sequence[tuple[str, int, Curves]]) -> list[dict[str, Any]]:
    """Return the charts of each stage; `charts` is empty if all runs share the stage.

    Args:
        curves: Setting, number of its style, and curves of each run.
    """
    sections = []
    for stage in dict.fromkeys(stage for *_, run in curves for stage, _ in run):
        columns = dict.fromkeys(name for *_, run in curves for of, name in run if of == stage)
        charts = []
        for column in sorted(columns, key=lambda name: name != "loss"):
            drawn = [
                Curve(setting, style, run[stage, column]) for setting, style, run in curves if (stage, column) in run
            ]
            if len(drawn) < 2 or any(curve.points != drawn[0].points for curve in drawn):
                charts.append(draw_curves(drawn, title=column_title(column), percent=column in FRACTIONS))
        sections.append({"stage": stage, "charts": charts})
    return sections


def parameter_rows(groups: Mapping[str, pd.DataFrame], changed: Sequence[str]) -> list[tuple[str, list[str]]]:
    """Return each changed parameter with its values in each setting."""
    return [
        (name, [", ".join(dict.fromkeys(group[name].map(tables.format_param))) for group in groups.values()])
        for name in changed
    ]


def picture_rows(pictures: Mapping[str, RunPictures]) -> list[dict[str, list[Any]]]:
    """Return the pictures of each image, by kind, with a picture per setting."""
    if not pictures:
        return []
    count = len(next(iter(pictures.values())).images)
    return [
        {kind: [getattr(run, kind)[i] for run in pictures.values()] for kind in RunPictures._fields}
        for i in range(count)
    ]


def write(folder: Path, content: dict[str, Any]) -> Path:
    """Write `index.html`, which loads no other file, into `folder`; return its path."""
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["uri"] = data_uri
    environment.globals["marker"] = draw_marker
    template = environment.from_string(Path(__file__).with_name("page.html").read_text())
    with atomic_write(folder) as temporary:
        temporary.mkdir()
        (temporary / "index.html").write_text(template.render(content))
    return folder / "index.html"
