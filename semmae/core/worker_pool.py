"""An ordered map over worker processes. It is the only pool of the project, and a torch `DataLoader` runs it."""

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
        workers: Number of processes. With 0 this process calls the function.
        start_method: None is the default of the platform; on Linux a fork, which shares the function without pickling
            it. `forkserver` is safe where threads of this process hold locks, which a fork would copy.
        preload: Modules that the fork server imports once, for all workers.
        prefetch: Items per worker that are in progress or finished ahead of the consumer.
        pin_memory: Return tensors in pinned memory.

    Raises:
        ValueError, OSError: The function raised it. It arrives unchanged, without the traceback of the worker.
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
    """Whether a RuntimeError is the report of torch's `DataLoader` that a worker died.

    For forked workers torch raises it in a signal handler, so it can also appear outside of `ordered_map`.
    """
    return str(error).startswith("DataLoader worker (pid")


class _Calls(Dataset):
    """A dataset that is indexed by the items themselves, and returns a user's error as a value."""

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
    """Leave signals to the parent process, use one thread, and exit when the parent exits."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    torch.set_num_threads(1)
    cv2.setNumThreads(0)  # no pool at all: with 1, OpenCV waits for threads of the parent that a fork does not copy
    parent = multiprocessing.parent_process()
    assert parent is not None

    def exit_with_parent() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=exit_with_parent, daemon=True).start()
