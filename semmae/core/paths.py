"""Folders that are not outputs of the pipeline: the user's raw data and the state root."""

import os
from pathlib import Path


def raw_path(path: str) -> Path:
    """Resolve a path in params.yaml, absolute or relative to `data/raw`.

    A queued experiment of DVC runs in a copy of the repository. DVC then sets `DVC_ROOT` to the main repository, and
    this function uses its `data/raw`. `..` is resolved lexically, so `data/raw` need not exist.
    """
    return Path(os.path.normpath(Path(os.environ.get("DVC_ROOT", "")) / "data/raw" / path))


def state_root() -> Path:
    """Return the folder of checkpoints, the part-map store and locks; create it if it is missing.

    DVC deletes the outputs of a stage before the stage runs, so resumable state is not in an output. The folder is
    `$SEMMAE_STATE`, or by default `semmae` in the user's cache folder.
    """
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    root = Path(os.environ.get("SEMMAE_STATE") or Path(cache) / "semmae").absolute()
    root.mkdir(parents=True, exist_ok=True)
    return root
