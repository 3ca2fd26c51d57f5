"""`semmae compare`: print tables that compare the scores of runs."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from semmae.cli.output import console, new_table


def compare(
    runs: Annotated[Path, typer.Argument(help="A file with the output of `dvc exp show --csv`.")],
    by: Annotated[
        str,
        typer.Option(help="Parameters to group runs by, separated by commas; runs with equal values form a setting."),
    ] = "pretrain.masking.strategy",
    scores: Annotated[
        str | None,
        typer.Option(help="Columns to compare, separated by commas; * matches any text without a dot: knn.*.top1"),
    ] = None,
    baselines: Annotated[
        bool, typer.Option("--baselines", help="Print the scores of the encoder's baselines, averaged over all runs.")
    ] = False,
    parts: Annotated[
        str | None, typer.Option(help="Print the scores of the parts and of their baselines on this dataset.")
    ] = None,
    ablation: Annotated[
        str | None, typer.Option(help="Print the scores of the parts on this dataset, a row per setting.")
    ] = None,
    level: Annotated[
        Literal["patch", "pixel"], typer.Option(help="The resolution at which --parts and --ablation compare masks.")
    ] = "patch",
    md: Annotated[bool, typer.Option("--md", help="Print the table in Markdown.")] = False,
) -> None:
    """Print mean and standard deviation of each score over the runs of a setting, e.g. over seeds."""
    from semmae.comparison import tables
    from semmae.core.config import read_yaml

    runs_table = tables.read(runs)
    if parts:
        result, subject = tables.parts(runs_table, parts, level=level), f"{parts}, per {level}"
    elif ablation:
        result = tables.ablation(runs_table, ablation, level=level, parameters=read_yaml())
        subject = f"{ablation}, per {level}"
    elif baselines:
        result, subject = tables.baselines(runs_table), "baselines"
    else:
        patterns = tables.DEFAULT_SCORES if scores is None else scores.split(",")
        result, subject = tables.summary(runs_table, by.split(","), scores=patterns), f"by {by}"
    if md:
        return print(tables.markdown(result))
    printed = new_table(f"{runs}, {subject}: mean ± standard deviation (runs)", *result.columns)
    for row in result.to_numpy().tolist():
        printed.add_row(*row)
    console.print(printed)
