"""Progress of a long loop: a bar in a terminal, else a printed line every half minute."""

import time
from collections.abc import Iterable, Iterator
from datetime import timedelta
from typing import TypeVar

from rich.console import Console
from rich.progress import track

INTERVAL = 30  # seconds between two printed lines

R = TypeVar("R")


def tracked(results: Iterable[R], total: int, name: str) -> Iterator[R]:
    """Yield `results`, and show on standard error the number of results, the rate and the remaining time."""
    console = Console(stderr=True)
    if console.is_terminal:
        yield from track(results, name, total=total, console=console, transient=True)
        return
    start = last = time.monotonic()
    for done, result in enumerate(results, 1):
        yield result
        if (now := time.monotonic()) - last > INTERVAL:
            rate = done / (now - start)
            left = timedelta(seconds=round((total - done) / rate))
            console.print(f"{name}: {done} of {total}, {rate:.1f}/s, {left} left", highlight=False)
            last = now
