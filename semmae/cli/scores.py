"""`semmae scores`: say how the scores of a run compare with those of its baselines."""

from pathlib import Path
from typing import Annotated

import typer

from semmae.cli.output import console, new_table


def scores(
    results: Annotated[Path, typer.Option(help="The results of a run.")] = Path("results"),
) -> None:
    """Print every score of a run in words: above or below its baselines, and by how much more than noise."""
    if not print_scores(results):
        raise ValueError(f"no scores in {results}: expected e.g. {results}/linear/main.json. Run: dvc repro")


def print_scores(results: Path) -> bool:
    """Print the scores in a folder, and return whether there are any."""
    from semmae.report import score_summary

    verdicts = score_summary.summarize(results)
    if verdicts:
        table = new_table("Scores", "score", "value", "verdict", "compared with its baselines")
        for verdict in verdicts:
            table.add_row(*verdict)
        console.print(table)
    return bool(verdicts)
