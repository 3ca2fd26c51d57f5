"""`semmae compare`: print tables that compare the scores of runs."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from semmae.cli.output import console, new_table


def compare(
    runs: Annotated[Path, typer.Argument(help="A file with the output of `dvc exp show --csv`.")],
    by: Annotated[
        str, typer.Option(help="Parameters that distinguish the settings, separated by commas.")
    ] = "pretrain.masking.strategy",
    scores: Annotated[
        str | None,
        typer.Option(help="Columns to compare, separated by commas; * matches any text: knn.*.top1,linear.*.top1"),
    ] = None,
    baselines: Annotated[
        bool, typer.Option("--baselines", help="Print the scores of the baselines over all runs instead.")
    ] = False,
    parts: Annotated[
        str | None, typer.Option(help="Print the part scores of this dataset, of the parts and of every baseline.")
    ] = None,
    ablation: Annotated[
        str | None, typer.Option(help="Print the part scores of this dataset for each setting of params.yaml.")
    ] = None,
    level: Annotated[
        Literal["patch", "pixel"], typer.Option(help="The resolution of the scores of --parts and --ablation.")
    ] = "patch",
    md: Annotated[bool, typer.Option("--md", help="Print the table in Markdown.")] = False,
) -> None:
    """Print the mean and standard deviation of every score over the runs of a setting, e.g. over seeds."""
    from semmae.core.config import read_yaml
    from semmae.report import comparison

    table = comparison.read(runs)
    if parts:
        result, subject = comparison.parts(table, parts, level=level), f"{parts}, per {level}"
    elif ablation:
        result = comparison.ablation(table, ablation, level=level, parameters=read_yaml())
        subject = f"{ablation}, per {level}"
    elif baselines:
        result, subject = comparison.baselines(table), "baselines"
    else:
        patterns = comparison.DEFAULT_SCORES if scores is None else scores.split(",")
        result, subject = comparison.summary(table, by.split(","), scores=patterns), f"by {by}"
    if md:
        return print(comparison.markdown(result))
    printed = new_table(f"{runs}, {subject}: mean ± standard deviation (runs)", *result.columns)
    for row in result.to_numpy().tolist():
        printed.add_row(*row)
    console.print(printed)
