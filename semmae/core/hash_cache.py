"""A cache of the digests of large files, under the state root. It saves each stage from reading all shards.

A digest is valid while the size, modification time and inode of its file are unchanged. The cache therefore does not
detect damage without a write, such as a flipped bit on the disk. If you delete the folder `digests`, the next stage
reads all files again.
"""

import json
import time
from pathlib import Path
from typing import Any

from semmae.core.atomic_files import write_json
from semmae.core.digests import file_digest, json_digest
from semmae.core.paths import state_root

MIN_AGE = 2_000_000_000  # nanoseconds; a newer file may change again without a change of its modification time


def cached_digest(path: Path) -> str:
    """Return the SHA-256 of a file in hex; read the file only if it has changed since it was last read."""
    stat = path.stat()
    version, entry_file = [stat.st_size, stat.st_mtime_ns, stat.st_ino], _folder() / json_digest(str(path.absolute()))
    if (entry := _read_entry(entry_file)).get("version") == version:
        return entry["sha256"]
    digest = file_digest(path)
    if time.time_ns() - stat.st_mtime_ns > MIN_AGE:
        write_json(entry_file, {"path": str(path.absolute()), "version": version, "sha256": digest})
    return digest


def prune() -> int:
    """Delete the entries of files that no longer exist; return their number."""
    stale = [entry for entry in _folder().glob("[!.]*") if not Path(_read_entry(entry).get("path", "")).is_file()]
    for entry in stale:
        entry.unlink(missing_ok=True)
    return len(stale)


def _read_entry(entry_file: Path) -> dict[str, Any]:
    """Return the path, version and digest of an entry; {} if it is missing or damaged."""
    try:
        entry = json.loads(entry_file.read_text())
    except (OSError, ValueError):
        return {}
    return entry if isinstance(entry, dict) and entry.keys() == {"path", "version", "sha256"} else {}


def _folder() -> Path:
    return state_root() / "digests"
