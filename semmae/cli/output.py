"""Format tables and times for the output of the `semmae` command."""

import time

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

NUMERIC_COLUMNS = {
    "shards", "samples", "labeled", "with mask", "MB", "train", "val", "test", "inputs", "step", "seconds"
}  # fmt: skip

console = Console(markup=False, highlight=False)  # file names may contain brackets


def new_table(title: str, *columns: str) -> Table:
    """Return an empty table; columns of numbers are aligned to the right."""
    table = Table(title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD)
    for column in columns:
        table.add_column(column, justify="right" if column in NUMERIC_COLUMNS else "left", overflow="fold")
    return table


def time_ago(timestamp: float) -> str:
    """Return how long ago `timestamp` (seconds since 1970) was, in the largest unit that fits."""
    seconds = max(0.0, time.time() - timestamp)
    for unit, length in (("days", 86_400), ("hours", 3_600), ("minutes", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit} ago"
    return "just now"
