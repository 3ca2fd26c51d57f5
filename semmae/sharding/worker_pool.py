"""A long map over worker processes, in order, with its progress in sight.

- `mapped(function, items)`: results in the order of the items, few of them waiting at any time.
- `watched(results)`: passes them on under a progress bar.
"""

import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from typing import TypeVar

import cv2
from rich.console import Console
from rich.progress import track

CHUNK = 16  # items that travel to a worker and back together
AHEAD = 4  # chunks per worker that are under way

T = TypeVar("T")
R = TypeVar("R")


def mapped(function: Callable[[T], R], items: Sequence[T], *, workers: int) -> Iterator[R]:
    """`map(function, items)` in `workers` processes; 0: in this one.

    The processes come from a fork server that has imported what they need: forking this process would copy locks that
    threads of torch or Arrow may hold, spawning would import torch once per worker.
    """
    if workers == 0:
        yield from map(function, items)
        return
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["semmae.sharding.shard_writer"])
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker)
    chunks = (items[i : i + CHUNK] for i in range(0, len(items), CHUNK))
    try:
        waiting = deque(pool.submit(_map_chunk, function, chunk) for chunk in islice(chunks, AHEAD * workers))
        while waiting:
            results = waiting.popleft().result()
            waiting.extend(pool.submit(_map_chunk, function, chunk) for chunk in islice(chunks, 1))
            yield from results
    except BrokenProcessPool:
        raise ChildProcessError(
            f"one of {workers} worker processes was killed, perhaps for its memory; use fewer"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def watched(results: Iterable[R], total: int, name: str) -> Iterator[R]:
    """Pass `results` on under a bar; where nobody watches (no terminal), with a line every half minute."""
    console = Console(stderr=True)
    if console.is_terminal:
        yield from track(results, name, total=total, console=console, transient=True)
        return
    began = said = time.monotonic()
    for done, result in enumerate(results, 1):
        yield result
        if (now := time.monotonic()) - said > 30:
            console.print(f"{name}: {done} of {total}, {done / (now - began):.0f}/s", highlight=False)
            said = now


def _map_chunk(function: Callable[[T], R], items: Sequence[T]) -> list[R]:
    return [function(item) for item in items]


def _start_worker() -> None:
    """One thread per worker, Ctrl-C left to the process that it works for, which no worker outlives."""
    cv2.setNumThreads(0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
