"""Digests of large files, computed once per change: a stage that starts need not read a terabyte to trust it.

A file's size, time and inode are remembered with its digest under the state root. What changes a file without a write
(bits that rot on the disk) is not seen; where the folder `digests` is deleted, the next look reads everything.
"""

import json
import time
from pathlib import Path
from typing import Any

from semmae.core.atomic_files import write_json
from semmae.core.digests import file_digest, json_digest
from semmae.core.paths import state_root

FRESH = 2_000_000_000  # nanoseconds: a younger file may change again within one tick of its time


def cached_digest(path: Path) -> str:
    """The SHA-256 of a file, in hex, read only if the file is not as it was when it was last read."""
    stat = path.stat()
    seal, memo = [stat.st_size, stat.st_mtime_ns, stat.st_ino], _folder() / json_digest(str(path.absolute()))
    if (remembered := _read(memo)).get("seal") == seal:
        return remembered["sha256"]
    found = file_digest(path)
    if time.time_ns() - stat.st_mtime_ns > FRESH:
        write_json(memo, {"path": str(path.absolute()), "seal": seal, "sha256": found})
    return found


def prune() -> int:
    """Forget files that are no more; returns how many."""
    gone = [memo for memo in _folder().glob("[!.]*") if not Path(_read(memo).get("path", "")).is_file()]
    for memo in gone:
        memo.unlink(missing_ok=True)
    return len(gone)


def _read(memo: Path) -> dict[str, Any]:
    """What is remembered of a file: its path, its seal, its digest; {} if never seen, or damaged."""
    try:
        found = json.loads(memo.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) and found.keys() == {"path", "seal", "sha256"} else {}


def _folder() -> Path:
    return state_root() / "digests"
