"""Locks between processes of one machine, as files under the state root. The system releases a lock when its process
ends.
"""

import errno
import fcntl
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from semmae.core.atomic_files import disk_full_error
from semmae.core.digests import json_digest
from semmae.core.paths import state_root


def lock_path(*name: str) -> Path:
    """Return the file that `exclusive_lock(*name)` locks."""
    return state_root() / "locks" / json_digest(name)


@contextmanager
def exclusive_lock(*name: str, wait: bool = False) -> Iterator[None]:
    """Hold the exclusive lock `name` until the block or the process ends.

    Args:
        name: Kind and identity of the locked thing, for example `"run", fingerprint`.
        wait: If another process holds the lock, print a message that names it, and wait.

    Raises:
        BlockingIOError: Another process holds the lock and `wait` is False. The message names the process.
    """
    path = lock_path(*name)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+b", buffering=0) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            message = f"process {file.read().decode().strip() or 'unknown'} is already writing {' '.join(name)}"
            if not wait:
                raise BlockingIOError(f"{message}; wait for it or stop it") from None
            print(f"{message}; waiting for it", file=sys.stderr, flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        file.truncate(0)
        try:
            file.write(str(os.getpid()).encode())
        except OSError as error:
            raise disk_full_error(path) if error.errno == errno.ENOSPC else error from None
        yield
