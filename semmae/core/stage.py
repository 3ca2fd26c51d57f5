"""The entry point of a stage and its command line."""

import os
import sys
from collections.abc import Callable
from typing import TypeVar

import cv2

from semmae.core.process import keep_freed_memory, raise_open_files_limit, restrict_permissions
from semmae.core.worker_pool import WORKER_DEATH, is_worker_death

T = TypeVar("T")


def main(function: Callable[[], None]) -> None:
    """Set up the process and run a stage's `function`.

    An error that a user can fix is printed to standard error without a traceback; the exit status is 1. If SEMMAE_DEBUG
    is set, the traceback is shown. An interrupt exits with status 130.
    """
    restrict_permissions()
    keep_freed_memory()
    raise_open_files_limit()
    cv2.setNumThreads(0)  # images are small, and worker processes load them in parallel
    try:
        function()
    except (ValueError, OSError, FloatingPointError) as error:
        if os.environ.get("SEMMAE_DEBUG"):
            raise
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(1) from None
    except RuntimeError as error:
        if os.environ.get("SEMMAE_DEBUG") or not is_worker_death(error):
            raise
        print(f"error: {WORKER_DEATH}", file=sys.stderr)
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        print("stopped by SIGINT; run the same command again", file=sys.stderr)
        raise SystemExit(130) from None


def dataset_from_command_line(datasets: dict[str, T], stage: str) -> tuple[str, T]:
    """Return the name of the dataset on the command line and its entry in the section's `datasets`.

    The command in dvc.yaml passes `$DVC_STAGE`, which is `<stage>@<dataset>`. If DVC inserted the name itself into the
    command, the shell would interpret its special characters.

    Raises:
        ValueError: The section has no dataset of this name.
    """
    name = " ".join(sys.argv[1:]).removeprefix(f"{stage}@")
    if name not in datasets:
        raise ValueError(f"{stage} has no dataset {name!r}; params.yaml has {', '.join(datasets) or 'none'}")
    return name, datasets[name]
