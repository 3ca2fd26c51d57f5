"""What lies under the state root: unfinished runs and their checkpoints, and who is at work there.

- `runs()`: every unfinished run, the last used first; `adopt` hands one to edited source, `prune_runs` deletes those
  that nobody has used for long.
- `at_work()`: the processes that hold a lock; what is locked is never touched.

The part-map store keeps its own house: `part_store.list_entries`, `part_store.prune`.
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
    step: int | None  # of its last checkpoint, None: it has none yet
    num_bytes: int
    used: float  # seconds since 1970
    locked: bool  # a process is at work on it


def runs() -> list[UnfinishedRun]:
    """The unfinished runs, the last used first."""
    found = []
    for folder in _runs().glob("*/"):
        identity = read_json(folder / "identity.json") if (folder / "identity.json").exists() else {}
        if not (stats := list(_stats(folder))):
            continue  # it has just ended
        steps = [int(path.name.removeprefix("step-")) for path in folder.glob("step-*")]
        found.append(
            UnfinishedRun(
                fingerprint=folder.name,
                stage=identity.get("stage", "unknown"),
                step=max(steps, default=None),
                num_bytes=sum(stat.st_size for stat in stats[1:]),
                used=max(stat.st_mtime for stat in stats),
                locked=_holder(lock_path("run", folder.name)) is not None,
            )
        )
    return sorted(found, key=lambda run: -run.used)


def _stats(folder: Path) -> Iterator[os.stat_result]:
    """Of a folder, then of all in it; what a run at work removes meanwhile is left out."""
    for root, _, files in os.walk(folder):  # a walk passes over folders that are gone, rglob fails
        for path in (Path(root), *(Path(root, file) for file in files)):
            with contextlib.suppress(FileNotFoundError):
                yield path.stat()


def prune_runs(*, unused_days: float) -> list[UnfinishedRun]:
    """Delete the runs that were not used for so many days and are not at work; returns them."""
    old = [run for run in runs() if not run.locked and run.used <= time.time() - unused_days * 86_400]
    for run in old:
        with exclusive_lock("run", run.fingerprint):
            shutil.rmtree(_runs() / run.fingerprint)
    return old


def adopt(prefix: str) -> UnfinishedRun:
    """Offer the unfinished run whose fingerprint begins so to the next one that differs in its source alone.

    ValueError where no run, or more than one, begins so, or it has no checkpoint; BlockingIOError while it is at work.
    """
    known = runs()
    found = [run for run in known if run.fingerprint.startswith(prefix)]
    if len(found) != 1:
        names = ", ".join(f"{run.fingerprint[:12]} ({run.stage})" for run in found or known) or "none"
        raise ValueError(f"{len(found)} unfinished runs begin with {prefix!r}; there are: {names}")
    handover.offer(_runs() / found[0].fingerprint)
    return found[0]


def at_work() -> list[str]:
    """The ids of the processes that hold any lock under the state root."""
    holders = {_holder(path) for path in lock_path().parent.glob("*")}
    return sorted(holder for holder in holders if holder)


def _holder(path: Path) -> str | None:
    """The id of the process that holds the lock file, None if nobody does."""
    if not path.exists():
        return None
    with open(path) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return file.read().strip() or "unknown"
    return None


def _runs() -> Path:
    return state_root() / "runs"
