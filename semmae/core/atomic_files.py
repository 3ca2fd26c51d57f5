"""Atomic writes: a reader finds the old file or the new one, never a part of either.

`atomic_write` writes under a temporary name in the same folder, syncs the content to the disk and renames it.
"""

import errno
import glob
import json
import os
import platform
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from semmae.core.digests import json_digest

DAY = 86_400  # seconds
MIN_FREE = 2**18  # bytes; with less free space, any failed write counts as a full disk


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path next to `path`; on success, rename the file or folder written there to `path`.

    Files get the permissions that the umask allows, because some libraries write theirs for the owner only. If the
    block fails, the temporary is removed and `path` stays unchanged. The next write to the same path removes the
    temporaries of killed processes.

    Raises:
        OSError: The disk is full. The message names the disk and the file.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{_process_namespace()}.{os.getpid()}.tmp")
    for old in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        if old == temporary or _is_abandoned(old):
            _remove(old)
    try:
        yield temporary
        mode = 0o666 & ~_umask()
        for file in [temporary] if temporary.is_file() else sorted(temporary.rglob("*")):
            if file.is_file():
                file.chmod(mode)
                fsync(file)
        if temporary.is_dir():
            _remove(path)  # os.replace cannot overwrite a folder that has files
        os.replace(temporary, path)
        fsync(path.parent)
    except BaseException as error:
        disk_full = isinstance(error, Exception) and _is_disk_full(path.parent, error)
        _remove(temporary)
        if disk_full:
            raise disk_full_error(path) from error
        raise


@cache
def _process_namespace() -> str:
    """Return an id of the namespace in which process ids are unique: one boot of one machine, or one container."""
    try:
        return json_digest([Path("/proc/sys/kernel/random/boot_id").read_text(), os.readlink("/proc/self/ns/pid")])[:8]
    except FileNotFoundError:  # not Linux
        return json_digest(platform.node())[:8]


def _umask() -> int:
    """Return the umask. It can only be read by setting it, so another thread may see a stricter one for a moment."""
    os.umask(umask := os.umask(0o077))
    return umask


def _is_abandoned(temporary: Path) -> bool:
    """Return whether the writer of a temporary was killed.

    This process cannot check a writer in another container or on another machine. The temporary of such a writer counts
    as abandoned after a day without a change.
    """
    *_, namespace, pid, _ = temporary.name.split(".")
    if namespace == _process_namespace():
        return not _is_alive(int(pid))
    try:
        return time.time() - temporary.stat().st_mtime > DAY
    except FileNotFoundError:  # its writer has just renamed it
        return False


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # a process of another user
        return True
    return True


def disk_full_error(path: Path) -> OSError:
    """Return the error for a write to `path` that ran out of disk space."""
    return OSError(
        f"the disk of {path.parent.absolute()} is full: {path.name} was not written, and any previous version is "
        "intact; free some space (semmae doctor shows where) and run the same command again"
    )


def _is_disk_full(folder: Path, error: Exception) -> bool:
    """Return whether a write ran out of space.

    safetensors reports the cause only in its message, and torch does not report it. This function therefore checks the
    free space too.
    """
    return os.strerror(errno.ENOSPC) in str(error) or shutil.disk_usage(folder).free < MIN_FREE


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def fsync(path: Path) -> None:
    """Wait until the content of a file or folder is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_json(path: Path, content: Any) -> None:
    """Write `content` as indented JSON, atomically.

    Raises:
        ValueError: `content` has NaN or infinity, which JSON cannot represent.
    """
    text = json.dumps(content, indent=2, allow_nan=False) + "\n"
    with atomic_write(path) as temporary:
        temporary.write_text(text)


def read_json(path: Path) -> Any:
    """Read the JSON in `path`.

    Raises:
        ValueError: The file is missing or is not JSON. The message names the file.
    """
    try:
        return json.loads(Path(path).read_text())
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist; run the stage that writes it (dvc repro)") from None
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
