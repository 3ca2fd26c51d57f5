"""What a killed evaluation leaves to the next one: a folder under the state root, found again by its fingerprint.

For work that is a sequence of files; a training goes on by `run.Run`, whose fingerprints and locks these are.
"""

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from semmae.core import checkpoint
from semmae.core.atomic_files import write_json
from semmae.core.digests import json_digest
from semmae.core.locks import exclusive_lock
from semmae.core.paths import state_root
from semmae.runs import run


@contextmanager
def folder(stage: str, *, out: Path, params: Any, inputs: list[str]) -> Iterator[Path]:
    """The folder of this stage with these params (a dataclass), digests of inputs and source; deleted on success.

    Raises BlockingIOError naming the process that is at work on the same `out`; waits its turn where the same work is
    done for another one: experiments side by side share their baselines.
    """
    identity = {
        "stage": stage, "params": run.lasting(dataclasses.asdict(params)), "inputs": inputs,
        "source": run.source_digest(),
    }  # fmt: skip
    fingerprint = json_digest(identity)
    place = state_root() / "runs" / fingerprint
    with exclusive_lock("output", str(out.absolute())), exclusive_lock("run", fingerprint, wait=True):
        write_json(place / "identity.json", identity)
        yield place
        checkpoint.forget(place)
