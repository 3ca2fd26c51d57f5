"""Results of a killed evaluation, kept for the next attempt in a folder under the state root.

This is for evaluations whose work is a sequence of files. A training is resumed by `runs.run`, whose fingerprints and
locks this module uses too.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from semmae.core import checkpoint
from semmae.core.atomic_files import write_json
from semmae.core.digests import json_digest
from semmae.core.locks import exclusive_lock
from semmae.core.paths import state_root
from semmae.runs.fingerprint import run_identity


@contextmanager
def resumable_folder(stage: str, *, out: Path, params: Any, inputs: list[str]) -> Iterator[Path]:
    """Yield the folder of this evaluation; delete it on success, keep it after an error.

    A process that computes the same for another output waits until this one has finished.

    Args:
        out: Output of the stage. A second process that writes it is refused.
        params: Parameters of the stage, a dataclass; part of the fingerprint.
        inputs: Digests of the files that the stage reads; part of the fingerprint.

    Raises:
        BlockingIOError: Another process writes `out`. The message names the process.
    """
    identity = run_identity(stage, params, inputs)
    fingerprint = json_digest(identity)
    folder = state_root() / "runs" / fingerprint
    with exclusive_lock("output", str(out.absolute())), exclusive_lock("run", fingerprint, wait=True):
        write_json(folder / "identity.json", identity)
        yield folder
        checkpoint.delete_all(folder)
