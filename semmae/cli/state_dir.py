"""Unfinished runs and locks under the state root, for `semmae state` and `semmae doctor`.

The store of part maps has its own module, `parts.part_store`.
"""

import contextlib
import fcntl
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from semmae.core.atomic_files import read_json
from semmae.core.locks import exclusive_lock, lock_path
from semmae.core.paths import state_root
from semmae.runs import handover


@dataclass(frozen=True)
class UnfinishedRun:
    """A run that can be resumed."""

    fingerprint: str
    stage: str
    step: int | None  # step of the last checkpoint; None: no checkpoint yet
    num_bytes: int
    used: float  # time of its last write, in seconds since 1970
    locked: bool  # a process is working on it


def list_runs() -> list[UnfinishedRun]:
    """Return the unfinished runs, the last used first."""
    unfinished = []
    for folder in _runs_folder().glob("*/"):
        identity = read_json(folder / "identity.json") if (folder / "identity.json").exists() else {}
        if not (stats := list(_stats(folder))):
            continue  # the run has just finished and deleted its folder
        steps = [int(path.name.removeprefix("step-")) for path in folder.glob("step-*")]
        unfinished.append(
            UnfinishedRun(
                fingerprint=folder.name,
                stage=identity.get("stage", "unknown"),
                step=max(steps, default=None),
                num_bytes=sum(stat.st_size for stat in stats[1:]),
                used=max(stat.st_mtime for stat in stats),
                locked=_lock_holder(lock_path("run", folder.name)) is not None,
            )
        )
    return sorted(unfinished, key=lambda run: -run.used)


def _stats(folder: Path) -> Iterator[os.stat_result]:
    """Yield the status of a folder, then of all files and folders in it. Skip files that a run deletes meanwhile."""
    for root, _, files in os.walk(folder):  # os.walk skips deleted folders; rglob raises an error
        for path in (Path(root), *(Path(root, file) for file in files)):
            with contextlib.suppress(FileNotFoundError):
                yield path.stat()


def prune_runs(*, unused_days: float) -> list[UnfinishedRun]:
    """Delete and return the unlocked runs that wrote nothing in the last `unused_days` days."""
    cutoff = time.time() - unused_days * 86_400
    unused = [run for run in list_runs() if not run.locked and run.used <= cutoff]
    for run in unused:
        with exclusive_lock("run", run.fingerprint):
            shutil.rmtree(_runs_folder() / run.fingerprint)
    return unused


def adopt(prefix: str) -> UnfinishedRun:
    """Let the next run with the same parameters and inputs resume an unfinished run, although its source differs.

    Args:
        prefix: First characters of the fingerprint of the unfinished run.

    Returns:
        The unfinished run.

    Raises:
        ValueError: The prefix matches no run or several runs, or the run has no checkpoint.
        BlockingIOError: A process is working on the run.
    """
    unfinished = list_runs()
    matches = [run for run in unfinished if run.fingerprint.startswith(prefix)]
    if len(matches) != 1:
        names = ", ".join(f"{run.fingerprint[:12]} ({run.stage})" for run in matches or unfinished) or "none"
        raise ValueError(f"{len(matches)} unfinished runs match {prefix!r}; expected one of: {names}")
    handover.offer(_runs_folder() / matches[0].fingerprint)
    return matches[0]


def lock_holders() -> list[str]:
    """Return the ids of the processes that hold a lock under the state root."""
    holders = {_lock_holder(path) for path in lock_path().parent.glob("*")}
    return sorted(holder for holder in holders if holder)


def _lock_holder(path: Path) -> str | None:
    """Return the id of the process that holds a lock, or None."""
    if not path.exists():
        return None
    with open(path) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return file.read().strip() or "unknown"
    return None


def _runs_folder() -> Path:
    return state_root() / "runs"
