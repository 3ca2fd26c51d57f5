"""Files that are whole or absent: atomic writes, digests, models that describe themselves, the state root and its
locks.

- `replacing(path)`: write under a temporary name, fsync, rename; a reader never sees half a file or half a folder.
- `save_model` / `read_model`: safetensors beside a JSON that rebuilds the model; nothing is ever unpickled.
- `state_root()`: what must survive DVC's deletion of outs (checkpoints, part-map store, locks); `SEMMAE_STATE` moves
  it.
"""

import errno
import fcntl
import glob
import hashlib
import json
import os
import platform
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

OWN_DIGEST = "config_sha256"  # in the JSON of a model: the digest of all else there
DAY = 86_400  # seconds
FULL = 2**18  # bytes: less is left only where a write has just failed

os.umask(os.umask(0o077) | 0o002)  # whatever the user's is: not everyone may change what this process writes


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; when the block succeeds, what was written there (file or folder)
    replaces `path`.

    When the block fails the temporary is removed and `path` stays as it was.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{_here()}.{os.getpid()}.tmp")
    for old in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        if old == temporary or _is_abandoned(old):
            _remove(old)
    try:
        yield temporary
        for file in [temporary] if temporary.is_file() else sorted(temporary.rglob("*")):
            if file.is_file():
                _fsync(file)
        if temporary.is_dir():
            _remove(path)  # a folder cannot be renamed over a full one
        os.replace(temporary, path)
        _fsync(path.parent)
    except BaseException as error:
        full = isinstance(error, Exception) and _is_full(path.parent, error)
        _remove(temporary)
        if full:
            raise full_disk(path) from error
        raise


@cache
def _here() -> str:
    """Where process ids mean what they mean to this process: this container of this machine since it was started."""
    try:
        return digest([Path("/proc/sys/kernel/random/boot_id").read_text(), os.readlink("/proc/self/ns/pid")])[:8]
    except FileNotFoundError:  # not Linux
        return digest(platform.node())[:8]


def _is_abandoned(temporary: Path) -> bool:
    """Whether a temporary's writer was killed. Whether one in another container or on another machine lives, nobody
    here can ask: its temporary is left alone until it has not changed for a day.
    """
    *_, place, pid, _ = temporary.name.split(".")
    if place == _here():
        return not _lives(int(pid))
    try:
        return time.time() - temporary.stat().st_mtime > DAY
    except FileNotFoundError:  # renamed by its writer just now
        return False


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        return True
    return True


def full_disk(path: Path) -> OSError:
    """What to tell when there was no room for `path`."""
    return OSError(
        f"the disk of {path.parent.absolute()} is full: {path.name} was not written, what was there before is whole; "
        "free some room (semmae doctor shows where) and run the same command again"
    )


def _is_full(folder: Path, error: Exception) -> bool:
    """Whether a write there failed for want of room: safetensors says so in words, torch not at all."""
    return os.strerror(errno.ENOSPC) in str(error) or shutil.disk_usage(folder).free < FULL


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_json(path: Path, content: Any) -> None:
    """`content` as indented JSON, atomically; NaN and infinity are refused (ValueError), since JSON has neither."""
    text = json.dumps(content, indent=2, allow_nan=False) + "\n"
    with replacing(path) as temporary:
        temporary.write_text(text)


def read_json(path: Path) -> Any:
    """The JSON in `path`; ValueError names the file when it is missing or broken."""
    try:
        return json.loads(Path(path).read_text())
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist; run the stage that writes it (dvc repro)") from None
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from None


def sha256(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest(content: Any) -> str:
    """The SHA-256 of a JSON value in canonical form, in hex: equal values give equal digests."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, allow_nan=False).encode()).hexdigest()


def save_model(folder: Path, name: str, state: dict[str, torch.Tensor], config: dict[str, Any]) -> None:
    """Write `<name>.safetensors` and, with its digest, `<name>.json` into `folder`.

    Both are on the disk before either gets its name: where there is no room for one, the model before stays whole.
    """
    with replacing(folder / f"{name}.safetensors") as temporary:
        save_file({key: value.detach().cpu().contiguous() for key, value in state.items()}, temporary)
        _fsync(temporary)
        config = {**config, "sha256": sha256(temporary)}
        write_json(folder / f"{name}.json", {**config, OWN_DIGEST: digest(config)})


def read_model(folder: Path, name: str) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The weights and the config of `save_model`; ValueError when the weights are not those the JSON was written
    for, or the JSON is not as it was written.
    """
    config = read_json(folder / f"{name}.json")
    told = config.pop(OWN_DIGEST, None)  # what older versions have promoted has none
    if told not in (None, digest(config)):
        raise ValueError(f"{folder / name}.json is damaged: restore it (dvc checkout) or rerun its stage")
    weights = folder / f"{name}.safetensors"
    if not weights.exists():
        raise ValueError(f"{weights} does not exist beside {name}.json; run the stage that writes it (dvc repro)")
    if sha256(weights) != config["sha256"]:
        raise ValueError(
            f"{weights} does not match the sha256 in {name}.json; restore it (dvc checkout) or rerun its stage"
        )
    return load_file(weights), config


def model_digest(folder: Path, name: str) -> str:
    """The identity of a saved model: the digest of its JSON, which holds the digest of its weights."""
    return digest(read_json(folder / f"{name}.json"))


def raw(path: str) -> Path:
    """Where something that a user brings lies: relative paths start in data/raw, of the main repository in a DVC
    queue. A path that leaves data/raw (`../encoders/...`) does so by its words: the folder need not be there.
    """
    return Path(os.path.normpath(Path(os.environ.get("DVC_ROOT", "")) / "data/raw" / path))


def state_root() -> Path:
    """Where resumable state, the part-map store and locks live: `$SEMMAE_STATE`, else the user's cache folder."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    root = Path(os.environ.get("SEMMAE_STATE") or Path(cache) / "semmae").absolute()
    root.mkdir(parents=True, exist_ok=True)
    return root


def lock_path(*what: str) -> Path:
    """The file that `lock(*what)` holds."""
    return state_root() / "locks" / digest(what)


@contextmanager
def lock(*what: str, wait: bool = False) -> Iterator[None]:
    """Hold an exclusive lock under the state root on the thing named `what`, until the block or the process ends.

    Where a process holds it already: BlockingIOError names that, or with `wait` this one says so and waits its turn.
    """
    path = lock_path(*what)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+b", buffering=0) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            held = f"process {file.read().decode().strip() or 'unknown'} is already writing {' '.join(what)}"
            if not wait:
                raise BlockingIOError(f"{held}; wait for it or stop it") from None
            print(f"{held}; waiting for it", file=sys.stderr, flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        file.truncate(0)
        try:
            file.write(str(os.getpid()).encode())
        except OSError as error:
            raise full_disk(path) if error.errno == errno.ENOSPC else error from None
        yield
