"""Progress of a run: a bar with rate and remaining time in a terminal, and one line per epoch everywhere."""

import time
from datetime import timedelta
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar


class Progress:
    """Shows the progress of a run on standard error; use it as a context manager.

    Args:
        name: Label of the bar.
        steps: Number of steps of the run.
        per_epoch: Number of steps of an epoch.
        batch_size: Images per step, over all ranks.
        start: Number of steps done before this process started.
        shown: Whether this rank prints.
    """

    def __init__(self, name: str, steps: int, per_epoch: int, batch_size: int, *, start: int, shown: bool) -> None:
        self.steps, self.per_epoch, self.batch_size = steps, per_epoch, batch_size
        self.done, self.start = start, start
        self.console = Console(stderr=True, quiet=not shown)
        columns = (
            TextColumn(name),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[loss]}"),
            TextColumn("{task.fields[speed]}"),
            TimeRemainingColumn(),
        )
        self.bar = Bar(*columns, console=self.console, disable=not (shown and self.console.is_terminal), transient=True)
        self.task = self.bar.add_task(name, total=steps, completed=start, loss="", speed="")

    def __enter__(self) -> Self:
        self.started = time.monotonic()
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def advance(self, loss: float) -> None:
        """Count one more step; show its loss in the bar."""
        self.done += 1
        if not self.bar.disable:
            speed = f"{self.images_per_second():,.0f} images/s"
            self.bar.update(self.task, completed=self.done, loss=f"loss {loss:.4f}", speed=speed)

    def images_per_second(self) -> float:
        """Return the mean rate since the start of this process."""
        return (self.done - self.start) * self.batch_size / max(1e-9, time.monotonic() - self.started)

    def print_epoch(self, row: dict[str, float]) -> None:
        """Print the values of a finished epoch, the images per second, the time per step and the remaining time."""
        values = "  ".join(f"{name} {value:.4g}" for name, value in row.items() if name != "epoch")
        per_step = (time.monotonic() - self.started) / max(1, self.done - self.start)
        remaining = timedelta(seconds=round((self.steps - self.done) * per_step))
        self.console.print(
            f"epoch {row['epoch']:.0f}/{-(-self.steps // self.per_epoch)}  {values}  "
            f"{self.images_per_second():,.0f} images/s  {per_step * 1e3:.0f} ms/step  {remaining} left",
            highlight=False,
            soft_wrap=True,
        )
