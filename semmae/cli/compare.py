"""`semmae compare`: compare the scores of runs in tables, and experiments on a page too."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from semmae.cli.output import console, new_table

if TYPE_CHECKING:
    import pandas as pd


def compare(
    runs: Annotated[
        Path | None,
        typer.Argument(help="A file with the output of `dvc exp show --csv`; without it, DVC's experiments are read."),
    ] = None,
    by: Annotated[
        str | None,
        typer.Option(
            help="Parameters to group runs by, separated by commas; runs with equal values form a setting. "
            "Default: all parameters other than seeds that differ between the runs."
        ),
    ] = None,
    scores: Annotated[
        str | None,
        typer.Option(help="Columns to compare, separated by commas; * matches any text without a dot: knn.*.top1"),
    ] = None,
    reference: Annotated[
        str | None, typer.Option(help="The setting from which differences are computed; default: the first one.")
    ] = None,
    commits: Annotated[
        int, typer.Option(help="Read the experiments of this number of last commits; -1: of all commits.")
    ] = 1,
    out: Annotated[Path, typer.Option(help="The folder of the page of experiments.")] = Path("results/compare"),
    images: Annotated[int, typer.Option(min=0, help="Number of images on the page.")] = 4,
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
    md: Annotated[bool, typer.Option("--md", help="Print only the table of means, in Markdown.")] = False,
) -> None:
    """Print the scores of each setting, and their differences with 95 % intervals, over the runs, e.g. over seeds.

    Without RUNS, the experiments of DVC are compared, and a page with their curves and pictures is written.
    """
    from semmae.comparison import experiments, score_columns, tables
    from semmae.core.config import PARAMS, read_yaml

    parameters, title = read_yaml() if PARAMS.exists() else {}, str(runs or "experiments")
    table, messages = (tables.read(runs), []) if runs else experiments.read_experiments(commits=commits)
    if detail := _detail(table, parameters, level, parts=parts, ablation=ablation, baselines=baselines):
        return _print_means(detail[0], f"{title}, {detail[1]}", md=md)
    names = by.split(",") if by else experiments.distinguishing_parameters(table, parameters)
    patterns = score_columns.DEFAULT_SCORES if scores is None else scores.split(",")
    _print_means(tables.summary(table, names, scores=patterns), f"{title}, by {', '.join(names)}", md=md)
    if not md:
        columns = score_columns.select_columns(table, patterns)
        reference = _print_differences(tables.group_settings(table, names), columns, reference)
        for message in messages:
            console.print(f"note: {message}")
        if runs is None:
            _write_page(table, columns, reference, names, parameters, messages, out=out, images=images)


def _detail(
    table: "pd.DataFrame", parameters: dict, level: str, *, parts: str | None, ablation: str | None, baselines: bool
) -> "tuple[pd.DataFrame, str] | None":
    """Return the table of parts, of an ablation or of baselines with its subject; None if none is wanted."""
    from semmae.comparison import tables

    if parts:
        return tables.parts(table, parts, level=level), f"{parts}, per {level}"
    if ablation:
        return tables.ablation(table, ablation, level=level, parameters=parameters), f"{ablation}, per {level}"
    return (tables.baselines(table), "baselines") if baselines else None


def _print_means(result: "pd.DataFrame", title: str, *, md: bool) -> None:
    from semmae.comparison import tables

    if md:
        return print(tables.markdown(result))
    printed = new_table(f"{title}: mean ± standard deviation (runs)", *result.columns)
    for row in result.to_numpy().tolist():
        printed.add_row(*row)
    return console.print(printed)


def _print_differences(groups: "dict[str, pd.DataFrame]", columns: list[str], reference: str | None) -> str:
    """Print the differences from the reference, which is the first setting if it is None; return the reference."""
    from semmae.comparison import differences

    if reference is not None and reference not in groups:
        raise ValueError(f"unknown setting: {reference!r}; expected for --reference: {', '.join(groups)}")
    reference = reference or next(iter(groups))
    found = [difference for score in columns for difference in differences.compute(groups, score, reference)]
    if not found:
        console.print(f"There is one setting, {reference}: nothing to compare it with.")
        return reference
    heads = ("score", "setting", "difference", "95 % interval", "verdict", "computed from")
    printed = new_table(f"differences from {reference}", *heads)
    for d in found:
        printed.add_row(d.score, d.setting, f"{d.value:+.3f}", d.interval, d.verdict, d.method)
    console.print(printed)
    noise = sum(d.verdict == "noise" for d in found)
    text = f"{noise} of {len(found)} differences {'is' if noise == 1 else 'are'} noise: their intervals contain 0."
    if any(d.verdict == "unknown" for d in found):
        text += " For others no error is known: run more seeds."
    console.print(text)
    return reference


def _write_page(
    table: "pd.DataFrame", columns: list[str], reference: str, by: list[str], parameters: dict, messages: list[str],
    *, out: Path, images: int,
) -> None:  # fmt: skip
    """Gather curves and pictures, write the page and print its path."""
    from semmae.comparison import experiments, page, pictures, tables
    from semmae.console.tracking import tracked

    groups = tables.group_settings(table, by)
    styles = {setting: number % page.NUM_STYLES for number, setting in enumerate(groups)}
    runs = [(setting, rev) for setting, group in groups.items() for rev in group["rev"]]
    curves = [
        (setting, styles[setting], experiments.read_curves(rev)) for setting, rev in tracked(runs, len(runs), "curves")
    ]
    report = parameters.get("report", {})
    drawn, missing = pictures.draw_runs(
        {setting: group["rev"].iloc[0] for setting, group in groups.items()} if images else {},
        count=images, colors=report.get("colors", "okabe_ito"), seed=report.get("seed", 0),
    )  # fmt: skip
    content = {
        "by": by,
        "reference": reference,
        "num_runs": len(table),
        "messages": messages,
        "settings": [{"label": name, "style": styles[name], "runs": len(group)} for name, group in groups.items()],
        "charts": page.score_charts(table, groups, columns, reference),
        "curves": page.curve_sections(curves),
        "pictured": list(drawn),
        "pictures": page.picture_rows(drawn),
        "missing": missing,
        "params": page.parameter_rows(groups, experiments.changed_parameters(table, parameters)),
    }
    console.print(f"page: {page.write(out, content)}")
