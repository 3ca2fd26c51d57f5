"""Handover of checkpoints to a run with edited source.

The fingerprint of a run includes its source, so an edit starts a new run. If the edit changes no result, the user
offers the old run for adoption (`semmae state adopt`). The next run with the same stage, parameters and inputs takes
its checkpoints. This run and its artifact keep the digest of the old source.
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
        BlockingIOError: A process is at work on the run.
    """
    if not any(folder.glob("step-*")):
        raise ValueError(f"run {folder.name[:12]} has no checkpoint yet; there is nothing to adopt")
    with exclusive_lock("run", folder.name):
        write_json(folder / OFFER_FILE, {"offered": time.strftime("%FT%T%z")})


def adopt_offered(identity: dict[str, Any], folder: Path) -> list[str]:
    """Move the checkpoints of an offered run to `folder`, the folder of the run with `identity`.

    Does nothing if `folder` has checkpoints. An offered run of the same stage with other parameters or inputs is left
    alone, with a warning.

    Returns:
        Digests of the older source that computed a part of the run in `folder`, oldest first; mostly empty.
    """
    for offer_file in sorted(folder.parent.glob(f"*/{OFFER_FILE}")):
        offered = offer_file.parent
        offered_identity = read_json(offered / "identity.json")
        if offered == folder or offered_identity["stage"] != identity["stage"] or any(folder.glob("step-*")):
            continue
        if not any(offered.glob("step-*")):  # a killed process has moved its checkpoints, but not deleted its folder
            shutil.rmtree(offered)
            continue
        differences = [
            key for key in ("params", "inputs") if json_digest(offered_identity[key]) != json_digest(identity[key])
        ]
        if differences:
            print(
                f"warning: {identity['stage']} does not adopt run {offered.name[:12]}: it has other "
                f"{' and '.join(differences)}",
                file=sys.stderr,
            )
            continue
        with exclusive_lock("run", offered.name):
            _move_checkpoints(offered, folder, [*_older_sources(offered), offered_identity["source"]])
    return _older_sources(folder)


def _move_checkpoints(offered: Path, folder: Path, sources: list[str]) -> None:
    """Move the checkpoints, newest first: if the process is killed meanwhile, at most an older checkpoint is lost."""
    write_json(folder / SOURCES_FILE, sources)
    saves = sorted(offered.glob("step-*"), reverse=True)
    names = [save.name for save in saves]
    record = {"at": time.strftime("%FT%T%z"), "from": offered.name, "to": folder.name, "saves": names}
    with open(state_root() / LOG_FILE, "a") as log:
        log.write(json.dumps(record) + "\n")
    for save in saves:
        os.rename(save, folder / save.name)
    shutil.rmtree(offered)
    print(f"adopted run {offered.name[:12]} at {names[0]}, which older source has computed", file=sys.stderr)


def _older_sources(folder: Path) -> list[str]:
    return read_json(folder / SOURCES_FILE) if (folder / SOURCES_FILE).exists() else []
