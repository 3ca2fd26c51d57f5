"""Handover of checkpoints to a run with edited source.

The fingerprint of a run includes its source, so an edit of the source starts a new run. If the edit does not change the
result, the user can offer the old run for adoption (`semmae state adopt`). The next run with the same stage, parameters
and inputs then takes over the checkpoints. The new run and its artifact record the digest of the old source.
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

OFFER_FILE, SOURCES_FILE, LOG_FILE = "offer.json", "adopted.json", "adoptions.jsonl"


def offer(folder: Path) -> None:
    """Offer the run in `folder` for adoption.

    Raises:
        ValueError: The run has no checkpoint.
        BlockingIOError: A process is computing the run.
    """
    if not any(folder.glob("step-*")):
        raise ValueError(f"run {folder.name[:12]} has no checkpoint yet; there is nothing to adopt")
    with exclusive_lock("run", folder.name):
        write_json(folder / OFFER_FILE, {"offered": time.strftime("%FT%T%z")})


def adopt_offered(identity: dict[str, Any], folder: Path) -> list[str]:
    """Move the checkpoints of an offered run to `folder`, the folder of the run with `identity`.

    Does nothing if `folder` has checkpoints. If an offered run of the same stage has other parameters or inputs, this
    function prints a warning and leaves that run unchanged.

    Returns:
        Digests of the older source versions that computed a part of the run in `folder`, oldest first. The list is
        empty if that run has never adopted checkpoints.
    """
    for offer_file in sorted(folder.parent.glob(f"*/{OFFER_FILE}")):
        offered = offer_file.parent
        offered_identity = read_json(offered / "identity.json")
        if offered == folder or offered_identity["stage"] != identity["stage"] or any(folder.glob("step-*")):
            continue
        if not any(offered.glob("step-*")):  # a process was killed between moving and deleting
            shutil.rmtree(offered)
            continue
        differences = [
            key for key in ("params", "inputs") if json_digest(offered_identity[key]) != json_digest(identity[key])
        ]
        if differences:
            print(
                f"warning: {identity['stage']} does not adopt run {offered.name[:12]}, which has other "
                f"{' and '.join(differences)}",
                file=sys.stderr,
            )
            continue
        with exclusive_lock("run", offered.name):
            _move_checkpoints(offered, folder, [*_older_sources(offered), offered_identity["source"]])
    return _older_sources(folder)


def _move_checkpoints(offered: Path, folder: Path, sources: list[str]) -> None:
    """Move the checkpoints, newest first, so that a killed process can lose only older ones."""
    write_json(folder / SOURCES_FILE, sources)
    checkpoints = sorted(offered.glob("step-*"), reverse=True)
    names = [checkpoint.name for checkpoint in checkpoints]
    record = {"at": time.strftime("%FT%T%z"), "from": offered.name, "to": folder.name, "saves": names}
    with open(state_root() / LOG_FILE, "a") as log:
        log.write(json.dumps(record) + "\n")
    for checkpoint in checkpoints:
        os.rename(checkpoint, folder / checkpoint.name)
    shutil.rmtree(offered)
    print(f"adopted {names[0]} of run {offered.name[:12]}, which was computed by older source", file=sys.stderr)


def _older_sources(folder: Path) -> list[str]:
    return read_json(folder / SOURCES_FILE) if (folder / SOURCES_FILE).exists() else []
