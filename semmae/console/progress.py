"""What a person sees of a run: a bar with images/s and time left in a terminal, one line per epoch everywhere."""

import time
from datetime import timedelta
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar


class Progress:
    """Progress of `steps` steps of `batch_size` images, `start` of which are done already."""

    def __init__(self, name: str, steps: int, per_epoch: int, batch_size: int, *, start: int, shown: bool) -> None:
        self.steps, self.per_epoch, self.batch_size = steps, per_epoch, batch_size
        self.done, self.start, self.shown = start, start, shown
        self.console = Console(stderr=True, quiet=not shown)
        columns = (
            TextColumn(name), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[loss]}"),
            TextColumn("{task.fields[speed]}"), TimeRemainingColumn(),
        )  # fmt: skip
        self.bar = Bar(*columns, console=self.console, disable=not (shown and self.console.is_terminal), transient=True)
        self.task = self.bar.add_task(name, total=steps, completed=start, loss="", speed="")

    def __enter__(self) -> Self:
        self.began = time.monotonic()
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def advance(self, loss: float) -> None:
        """One more step is done."""
        self.done += 1
        if not self.bar.disable:
            shown, speed = f"loss {loss:.4f}", f"{self.speed():,.0f} images/s"
            self.bar.update(self.task, completed=self.done, loss=shown, speed=speed)

    def speed(self) -> float:
        """Images per second since this process took up the run."""
        return (self.done - self.start) * self.batch_size / max(1e-9, time.monotonic() - self.began)

    def line(self, row: dict[str, float]) -> None:
        """One line for a finished epoch: its values, speed, time a step takes, time left."""
        values = "  ".join(f"{name} {value:.4g}" for name, value in row.items() if name != "epoch")
        per_step = (time.monotonic() - self.began) / max(1, self.done - self.start)
        left = timedelta(seconds=round((self.steps - self.done) * per_step))
        self.console.print(
            f"epoch {row['epoch']:.0f}/{self.steps // self.per_epoch}  {values}  {self.speed():,.0f} images/s  "
            f"{per_step * 1e3:.0f} ms/step  {left} left",
            highlight=False, soft_wrap=True,
        )  # fmt: skip
