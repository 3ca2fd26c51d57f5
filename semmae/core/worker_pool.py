"""An ordered map over worker processes, based on the `DataLoader` of torch. The project has no other process pool."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, TypeVar

import cv2
import torch
from torch.utils.data import DataLoader, Dataset

T = TypeVar("T")
R = TypeVar("R")


def ordered_map(
    function: Callable[[T], R],
    items: Sequence[T],
    *,
    workers: int,
    start_method: Literal["forkserver"] | None = None,
    preload: Sequence[str] = (),
    prefetch: int = 2,
    pin_memory: bool = False,
) -> Iterator[R]:
    """Apply a function to every item in worker processes, and yield the results in the order of the items.

    Workers ignore SIGINT and SIGTERM, because the parent process decides when to stop. They exit with the parent.

    Args:
        workers: Number of processes. With 0, this process calls the function.
        start_method: None is the default of the platform. On Linux this is a fork, which does not pickle the function.
            Use `forkserver` if threads of this process may hold locks, because a fork copies held locks.
        preload: Modules that the fork server imports once, for all workers.
        prefetch: Items per worker that are in progress or finished ahead of the consumer.
        pin_memory: Return tensors in pinned memory.

    Raises:
        ValueError, OSError: The function raised this error. It has no traceback of the worker.
        ChildProcessError: A worker was killed.
    """
    workers = min(workers, len(items))
    if workers == 0:
        yield from map(function, items)
        return
    context = multiprocessing.get_context(start_method)
    if start_method == "forkserver":
        context.set_forkserver_preload(list(preload))
    results = DataLoader(
        _Calls(function),
        sampler=items,  # the loader sends each item to a worker as if it were an index
        batch_size=None,
        num_workers=workers,
        collate_fn=_identity,
        worker_init_fn=_start_worker,
        multiprocessing_context=context,
        prefetch_factor=prefetch,
        generator=torch.Generator(),  # without it the loader draws a seed from torch's global generator
        pin_memory=pin_memory,
    )
    try:
        for result in results:
            if isinstance(result, Exception):
                raise result
            yield result
    except RuntimeError as error:
        if is_worker_death(error):
            raise ChildProcessError(WORKER_DEATH) from None
        raise


WORKER_DEATH = "a worker process was killed, probably because memory ran out; use fewer workers (key `workers`)"


def is_worker_death(error: RuntimeError) -> bool:
    """Return whether the `DataLoader` of torch raised this error because a worker died.

    If a forked worker dies, torch raises the error in a signal handler, so it can also appear outside of `ordered_map`.
    """
    return str(error).startswith("DataLoader worker (pid")


class _Calls(Dataset):
    """A dataset whose indices are the items. It returns a ValueError or OSError as a value, without its traceback."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        self.function = function

    def __getitem__(self, item: Any) -> Any:
        try:
            return self.function(item)
        except (ValueError, OSError) as error:
            return error


def _identity(result: Any) -> Any:
    return result


def _start_worker(_: int) -> None:
    """Ignore stop signals, use one thread, and exit when the parent process exits."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    torch.set_num_threads(1)
    cv2.setNumThreads(0)  # not 1: OpenCV would wait for threads of the parent, which a fork does not copy
    parent = multiprocessing.parent_process()
    assert parent is not None

    def exit_with_parent() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=exit_with_parent, daemon=True).start()
