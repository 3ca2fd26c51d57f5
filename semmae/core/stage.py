"""How a stage begins, and how it ends: well, or in one sentence that says what to mend."""

import contextlib
import ctypes
import dataclasses
import os
import resource
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import cv2

T = TypeVar("T")


def main(function: Callable[[], None]) -> None:
    """Run a stage's `function`; what a user can mend becomes one line on standard error and exit status 1, no
    traceback.

    With SEMMAE_DEBUG set the traceback is shown after all.
    """
    keep_memory()
    allow_files()
    cv2.setNumThreads(0)  # images are small, and loaded by processes
    try:
        function()
    except (ValueError, OSError, FloatingPointError) as error:
        if os.environ.get("SEMMAE_DEBUG"):
            raise
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        print("stopped by SIGINT; run the same command again", file=sys.stderr)
        raise SystemExit(130) from None


def named(datasets: dict[str, T], stage: str) -> tuple[str, T]:
    """The dataset that the command line names, and what `datasets`, the section's, says of it.

    DVC names it as `<stage>@<dataset>`, in a variable: what it puts into a command itself, a shell reads as a command.
    """
    name = " ".join(sys.argv[1:]).removeprefix(f"{stage}@")
    if name not in datasets:
        raise ValueError(f"{stage} has no dataset {name!r}; params.yaml has {', '.join(datasets) or 'none'}")
    return name, datasets[name]


def over(protocol: T, own: Any) -> T:
    """`protocol` with what a dataset sets for itself; what that leaves null stays."""
    return dataclasses.replace(protocol, **{key: value for key, value in vars(own).items() if value is not None})  # type: ignore[type-var]


def allow_files() -> None:
    """As many open files as the system grants: a reader keeps every shard of a dataset open, ImageNet has 1,281."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):  # macOS grants no infinity
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def keep_memory() -> None:
    """Let glibc keep the memory that a step frees for the next: else it goes back to the system and is zeroed anew
    each time.

    A fifth of a small CPU step. Where the allocator is another one, nothing happens.
    """
    trim_threshold, top_pad, mmap_max = -1, -2, -4  # malloc.h
    if hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(mmap_max, 0)
        libc.mallopt(trim_threshold, 2**31 - 1)
        libc.mallopt(top_pad, 2**26)
