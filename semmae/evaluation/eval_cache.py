"""A folder under the state root that keeps the files of a killed evaluation, so that the next process can use them.

Trainings are resumed by `runs.run`. This module uses the same fingerprints and locks.
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
    """Yield the folder of this evaluation. Delete it on success, and keep it after an error.

    A process with the same fingerprint and another output waits until this process has finished.

    Args:
        out: Output of the stage. Only one process may write it.
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
