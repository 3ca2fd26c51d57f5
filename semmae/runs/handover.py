"""Going on after an edit of the source: the checkpoints of a run are handed to the one that differs in its code alone.

A run is found again by a fingerprint of params, inputs and source, so after an edit there is another and it begins
anew. Who knows that the edit is harmless says so: `offer` marks the old run (`semmae state adopt`), the next run that
equals it in stage, params and inputs takes its checkpoints (`take`), and both it and what it makes remember the old
source.
"""

import json
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from semmae.core.atomic_files import read_json, write_json
from semmae.core.digests import json_digest
from semmae.core.locks import exclusive_lock
from semmae.core.paths import state_root

OFFER, SOURCES, LOG = "offer.json", "adopted.json", "adoptions.jsonl"


def offer(folder: Path) -> None:
    """Mark the run in `folder` to be adopted. ValueError where it has no checkpoint, BlockingIOError while at work."""
    if not any(folder.glob("step-*")):
        raise ValueError(f"run {folder.name[:12]} has no checkpoint yet; there is nothing to adopt")
    with exclusive_lock("run", folder.name):
        write_json(folder / OFFER, {"offered": time.strftime("%FT%T%z")})


def take(identity: dict[str, Any], folder: Path) -> list[str]:
    """Move the checkpoints of an offered run to `folder`, the run with `identity`, unless it has some of its own.

    Returns the digests of all sources, before its own, by which the run in `folder` was computed; mostly none. An
    offered run of the same stage that differs in more than its source is left alone, with a warning.
    """
    for mark in sorted(folder.parent.glob(f"*/{OFFER}")):
        other = mark.parent
        theirs = read_json(other / "identity.json")
        if other == folder or theirs["stage"] != identity["stage"] or any(folder.glob("step-*")):
            continue
        if not any(other.glob("step-*")):  # taken before, by a process that was killed at the end of it
            shutil.rmtree(other)
            continue
        if differing := [key for key in ("params", "inputs") if json_digest(theirs[key]) != json_digest(identity[key])]:
            print(
                f"warning: {identity['stage']} does not adopt run {other.name[:12]}: other {' and '.join(differing)}",
                file=sys.stderr,
            )
            continue
        with exclusive_lock("run", other.name):
            _move(other, folder, [*_sources(other), theirs["source"]])
    return _sources(folder)


def _move(other: Path, folder: Path, sources: list[str]) -> None:
    """Newest first: a kill half-way loses an older save at most."""
    write_json(folder / SOURCES, sources)
    saves = sorted(other.glob("step-*"), reverse=True)
    record = {"at": time.strftime("%FT%T%z"), "from": other.name, "to": folder.name, "saves": [s.name for s in saves]}
    with open(state_root() / LOG, "a") as log:
        log.write(json.dumps(record) + "\n")
    for save in saves:
        os.rename(save, folder / save.name)
    shutil.rmtree(other)
    print(f"adopted run {other.name[:12]}, at {saves[0].name}, which other source had computed", file=sys.stderr)


def _sources(folder: Path) -> list[str]:
    return read_json(folder / SOURCES) if (folder / SOURCES).exists() else []
